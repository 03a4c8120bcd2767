"""A tape's columns: whatever was on it can be read again from what is stored."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.rows.history import rows_of
from db.rows.tapes import TapeDamaged, columns_of, tape_of
from db.store import CompletionView
from statemachine import (
    ChunkReceived,
    ChunkRun,
    ParsedChunk,
    Save,
    SessionPolicy,
    SessionRecord,
    StreamSession,
    UpstreamFinished,
)
from statemachine.tape import Cursor
from tests.statemachine.conftest import asked, chunk, finish_chunk, made_up, text_chunk
from tests.statemachine.test_tape import PATTERNS, read_all, run_of, runs


def record_of(*came: ChunkRun) -> SessionRecord:
    """The record of an answer of these chunks."""
    session = StreamSession(asked(choices_expected=3), SessionPolicy())
    for event in (*map(ChunkReceived, came), UpstreamFinished()):
        for effect in session.handle(event, 1.0):
            if isinstance(effect, Save):
                return effect.record
    raise AssertionError("no end")


def choices_of(record: SessionRecord) -> Any:
    """The choices as they are read from the rows."""
    rows = rows_of(record)
    return CompletionView(rows.completion, rows.answers, None).choices


@made_up(100)
@given(st.lists(runs, max_size=20))
def test_what_was_stored_is_read_as_it_came(came: list[ChunkRun]) -> None:
    """From the beginning, and from other positions."""
    finish = ParsedChunk(finish_chunk(), json.dumps(finish_chunk()).encode())
    record = record_of(*came, finish)
    assert record.tape is not None
    columns = columns_of(record)
    assert columns is not None
    kept = tape_of(columns.tape.decode(), bytes.fromhex(columns.lengths), choices_of(record)).tape
    assert record.tape.created == kept.created
    assert record.tape.count == kept.count
    for position in range(0, kept.count, 5):
        expected, found = (read_all(Cursor(tape, position)) for tape in (record.tape, kept))
        assert [_comparable(one) for one in expected] == [_comparable(one) for one in found]


def _comparable(one: tuple[str, Any]) -> Any:
    """A chunk by its JSON, a repeated one by what it repeats and how it is written."""
    text, what = one
    if isinstance(what, bytes):
        return json.loads(what)
    pattern, line = what
    line = line.replace(pattern.between, b"\t") if pattern.between else line
    return text, line, pattern.chunk("")


def test_text_costs_half_a_byte_a_chunk() -> None:
    """Sixteen characters are the shortest text that takes more."""
    words = [f"w{number % 7}".ljust(number % 9 + 1) for number in range(10_000)]
    record = record_of(
        ParsedChunk(chunk({"role": "assistant"})),
        *[run_of(PATTERNS[0], (word,), "as it is") for word in words],
        ParsedChunk(finish_chunk()),
    )
    columns = columns_of(record)
    assert columns is not None
    assert 5_000 == len(bytes.fromhex(columns.lengths))
    assert 1_200 > len(columns.tape)


def test_a_text_that_no_message_has_is_kept_with_the_tape() -> None:
    """A content that went on in parts is no text any more."""
    record = record_of(
        ParsedChunk(chunk({"role": "assistant"})),
        run_of(PATTERNS[0], ("first", " words"), "as it is"),
        ParsedChunk(chunk({"content": [{"type": "text", "text": "part"}]})),
        run_of(PATTERNS[0], ("more",), "as it is"),
        ParsedChunk(finish_chunk()),
    )
    columns = columns_of(record)
    assert columns is not None
    assert ["first words", "more"] == [
        part["text"] for part in json.loads(columns.tape)["parts"] if "text" in part
    ]


@pytest.mark.parametrize(
    ("tape", "lengths"),
    [
        ("{}", ""),
        ("[]", ""),
        ('{"parts":[{"pattern":0,"count":1,"choice":0,"start":0}]}', "1f"),
        (
            '{"patterns":[{"key":"content","chunk":{}}],'
            '"parts":[{"pattern":0,"count":3,"choice":0,"start":0}]}',
            "11",
        ),
        (
            '{"patterns":[{"key":"content","chunk":{}}],'
            '"parts":[{"pattern":0,"count":2,"choice":0,"start":0}]}',
            "ee",
        ),
        (
            '{"patterns":[{"key":"content","chunk":{}}],'
            '"parts":[{"pattern":0,"count":2,"choice":1,"start":0}]}',
            "11",
        ),
    ],
    ids=["nothing", "no object", "no pattern", "few lengths", "little text", "no choice"],
)
def test_columns_that_somebody_edited_are_noticed(tape: str, lengths: str) -> None:
    """Nobody is sent what isn't what was sent before."""
    choices = choices_of(record_of(ParsedChunk(text_chunk("abc"))))
    with pytest.raises(TapeDamaged):
        tape_of(tape, bytes.fromhex(lengths), choices)
