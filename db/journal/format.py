"""Makes the journal's lines, and reads them back, also from a damaged file. Pure.

`grep`, `cut` and `jq` read them too; `docs/journal.md` describes them for people with a broken disk.

    4c2b1f09 132 {"id": "chatcmpl-…", "n": 3, "at": 1767264752.5, "events": [{"chunk": {…}}]}
    └ CRC-32 of the JSON, 8 hex digits   └ its length in bytes, decimal

`n` counts a completion's lines from 0, so that a missing one is noticed. The kinds of line:

- `request`, `policy`, `version`: a session began (n = 0);
- `events`: what happened to it, in order, at second `at`; written before any of it is shown;
- `events` with a `pattern`, or that are `like` one: see `db.journal.repeats`;
- `saved`: these completions are committed, their lines are no longer needed.

Lengths and checksums make damage local: a torn last line is cut off, a flipped byte costs the
line it is in.
"""

import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, TypeVar

import orjson
from attrs import fields, frozen
from cattrs import Converter

from statemachine import (
    AttemptStarted,
    ChunkReceived,
    ClientLeft,
    ClientReturned,
    DeadlineExpired,
    DrainExpired,
    Event,
    JsonObject,
    RepeatedChunks,
    SessionPolicy,
    SessionRequest,
    StopRequested,
    UpstreamFailed,
    UpstreamFinished,
    WaitExpired,
)
from statemachine.chunks import NEW_LINE

JOURNALED: Mapping[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        AttemptStarted,
        ClientLeft,
        ClientReturned,
        DeadlineExpired,
        DrainExpired,
        StopRequested,
        UpstreamFailed,
        UpstreamFinished,
        WaitExpired,
    )
}
"""The events that are written by name. All chunks share a shorter form; `TimePassed`, which changes
no answer, is not written."""

VERSION = 2
"""From 2 on, lines tell what every chunk was to the byte (`db.journal.repeats`); from 1, only what it
said."""

_T = TypeVar("_T")

_HEADER_LONGEST = 8 + 1 + 10 + 1
_HEADER = re.compile(rb"[0-9a-f]{8} [0-9]{1,10}\Z")
_SAVED = b' {"saved":['
_ID = b'{"id":"'
_FEW = 8
"""So many completions are looked for one by one, faster than line by line for all of them."""


def _fields_of(kind: type) -> Callable[[Any], dict[str, Any]]:
    """A shallow `attrs.asdict` for instances of this class, at a third of its cost."""
    names = [field.name for field in fields(kind)]
    values = attrgetter(*names)
    return lambda one: dict(zip(names, values(one), strict=True))


_request_fields, _policy_fields = _fields_of(SessionRequest), _fields_of(SessionPolicy)

converter = Converter()
# Lists stay lists, as a session has them; cattrs 26.2 would make tuples of them.
converter.register_structure_hook_func(
    lambda kind: kind in (Sequence[Any], Sequence[JsonObject]), lambda value, _: list(value)
)


@frozen
class Damage:
    """A stretch of a file that is no line. `is_tail`: no whole line follows it."""

    offset: int
    length: int
    is_tail: bool


def begin_line(request: SessionRequest, policy: SessionPolicy) -> bytes:
    """The line that begins a session."""
    return _line(
        {
            "id": request.completion_id,
            "n": 0,
            "at": request.created_at,
            # Not cattrs, which would copy every message: ten times the cost of the rest.
            "request": _request_fields(request),
            "policy": _policy_fields(policy),
            "version": VERSION,
        }
    )


def events_record(completion_id: str, number: int, events: Sequence[Event], now: float) -> bytes:
    """The line for what happened at `now`.

    Put together by hand, once for each read from an upstream: a chunk's JSON goes in as it came.
    """
    return _record(dump_json(completion_id), number, b",".join(map(_event, events)), now)


def saved_line(completion_ids: Iterable[str]) -> bytes:
    """The line by which recovery leaves these alone: they are committed."""
    return _line({"saved": list(completion_ids)})


def request_of(line: Mapping[str, Any]) -> tuple[SessionRequest, SessionPolicy]:
    """The session that a `request` line begins. Raises what cattrs raises for one that isn't ours."""
    return (
        converter.structure(line["request"], SessionRequest),
        converter.structure(line["policy"], SessionPolicy),
    )


def own_request(source: bytes, completion_id: str) -> SessionRequest:
    """The request in a line that this very process has written. Raises ValueError if it isn't whole, or
    another's."""
    read = _read_line(source, 0)
    if read is None or read[0].get("id") != completion_id:
        raise ValueError("it isn't the line that it was")
    return SessionRequest(**read[0]["request"])


def events_of(line: Mapping[str, Any]) -> list[Event]:
    """The events of a line."""
    return [_event_of(item) for item in line["events"]]


def read_lines(
    data: bytes, only: Collection[str] | None = None
) -> Iterator[dict[str, Any] | Damage]:
    """Every line of a segment, in order, with the damage between them.

    Args:
        only: leave out the lines of other completions, unread: of many that ran at once each is a
            small part. Where they are few, damage is passed over.
    """
    names = None if only is None else frozenset(dump_json(name)[1:-1] for name in only)
    if names is not None and len(names) <= _FEW:
        yield from _lines_of(data, names)
        return
    yield from _walk(data, _read_line, names)


def read_sizes(data: bytes) -> Iterator[tuple[str | None, int] | Damage]:
    """The completion and the bytes of every line, in order, with the damage between them; "" for a
    `saved` line, None for one that is none of ours. Checks each line, and reads none."""
    return _walk(data, _read_size)


def _walk(
    data: bytes,
    read: Callable[[bytes, int], tuple[_T, int] | None],
    names: Collection[bytes] | None = None,
) -> Iterator[_T | Damage]:
    """What `read` makes of every line, but for those of other completions than these, and the damage
    between them."""
    position, damaged_from = 0, None
    while position < len(data):
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


def dump_json(value: Any) -> bytes:
    """The compact JSON source of a value, on one line and in UTF-8."""
    try:
        return orjson.dumps(value)
    except TypeError:  # lone surrogates, integers beyond 64 bits, more than 254 levels
        return json.dumps(value, separators=(",", ":")).encode("ascii")


def load_json(source: bytes) -> Any:
    """The value of such a source. Raises ValueError."""
    try:
        return orjson.loads(source)
    except orjson.JSONDecodeError:  # what orjson refuses to write it refuses to read
        return json.loads(source)


def _record(name: bytes, number: int, events: bytes, now: float) -> bytes:
    fields = (name, number, orjson.dumps(now), events)
    return line_of(b'{"id":%b,"n":%d,"at":%b,"events":[%b]}' % fields)


def _line(value: Mapping[str, Any]) -> bytes:
    return line_of(dump_json(value))


def line_of(source: bytes) -> bytes:
    """The line with this JSON."""
    return b"%08x %d %b\n" % (zlib.crc32(source), len(source), source)


def _event(event: Event) -> bytes:
    if isinstance(event, ChunkReceived):
        run = event.run
        if isinstance(run, RepeatedChunks):
            return _chunks(run.pattern.before, run.literals, run.pattern.after)
        return b'{"chunk":%b}' % (run.source or dump_json(run.payload))
    return dump_json({"event": type(event).__name__, **converter.unstructure(event)})


def _chunks(before: bytes, literals: bytes, after: bytes) -> bytes:
    """An event for each line, with the same around it."""
    if NEW_LINE in literals:
        literals = literals.replace(b"\n", after + b'},{"chunk":' + before)
    return b'{"chunk":%b%b%b}' % (before, literals, after)


def _event_of(item: Mapping[str, Any]) -> Event:
    if "chunk" in item:
        return ChunkReceived(item["chunk"])
    fields = {key: value for key, value in item.items() if key != "event"}
    return converter.structure(fields, JOURNALED[item["event"]])


def _lines_of(data: bytes, names: Collection[bytes]) -> Iterator[dict[str, Any]]:
    """The whole lines of a few completions, in order."""
    for found in sorted(chain.from_iterable(_mentions(data, name) for name in names)):
        header = _HEADER.search(data, max(0, found + 1 - _HEADER_LONGEST), found)
        read = _read_line(data, header.start()) if header else None
        if read is not None:
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
    if not data.startswith(_ID, source_start):
        return b""
    start = source_start + len(_ID)
    return data[start : data.find(b'"', start, end)]


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


def _read_size(data: bytes, start: int) -> tuple[tuple[str | None, int], int] | None:
    found = _source_at(data, start)
    if found is None:
        return None
    checksum, source_start, end = found
    if end > len(data) or zlib.crc32(memoryview(data)[source_start:end]) != checksum:
        return None
    name = _name_in(data, source_start, end)
    after = end + data.startswith(b"\n", end)
    known: str | None = "" if data.startswith(_SAVED, source_start - 1) else None
    if name:
        known = str(load_json(b'"%b"' % name))
    return (known, after - start), after


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
