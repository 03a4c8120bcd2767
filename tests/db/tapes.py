"""Answers with a tape, as sessions make them, and what is on a tape."""

import json
from typing import Any

from statemachine import (
    ChunkReceived,
    ChunkRun,
    Failure,
    JsonObject,
    Save,
    SessionPolicy,
    SessionRecord,
    StreamSession,
    UpstreamFailed,
    UpstreamFinished,
)
from statemachine.tape import Cursor, Tape
from tests.db.records import make_request
from tests.statemachine.test_tape import read_all


def record_of(
    *came: ChunkRun, failure: Failure | None = None, parameters: JsonObject | None = None
) -> SessionRecord:
    """The record of an answer of these chunks, which then ended well, or failed."""
    asked = make_request(choices_expected=3, parameters=parameters or {})
    session = StreamSession(asked, SessionPolicy())
    end = UpstreamFinished() if failure is None else UpstreamFailed(failure)
    for event in (*map(ChunkReceived, came), end):
        for effect in session.handle(event, asked.created_at + 1.0):
            if isinstance(effect, Save):
                return effect.record
    raise AssertionError("no end")


def comparable(one: tuple[str, Any]) -> Any:
    """A chunk by its JSON, a repeated one by what it repeats and how it is written."""
    text, what = one
    if isinstance(what, bytes):
        return json.loads(what)
    pattern, line = what
    line = line.replace(pattern.between, b"\t") if pattern.between else line
    return text, line, pattern.chunk("")


def all_on(tape: Tape, position: int = 0) -> list[Any]:
    """The chunks on a tape from a position on, such that those of two tapes can be compared."""
    return [comparable(one) for one in read_all(Cursor(tape, position))]
