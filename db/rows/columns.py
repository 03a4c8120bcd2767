"""Turns values into ones that no text or jsonb column refuses, and back. No SQL, no driver.

PostgreSQL refuses NUL in text and jsonb, UTF-8 refuses lone surrogates, and jsonb has no NaN and
no infinity. Models and clients send all of these, and none of them may ever stop a save.

- Text: `readable` makes the text for its column; `raw_bytes` makes the exact original, to be kept
  beside it where the two differ; `original_text` undoes both.
- JSON: `to_jsonb` and `from_jsonb` are each other's inverse. Within strings, keys included, what
  jsonb refuses is escaped with '␛' (U+241B) and four hex digits: NUL is '␛0000', a surrogate
  '␛d800', and '␛' itself '␛241b'.
- Canonical JSON: one byte string for equal values, for digests.

Three things are lost, none of which JSON promises: NaN and the infinities become null, jsonb
forgets the order of keys, and 1e300 comes back as the integer that it is.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

import orjson

ESCAPE = "␛"
"""Begins the escape of a character that jsonb refuses; four hex digits follow."""
_UNSTORABLE = re.compile("[\0␛\ud800-\udfff]")
_ESCAPED = re.compile("␛([0-9a-f]{4})")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPLIT_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_ESCAPE_UTF8 = ESCAPE.encode()


# --- text columns ---------------------------------------------------------------------------


def readable(text: str) -> str:
    """The text as a text column can hold it and a person can read it: NUL as '␀', each lone
    surrogate as U+FFFD. Text without either is returned as it is."""
    if "\0" in text:
        text = text.replace("\0", "␀")
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return _SURROGATE.sub("\ufffd", _joined(text))


def raw_bytes(text: str) -> bytes | None:
    """The exact text for a bytea column, where `readable` differs from it; else None."""
    return None if readable(text) == text else text.encode("utf-8", "surrogatepass")


def original_text(column: str | None, raw: bytes | None) -> str | None:
    """The text that `readable` and `raw_bytes` were made of."""
    return column if raw is None else raw.decode("utf-8", "surrogatepass")


# --- jsonb columns --------------------------------------------------------------------------


def to_jsonb(value: Any) -> str:
    """The JSON source of a value, such that a jsonb column takes it. Never raises on JSON values,
    whatever their depth and size."""
    return _jsonb(value).decode()


def _jsonb(value: Any) -> bytes:
    try:
        source = orjson.dumps(value)
    except TypeError:  # lone surrogates, integers beyond 64 bits, more than 254 levels
        return _write(value, _escape).encode()
    if b"\\u0000" in source or _ESCAPE_UTF8 in source:
        return _write(value, _escape).encode()
    return source


def rows_json(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The JSON source of rows on their way into a table; `as_jsonb` makes their JSON columns.

    Raises:
        TypeError: a value isn't one that a column holds.
    """
    return orjson.dumps(rows)


def as_jsonb(value: Any) -> Any:
    """The value of a jsonb column, for `rows_json`: `to_jsonb` within."""
    return orjson.Fragment(_jsonb(value))


def as_json(source: bytes) -> Any:
    """The value of a json column that is given as text, for `rows_json`: this JSON source as it is.

    A text wherever there may be an escape that PostgreSQL refuses to read, although the column takes
    it: NUL's, and half a character's.
    """
    return source.decode() if b"\\u" in source else orjson.Fragment(source)


def from_jsonb(source: str | None) -> Any:
    """The value whose `to_jsonb` a column held; None for NULL."""
    if source is None:
        return None
    try:
        value = json.loads(source)  # not orjson: it turns integers beyond 64 bits into floats
    except RecursionError:
        value = orjson.loads(source)  # takes 1,024 levels, as many as any request can have had
    return _unescaped(value) if "␛" in source else value


def _escape(text: str) -> str:
    if not _UNSTORABLE.search(text):
        return text
    # In one pass for each kind: a text may have millions of them.
    text = text.replace(ESCAPE, "␛241b").replace("\0", "␛0000")
    if not _SURROGATE.search(text):
        return text
    # Python writes surrogates as `\\ud800`, so that other backslashes step aside; NUL has become free.
    encoded = text.replace("\\", "\0").encode("utf-8", "backslashreplace")
    return encoded.replace(b"\\u", _ESCAPE_UTF8).replace(b"\0", b"\\").decode()


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def _unescaped(value: Any) -> Any:
    """The value with every string unescaped."""
    # A loop: recursion would end at 1,000 levels.
    root = [value]
    todo: list[tuple[Any, Any]] = [(root, 0)]
    while todo:
        container, key = todo.pop()
        item = container[key]
        if isinstance(item, str):
            container[key] = _unescape(item)
        elif isinstance(item, list):
            todo.extend((item, index) for index in range(len(item)))
        elif isinstance(item, dict):
            container[key] = renamed = {_unescape(name): held for name, held in item.items()}
            todo.extend((renamed, name) for name in renamed)
    return root[0]


# --- canonical JSON -------------------------------------------------------------------------


def canonical_json(value: Any) -> bytes:
    """The bytes that equal values share: keys sorted, no spaces, UTF-8 with lone surrogates kept.

    Digests are made of these bytes and live as long as the rows, so they must not change from one
    release to the next.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return _write(value, _joined, sort_keys=True).encode("utf-8", "surrogatepass")


def _joined(text: str) -> str:
    """The text with each surrogate pair, which was split over two chunks, as the character that it
    spells."""
    return _SPLIT_PAIR.sub(_character, text)


def _character(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le")


# --- the slow writer ------------------------------------------------------------------------


class _Written(str):
    """JSON source already, among values still to be written."""

    __slots__ = ()


def _write(value: Any, convert: Callable[[str], str], *, sort_keys: bool = False) -> str:
    """The JSON source of any value at any depth, with every string passed through `convert`."""
    pieces: list[str] = []
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, _Written):
            pieces.append(item)
        elif isinstance(item, str):
            pieces.append(json.dumps(convert(item), ensure_ascii=False))
        elif isinstance(item, Mapping):
            names = sorted(item, key=str) if sort_keys else list(item)
            members = [(_Written(_name(name, convert)), item[name]) for name in names]
            todo.extend(_backwards("{", "}", members))
        elif isinstance(item, (list, tuple)):
            todo.extend(_backwards("[", "]", [(_Written(), held) for held in item]))
        elif isinstance(item, float) and not isfinite(item):
            pieces.append("null")
        else:
            pieces.append(json.dumps(item))
    return "".join(pieces)


def _name(name: Any, convert: Callable[[str], str]) -> str:
    return json.dumps(convert(str(name)), ensure_ascii=False) + ":"


def _backwards(opening: str, closing: str, members: list[tuple[_Written, Any]]) -> Iterator[Any]:
    """A container's pieces from last to first, to be pushed on a stack."""
    yield _Written(closing)
    for position, (name, held) in reversed(list(enumerate(members))):
        yield held
        yield name
        if position:
            yield _Written(",")
    yield _Written(opening)
