"""Makes the journal's lines, and says what is in them. Pure.

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
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import orjson
from attrs import fields
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
    ToolCallEnded,
    ToolCallStarted,
    TurnEnded,
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
        ToolCallEnded,
        ToolCallStarted,
        TurnEnded,
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


def own_request(line: Mapping[str, Any] | None, completion_id: str) -> SessionRequest:
    """The request in a line that this very process has written: quicker than `request_of`, which takes
    nothing for granted. Raises ValueError if the line is none, or another's."""
    if line is None or line.get("id") != completion_id:
        raise ValueError("it isn't the line that it was")
    return SessionRequest(**line["request"])


def events_of(line: Mapping[str, Any]) -> list[Event]:
    """The events of a line."""
    return [_event_of(item) for item in line["events"]]


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
    except orjson.JSONDecodeError:  # half a character, or more levels than orjson reads
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
