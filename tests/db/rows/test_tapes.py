"""A tape's columns: whatever was on it can be read again from what is stored."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.rows.history import rows_of
from db.rows.tapes import TapeDamaged, columns_of, tape_of
from db.store import CompletionView
from statemachine import ChunkRun, ParsedChunk, SessionRecord
from statemachine.tape import Cursor
from tests.db.tapes import all_on, record_of
from tests.statemachine.conftest import chunk, finish_chunk, made_up, text_chunk
from tests.statemachine.test_tape import PATTERNS, read_all, run_of, runs


def choices_of(record: SessionRecord) -> Any:
    """The choices as they are read from the rows."""
    rows = rows_of(record)
    return CompletionView(rows.completion, rows.answers, None).choices


@made_up(30)
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
        assert all_on(record.tape, position) == all_on(kept, position)


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


PATTERN = '{"key":"content","chunk":{"choices":[{"delta":{"content":""}}]}}'
PADDED = PATTERN[:-1] + ',"padded":true}'


def stretched(stretch: str, pattern: str = PATTERN) -> str:
    return f'{{"patterns":[{pattern}],"parts":[{{"pattern":0,{stretch}}}]}}'


@pytest.mark.parametrize(
    ("tape", "lengths"),
    [
        ("{}", ""),
        ("[]", ""),
        ("[" * 2_000 + "]" * 2_000, ""),
        ('{"parts":[{"chunks":[{},5]}]}', ""),
        ('{"parts":[],"usage":[]}', ""),
        ('{"parts":[],"status":"503"}', ""),
        ('{"parts":[{"pattern":0,"count":1,"choice":0,"start":0}]}', "1f"),
        (stretched('"count":1,"choice":0,"start":0', '{"key":"content","chunk":{}}'), "1f"),
        (stretched('"count":3,"choice":0,"start":0'), "11"),
        (stretched('"count":2,"choice":0,"start":0'), "ee"),
        (stretched('"count":2,"choice":0,"start":-1'), "11"),
        (stretched('"count":2,"choice":1,"start":0'), "11"),
        (stretched('"count":2,"choice":0,"start":0', PADDED), "11"),
        (stretched('"count":2,"choice":0,"start":0,"paddings":["a"]', PADDED), "11"),
        (stretched('"count":2,"choice":0,"start":0,"paddings":["a","b"]'), "11"),
    ],
    ids=[
        "nothing",
        "no object",
        "too deep",
        "no chunk",
        "odd usage",
        "odd status",
        "no pattern",
        "odd pattern",
        "few lengths",
        "little text",
        "before the text",
        "no choice",
        "no paddings",
        "few paddings",
        "needless paddings",
    ],
)
def test_columns_that_somebody_edited_are_noticed(tape: str, lengths: str) -> None:
    """Nobody is sent what isn't what was sent before."""
    choices = choices_of(record_of(ParsedChunk(text_chunk("abc"))))
    with pytest.raises(TapeDamaged):
        tape_of(tape, bytes.fromhex(lengths), choices)


@pytest.mark.parametrize(("stretch", "pattern"), [("", PATTERN), (',"paddings":["a","b"]', PADDED)])
def test_columns_that_nobody_edited_are_taken(stretch: str, pattern: str) -> None:
    """What the damaged ones above are made of is sound."""
    choices = choices_of(record_of(ParsedChunk(text_chunk("abc"))))
    tape = stretched('"count":2,"choice":0,"start":0' + stretch, pattern)
    kept = tape_of(tape, bytes.fromhex("11"), choices)
    assert ["a", "b"] == [text for text, _ in read_all(Cursor(kept.tape))]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_null(odd: float) -> None:
    """The rest of the tape is as it came, texts that only look like such numbers too."""
    record = record_of(
        ParsedChunk(text_chunk("NaN \ud800"), b'{"NaN": "Infinity"}'),
        ParsedChunk(chunk({"content": "a"}, odd=odd)),
    )
    columns = columns_of(record)
    assert columns is not None
    first, second = json.loads(columns.tape, parse_constant=pytest.fail)["parts"][0]["chunks"]
    assert ({"NaN": "Infinity"}, None) == (first, second["odd"])


def test_a_tape_that_only_speaks_of_such_numbers_stays_as_it_is() -> None:
    """To the byte."""
    columns = columns_of(record_of(ParsedChunk(text_chunk("NaN"), b'{ "a":  "NaN" }')))
    assert columns is not None
    assert b'{"parts":[{"chunks":[{ "a":  "NaN" }]}]}' == columns.tape
