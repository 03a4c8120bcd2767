"""Reads the journal's lines from a segment's bytes, also from a damaged file. Pure.

`db.journal.format` says what a line is. One that isn't whole is passed over: length and checksum tell
it, and where the next one starts is found by its header. Never says what a line means.
"""

import enum
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import merge
from typing import Any, Final, TypeVar

from attrs import frozen

from db.journal.format import dump_json, load_json

_T = TypeVar("_T")

_HEADER_LONGEST = 8 + 1 + 10 + 1
_HEADER = re.compile(rb"[0-9a-f]{8} [0-9]{1,10}\Z")
_SAVED = b' {"saved":['
_ID = b'{"id":"'
_NAME = re.compile(rb'\{"id":"((?:[^"\\]|\\.)*)"')
_PAUSE_BYTES = 32 * 1024
FEW = 8
"""So many completions are looked for one by one, faster than line by line for all of them."""


class Pause(enum.Enum):
    """The type of `PAUSE`."""

    PAUSE = "pause"


PAUSE: Final = Pause.PAUSE
"""Comes between lines, now and then, for whoever has others to think of."""

PutAside = Callable[[bytes, int], int]
"""Reads what it can of a segment from the line on that starts here, and returns where the next line
starts: the same one, if it can't read it."""


@frozen
class Damage:
    """A stretch of a file that is no line. `is_tail`: no whole line follows it."""

    offset: int
    length: int
    is_tail: bool


def name_of(completion_id: str) -> bytes:
    """A completion as its lines name it, without the quotes."""
    return dump_json(completion_id)[1:-1]


def names_of(completion_ids: Iterable[str]) -> frozenset[bytes]:
    """The same of several."""
    return frozenset(map(name_of, completion_ids))


def id_of(name: bytes) -> str:
    """The completion of that name. Raises ValueError."""
    return str(load_json(b'"%b"' % name))


def read_lines(
    data: bytes, only: Collection[str] | None = None
) -> Iterator[dict[str, Any] | Damage]:
    """Every line of a segment, in order, with the damage between them.

    Args:
        only: leave out the lines of other completions, unread: of many that ran at once each is a
            small part. Where they are few, damage is passed over.
    """
    return (item for item in read_in_turns(data, only) if item is not PAUSE)


def read_in_turns(
    data: bytes, only: Collection[str] | None, put_aside: PutAside | None = None
) -> Iterator[dict[str, Any] | Damage | Pause]:
    """The same with pauses, so that no stretch is long, but for the lines that `put_aside` reads."""
    names = None if only is None else names_of(only)
    if names is not None and len(names) <= FEW:
        return _lines_of(data, names, put_aside)
    return _walk(data, _read_line, names, put_aside)


def read_sizes(
    data: bytes, put_aside: PutAside | None = None
) -> Iterator[tuple[bytes | None, int, int] | Damage]:
    """Each line's completion, by its name there, start and end, in order, with the damage between; b""
    for a `saved` line, None for one that is none of ours. Checks each line, and reads none."""
    walk = _walk(data, _read_size, None, put_aside)
    return (item for item in walk if item is not PAUSE)


def _walk(
    data: bytes,
    read: Callable[[bytes, int], tuple[_T, int] | None],
    names: Collection[bytes] | None,
    put_aside: PutAside | None,
) -> Iterator[_T | Damage | Pause]:
    """What `read` makes of every line, but for those of other completions than these, and the damage
    between them."""
    position, damaged_from, paused_at = 0, None, 0
    while position < len(data):
        if position - paused_at >= _PAUSE_BYTES:
            paused_at = position
            yield PAUSE
        start = position
        if put_aside is not None and (position := put_aside(data, start)) > start:
            if damaged_from is not None:
                yield Damage(damaged_from, start - damaged_from, is_tail=False)
                damaged_from = None
            continue
        if names is not None and (after := _after_other(data, position, names)) is not None:
            position = after
            continue
        found = read(data, position)
        if found is None:
            if damaged_from is None:
                damaged_from = position
            position = _next_start(data, position)
            continue
        if damaged_from is not None:
            yield Damage(damaged_from, position - damaged_from, is_tail=False)
            damaged_from = None
        value, position = found
        yield value
    if damaged_from is not None:
        yield Damage(damaged_from, len(data) - damaged_from, is_tail=True)


def read_saved(data: bytes) -> Iterator[str]:
    """The completions that a segment's `saved` lines name, without reading the other lines."""
    position = 0
    while (found := data.find(_SAVED, position)) >= 0:
        position = found + 1
        header = _HEADER.search(data, max(0, found + 1 - _HEADER_LONGEST), found)
        read = _read_line(data, header.start()) if header else None
        if read is not None:
            line, position = read
            yield from line["saved"]


def _lines_of(
    data: bytes, names: Collection[bytes], put_aside: PutAside | None
) -> Iterator[dict[str, Any] | Pause]:
    """The whole lines of a few completions, in order."""
    position = 0
    for found in merge(*(_mentions(data, name) for name in names)):
        header = _HEADER.search(data, max(0, found + 1 - _HEADER_LONGEST), found)
        if header is None or header.start() < position:
            continue
        start = header.start()
        if put_aside is not None and (position := put_aside(data, start)) > start:
            yield PAUSE
        elif (read := _read_line(data, start)) is not None:
            yield read[0]


def _mentions(data: bytes, name: bytes) -> Iterator[int]:
    """Where a line of this completion may be; a text may look like one."""
    mark, position = b' %b%b"' % (_ID, name), 0
    while (found := data.find(mark, position)) >= 0:
        yield found
        position = found + len(mark)


def _after_other(data: bytes, start: int, names: Collection[bytes]) -> int | None:
    """Where the line that starts here ends, by its looks, if it is of none of these completions."""
    found = _source_at(data, start)
    if found is None:
        return None
    _, source_start, end = found
    name = _name_in(data, source_start, end)
    if not name or name in names or data[end : end + 1] != b"\n":
        return None
    return end + 1


def _name_in(data: bytes, source_start: int, end: int) -> bytes:
    """The id at the beginning of a line's JSON, as it is written there; b"" if there is none."""
    found = _NAME.match(data, source_start, end)
    return b"" if found is None else found[1]


def _source_at(data: bytes, start: int) -> tuple[int, int, int] | None:
    """The checksum that the line that starts here has written before it, and where its JSON begins
    and ends."""
    header = data[start : start + _HEADER_LONGEST].split(b" ", 2)
    if len(header) < 3 or len(header[0]) != 8 or not header[1].isdigit():
        return None
    try:
        checksum = int(header[0], 16)
    except ValueError:
        return None
    source_start = start + len(header[0]) + len(header[1]) + 2
    return checksum, source_start, source_start + int(header[1])


def _read_size(data: bytes, start: int) -> tuple[tuple[bytes | None, int, int], int] | None:
    found = _source_at(data, start)
    if found is None:
        return None
    checksum, source_start, end = found
    if end > len(data) or zlib.crc32(memoryview(data)[source_start:end]) != checksum:
        return None
    name = _name_in(data, source_start, end)
    after = end + data.startswith(b"\n", end)
    known = b"" if data.startswith(_SAVED, source_start - 1) else None
    if name:
        try:
            known = name_of(id_of(name))  # written as it is here, whoever wrote it
        except ValueError:
            known = None
    return (known, start, after), after


def line_in(data: bytes) -> dict[str, Any] | None:
    """The one line that these bytes are; None if they are none."""
    found = _read_line(data, 0)
    return found[0] if found is not None and found[1] == len(data) else None


def _read_line(data: bytes, start: int) -> tuple[dict[str, Any], int] | None:
    """The line that starts here, and where the next one should start; None if none does."""
    found = _source_at(data, start)
    if found is None:
        return None
    checksum, source_start, end = found
    source = data[source_start:end]
    if len(source) != end - source_start or zlib.crc32(source) != checksum:
        return None
    try:
        line = load_json(source)
    except ValueError:
        return None
    if not isinstance(line, dict):
        return None
    if "like" in line or "pattern" in line:
        line["source"] = source
    # Length and checksum vouch for the line, even if its newline is damaged or missing.
    return line, end + data.startswith(b"\n", end)


def _next_start(data: bytes, start: int) -> int:
    """Where to look for a line after `start`, where there is none.

    That is at the next header, not after the next newline, which may be what was damaged. A text may
    look like a header; then the checksum won't fit.
    """
    position = start
    while (found := data.find(b' {"', position)) >= 0:
        header = _HEADER.search(data, max(start + 1, found + 1 - _HEADER_LONGEST), found)
        if header is not None:
            return header.start()
        position = found + 1
    return len(data)
