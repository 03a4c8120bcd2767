"""What every store promises those who read answers as they were sent, from any position."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from db.memory.store import MemoryStore
from db.rows.tapes import TapeColumns
from db.store import Replayable, Store
from statemachine import ChunkPattern, ChunkRun, Failure, ParsedChunk, RepeatedChunks, SessionRecord
from tests.db.records import make_record
from tests.db.tapes import all_on, record_of
from tests.postgres import execute
from tests.statemachine.conftest import chunk, finish_chunk, text_chunk
from tests.statemachine.test_tape import PATTERNS, run_of

NASTY = "NUL \0, lone \ud800 and \udc00, the escape ␛0000, ␀ and \ufffd"
BEGIN, END = ParsedChunk(chunk({"role": "assistant"})), ParsedChunk(finish_chunk())
FIRST, REASONS, SECOND, PADDED, THIRD = PATTERNS
VENDORS = ChunkPattern(chunk({"choice": ""}), "choice", b"{", b"}")
PARTS = ParsedChunk(chunk({"content": [{"type": "text", "text": "part"}]}))
USAGE = {"id": "u", "choices": [], "usage": {"completion_tokens": 7}, "provider": NASTY}
HALVES = ("\ud83d", "\ude00", "\ud800", "\udc00 and \0")
ANSWERS: dict[str, tuple[ChunkRun, ...]] = {
    "words": (BEGIN, run_of(FIRST, ("One", " two", ""), "as it is"), END),
    "reasons first": (
        run_of(REASONS, ("Hm", "."), "as it is"),
        run_of(FIRST, ("So",), "as it is"),
        END,
    ),
    "three choices": (
        *[run_of(each, ("a", "b" * 20), "as it is") for each in (FIRST, SECOND, THIRD) * 3],
        *[ParsedChunk(chunk({}, "stop", index)) for index in range(3)],
    ),
    "padded": (BEGIN, run_of(PADDED, ("a", "b\n"), "in ASCII"), END),
    "in ASCII": (run_of(FIRST, ("é", "漢", "x"), "in ASCII"), END),
    "oddly written": (run_of(FIRST, ("<a/>", "é", "<"), "oddly"), run_of(FIRST, ("x",), "oddly")),
    "half characters": (BEGIN, run_of(FIRST, HALVES, "in ASCII"), END),
    "half characters as NUL": (run_of(FIRST, ("\0", "\0\0"), "as it is"), END),
    "a bad chunk": (
        ParsedChunk(text_chunk(NASTY), json.dumps(text_chunk(NASTY)).encode()),
        ParsedChunk(chunk({"content": NASTY}, odd={NASTY: [NASTY]})),
        END,
    ),
    "bad padding": (
        RepeatedChunks(PADDED, ("a",), b'"a"' + PADDED.between + rb'"\ud800\u0000\u241b"'),
        END,
    ),
    "a bad pattern": (
        RepeatedChunks(
            ChunkPattern({**text_chunk(""), NASTY: NASTY}, "content", b"{", b"}"),
            ("a", "b"),
            b'"a"\n"b"',
        ),
    ),
    "parts": (run_of(FIRST, ("text",), "as it is"), PARTS, run_of(FIRST, ("more",), "in ASCII")),
    "a vendor's field": (run_of(VENDORS, ("a", "b"), "as it is"), END),
    "the sign of an escape": (run_of(FIRST, ("␛0000", "␛"), "as it is"), END),
    "quoting": (run_of(FIRST, ("$rows$", "$rows1$", "'; --"), "as it is"), END),
    "numbers": (ParsedChunk(chunk({}), b'{"n":1.50,"o":18446744073709551615,"created":7}'), END),
    "usage": (BEGIN, run_of(FIRST, ("a",), "as it is"), END, ParsedChunk(USAGE)),
    "nothing said": (run_of(FIRST, ("", ""), "as it is"), END),
    "nothing": (),
}


async def saved(store: Store, record: SessionRecord) -> Replayable:
    await store.save([record])
    found = await store.replayable("alice", record.completion_id)
    assert found is not None
    assert await store.view("alice", record.completion_id) == found.view
    return found


@pytest.fixture
def set_tape(store: Store, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Edits a completion's columns."""

    def edit(record: SessionRecord, tape: str | None, lengths: str | None) -> None:
        name = record.completion_id
        if not isinstance(store, MemoryStore):
            statement = (
                "UPDATE completions SET tape = %s::json, tape_lengths = decode(%s, 'hex')"
                " WHERE completion_id = %s"
            )
            execute(request.getfixturevalue("database_url"), statement, (tape, lengths, name))
        elif tape is None or lengths is None:
            del store._tapes[name]
        else:
            store._tapes[name] = TapeColumns(tape.encode(), lengths)

    return edit


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_read_as_it_came(store: Store, name: str) -> None:
    """Every chunk with what it said and how it was written, from any position."""
    record = record_of(*ANSWERS[name])
    found = await saved(store, record)
    assert found.tape is not None and record.tape is not None
    assert record.tape.count == found.tape.tape.count
    assert record.tape.created == found.tape.tape.created
    for position in range(record.tape.count + 1):
        expected = all_on(record.tape, position)
        if name == "no number":
            expected[0]["odd"] = None
        assert expected == all_on(found.tape.tape, position)


async def test_answers_that_are_saved_together_keep_their_tapes(store: Store) -> None:
    """Those that have one, among those that have none."""
    records = [record for came in ANSWERS.values() for record in (record_of(*came), make_record())]
    await store.save(records)
    for record in records:
        found = await store.replayable("alice", record.completion_id)
        assert found is not None
        assert (record.tape is None) == (found.tape is None)
        if record.tape is not None and found.tape is not None:
            assert record.tape.count == found.tape.tape.count


async def test_what_is_sent_with_the_usage_is_kept(store: Store) -> None:
    """Its fields in their order; what becomes ours by the time it is sent holds its place alone."""
    found = await saved(store, record_of(*ANSWERS["usage"]))
    assert found.tape is not None and found.tape.usage_frame is not None
    expected = [("id", 0), ("choices", 0), ("usage", 0), ("provider", NASTY)]
    assert expected == [*found.tape.usage_frame.items()]
    other = await saved(store, record_of(*ANSWERS["words"]))
    assert other.tape is not None and other.tape.usage_frame is None


@pytest.mark.parametrize("came", [(), (BEGIN, run_of(FIRST, ("cut o",), "as it is"))])
async def test_a_failures_own_status_is_kept(store: Store, came: tuple[ChunkRun, ...]) -> None:
    """So that whoever reads it later is told the same."""
    failure = Failure("upstream_error", "Slow down.", upstream_code="429")
    own = await saved(store, record_of(*came, failure=failure))
    assert own.tape is not None and own.tape.status is None
    failure = Failure("upstream_error", "Slow down.", upstream_code="429", status=429)
    foreign = await saved(store, record_of(*came, failure=failure))
    assert foreign.tape is not None and 429 == foreign.tape.status


async def test_the_keys_of_a_chunk_keep_their_order(store: Store) -> None:
    """Clients get each chunk as they were sent it."""
    source = (
        b'{"z":1,"choices":[{"index":0,"delta":{"content":"a","a":1}}],"id":"x","b":{"y":1,"x":2}}'
    )
    pattern = ChunkPattern({"z": 1, **text_chunk("")}, "content", b"{", b"}")
    came = ParsedChunk(json.loads(source), source), run_of(pattern, ("a", "b"), "as it is")
    found = await saved(store, record_of(*came))
    assert found.tape is not None
    first, (_, _, second), _ = all_on(found.tape.tape)
    assert source == json.dumps(first, separators=(",", ":")).encode()
    assert ["z", *text_chunk("")] == [*second]


async def test_a_long_answer_is_read_as_it_came(store: Store) -> None:
    """With much text, and with much on its tape."""
    words = [f"word {number} ".ljust(number % 200) for number in range(5_000)]
    many = ParsedChunk(
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "x" * 9_000}}]})
    )
    for came in ((BEGIN, run_of(FIRST, words, "as it is"), END), (many,) * 40):
        record = record_of(*came)
        found = await saved(store, record)
        assert found.tape is not None and record.tape is not None
        assert all_on(record.tape) == all_on(found.tape.tape)


async def test_a_tape_that_is_not_whole_is_not_kept(store: Store) -> None:
    """The answer is, as ever."""
    record = record_of(*ANSWERS["words"])
    assert record.tape is not None
    record.tape.first = 1
    found = await saved(store, record)
    assert found.tape is None
    assert record.choices == found.view.choices


async def test_a_row_of_before_has_no_tape(store: Store, set_tape: Any) -> None:
    """Such rows are read as ever, and nothing is damaged."""
    record = record_of(*ANSWERS["words"])
    before = await saved(store, record)
    set_tape(record, None, None)
    with capture_logs() as logs:
        found = await store.replayable("alice", record.completion_id)
    assert found == Replayable(before.view, None)
    assert [] == logs


async def test_a_damaged_tape_is_none_and_told(store: Store, set_tape: Any) -> None:
    """Rather nothing than something else than was sent; the log names the completion."""
    record = record_of(*ANSWERS["words"])
    before = await saved(store, record)
    set_tape(
        record, '{"parts":[{"chunks":[{}]},{"pattern":0,"count":1,"choice":0,"start":0}]}', "1f"
    )
    with capture_logs() as logs:
        found = await store.replayable("alice", record.completion_id)
    assert found == Replayable(before.view, None)
    expected = {
        "event": "tape damaged",
        "completion_id": record.completion_id,
        "log_level": "error",
    }
    assert [expected] == logs


async def test_others_and_odd_names_find_nothing(store: Store) -> None:
    """Another owner's completion isn't there, nor is what never was."""
    record = record_of(*ANSWERS["words"])
    await saved(store, record)
    assert await store.replayable("bob", record.completion_id) is None
    assert await store.replayable("bob", record.completion_id, hidden_since=0.0) is None
    for odd in ("", NASTY, "%s", "'; --", "x" * 10_000):
        assert await store.replayable("alice", odd) is None
        assert await store.replayable(odd, record.completion_id) is None


async def test_a_deleted_answer_is_not_read(store: Store) -> None:
    """Deleting takes the tape along; saving it again brings nothing back."""
    record = record_of(*ANSWERS["words"])
    await saved(store, record)
    assert await store.delete("alice", record.completion_id)
    await store.save([record])
    assert await store.replayable("alice", record.completion_id, hidden_since=0.0) is None


async def test_a_hidden_answer_is_read_for_a_while(store: Store) -> None:
    """By its owner, if it ended at the moment that is named or after it; nothing else shows it."""
    record = record_of(*ANSWERS["words"], parameters={"store": False})
    await store.save([record])
    name, ended = record.completion_id, record.finished_at
    for since, is_there in ((None, False), (ended + 0.001, False), (ended, True), (0.0, True)):
        found = await store.replayable("alice", name, hidden_since=since)
        assert is_there == (found is not None and found.tape is not None)
    assert await store.replayable("bob", name, hidden_since=0.0) is None
    assert await store.view("alice", name) is None
    shown = record_of(*ANSWERS["words"])
    await store.save([shown])
    late = shown.finished_at + 1
    assert await store.replayable("alice", shown.completion_id, hidden_since=late) is not None
