"""JSON text to values and back: orjson, and the standard library for what it refuses.

orjson 3.x refuses lone surrogates (`"\\ud800"`), integers past 64 bits and deep nesting, all of
which real models and clients produce. `tests/service/test_jsontext.py` notices if it stops.
"""

import json
import math
from typing import Any

import orjson


def decode_json(data: bytes | bytearray) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: not JSON, not UTF-8, a number JSON can't hold (`NaN`, `1e999`), or nested
            too deeply.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        if b"\\u" not in data:
            raise
    try:
        return json.loads(
            data.decode("utf-8"), parse_constant=_refuse_number, parse_float=_finite_float
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def encode_json(value: Any) -> bytes:
    """The compact JSON text of a value, in UTF-8; lone surrogates come out as escapes.

    Raises:
        ValueError: nested too deeply (about 1,000 levels).
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        pass
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is out of range")
    return number
