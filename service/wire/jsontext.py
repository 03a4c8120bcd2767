"""Reads and writes JSON text: orjson, and the standard library for what it refuses.

orjson 3.x refuses lone surrogates (`"\\ud800"`) and, in writing, integers past 64 bits, both of
which real models and clients produce. `tests/service/wire/test_jsontext.py` notices if it stops.
Integers past 64 bits are read as the nearest double, as browsers do, whoever reads them.
"""

import json
import math
import re
from typing import Any

import orjson

from service.wire.measuring import has_more_values, is_nested_deeper

DEEPEST_NESTING = 200
"""Levels of a JSON text that are read. Below orjson's 254 for writing, and far below what folding,
estimating and storing can follow (from about 450, Python's recursion limit of 1,000 stops them
in the middle of an answer); real requests and chunks have at most some twenty."""

_DEEPEST_WRITTEN = 254
"""Levels that orjson writes; `tests/service/wire/test_jsontext.py` notices if it writes more."""
_PIECE_BYTES = 128 * 1024
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F]")
_LEAST, _MOST = -(2**63), 2**64 - 1
"""The integers that orjson reads as such."""
_LONGEST_INTEGER = len(str(_MOST))
"""Python takes a time that grows with the square of the digits."""


class TooManyValues(ValueError):
    """A JSON text has more keys and values than its reader takes."""


def decode_json(data: bytes | bytearray, most_values: int | None = None) -> Any:
    """The value of a JSON text in UTF-8.

    Args:
        most_values: how many keys and values it may have, and how many halves of characters (lone
            surrogates), which cost as much. None: as many as it likes.

    Raises:
        TooManyValues: it has more.
        ValueError: not JSON, not UTF-8, a number JSON can't hold (`NaN`, `1e999`), or nested
            too deeply (over `DEEPEST_NESTING`).
    """
    if most_values is not None and has_more_values(data, most_values):
        raise TooManyValues
    # Few chunks are long enough to be deep, and few of those have brackets enough.
    may_be_deep = (
        len(data) > 2 * DEEPEST_NESTING and data.count(b"[") + data.count(b"{") > DEEPEST_NESTING
    )
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        if b"\\u" not in data:
            raise
        if most_values is not None and _has_more_halves(data, most_values):
            raise TooManyValues from None
        is_deep = may_be_deep and is_nested_deeper(data, DEEPEST_NESTING)
        value = None if is_deep else _decode_slowly(data)
    else:
        is_deep = may_be_deep and _is_deep(value)
    if is_deep:
        raise ValueError(f"nested more than {DEEPEST_NESTING} levels deep")
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


def _is_deep(value: Any) -> bool:
    """Have orjson, which stops at a depth of its own, find out; anything in Python that goes through
    all of a value takes ten times as long."""
    for _ in range(_DEEPEST_WRITTEN - DEEPEST_NESTING):
        value = [value]
    try:
        orjson.dumps(value)
    except TypeError:
        return True
    return False


def _decode_slowly(data: bytes | bytearray) -> Any:
    try:
        return json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_number,
            parse_float=_finite_float,
            parse_int=_near_integer,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _has_more_halves(data: bytes | bytearray, most: int) -> bool:
    """True if a text has more escapes than this that are half a character without its other half, give or
    take one for each piece that is looked at: others get their turns between two of them."""
    if data.count(b"\\ud") + data.count(b"\\uD") <= most:
        return False
    count = 0
    for start in range(0, len(data), _PIECE_BYTES):
        piece = data[start : start + _PIECE_BYTES]
        count += len(_HALF.findall(piece)) - 2 * len(_PAIR.findall(piece))
        if count > most:
            return True
    return False


def _refuse_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _near_integer(digits: str) -> int | float:
    if len(digits) <= _LONGEST_INTEGER and _LEAST <= (number := int(digits)) <= _MOST:
        return number
    return _finite_float(digits)


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:_LONGEST_INTEGER]} is out of range")
    return number
