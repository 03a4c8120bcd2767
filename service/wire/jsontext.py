"""Reads and writes JSON text: orjson, and the standard library for what it refuses.

orjson 3.x refuses lone surrogates (`"\\ud800"`) and, in writing, integers past 64 bits, both of
which real models and clients produce. `tests/service/wire/test_jsontext.py` notices if it stops.
Integers past 64 bits are read as the nearest double, as browsers do.
"""

import json
import math
from typing import Any

import orjson

DEEPEST_NESTING = 200
"""Levels of a JSON text that are read. Below orjson's 254 for writing, and far below what folding,
estimating and storing can follow (from about 450, Python's recursion limit of 1,000 stops them
in the middle of an answer); real requests and chunks have at most some twenty."""


def decode_json(data: bytes | bytearray) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: not JSON, not UTF-8, a number JSON can't hold (`NaN`, `1e999`), or nested
            too deeply (over `DEEPEST_NESTING`).
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        if b"\\u" not in data:
            raise
        value = _decode_slowly(data)
    # Few chunks are long enough to be deep, and few of those have brackets enough.
    if len(data) > 2 * DEEPEST_NESTING and data.count(b"[") + data.count(b"{") > DEEPEST_NESTING:
        _check_nesting(value)
    return value


def encode_json(value: Any) -> bytes:
    """The compact JSON text of a value, in UTF-8; lone surrogates come out as escapes.

    Raises:
        ValueError: nested too deeply (from 1,000 to 10,000 levels, by Python's version).
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        pass
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _decode_slowly(data: bytes | bytearray) -> Any:
    try:
        return json.loads(
            data.decode("utf-8"), parse_constant=_refuse_number, parse_float=_finite_float
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _check_nesting(value: Any) -> None:
    """Level by level instead of recursively, so that no depth is too much for the check itself."""
    level = [value]
    for _ in range(DEEPEST_NESTING):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    if any(isinstance(item, (dict, list)) for item in level):
        raise ValueError(f"nested more than {DEEPEST_NESTING} levels deep")


def _refuse_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is out of range")
    return number
