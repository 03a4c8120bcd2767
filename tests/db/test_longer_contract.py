"""What every store promises where a completion is brought to an end twice: the longer truth wins."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from attrs import evolve
from structlog.testing import capture_logs

from db.journal.replay import PROCESS_DIED
from db.rows.history import rows_of
from db.store import Replayable, Store
from statemachine import ChunkRun, Failure, ParsedChunk, SessionRecord, SessionRequest
from tests.db.records import assistant, make_partial, make_record, user
from tests.db.tapes import all_on, record_of
from tests.db.test_tapes_contract import BEGIN, END
from tests.db.views import listed, prompt, shown_tree, tree
from tests.statemachine.conftest import text_chunk
from tests.statemachine.test_tape import PATTERNS, run_of

WORDS = ("One", " two", " three", " four")
ADOPTED = Failure("adopted_elsewhere", "Another has it.")


def said(*words: str) -> tuple[ChunkRun, ...]:
    return (BEGIN, run_of(PATTERNS[0], words, "as it is"))


def died(request: SessionRequest, *words: str) -> SessionRecord:
    """A record as it is adopted, or brought back: so many words, and no end."""
    return evolve(record_of(*said(*words), failure=PROCESS_DIED), request=request)


def whole(request: SessionRequest, *words: str) -> SessionRecord:
    return evolve(record_of(*said(*words), END), request=request)


def asked(*messages: dict[str, Any], **fields: Any) -> SessionRequest:
    return make_record(*messages, request=fields or None).request


async def read(store: Store, record: SessionRecord) -> Replayable:
    found = await store.replayable("alice", record.completion_id)
    assert found is not None and found.tape is not None
    return found


async def text(store: Store, record: SessionRecord) -> tuple[str, str | None]:
    """How it ended, and what it says."""
    view = await store.view("alice", record.completion_id)
    assert view is not None
    (answer,) = view.answers
    code = (view.completion.error or {}).get("code", view.completion.state.value)
    return code, answer.content


async def test_a_longer_record_replaces_what_died(store: Store) -> None:
    """Its text, its end, its tape, its counts, its usage, its message; what was on the tape before is
    its beginning."""
    request = asked()
    short, long = died(request, *WORDS[:2]), whole(request, *WORDS)
    await store.save([short])
    before = await read(store, short)
    await store.save([long])
    after = await read(store, long)
    assert ("completed", "One two three four") == await text(store, long)
    assert before.tape is not None and after.tape is not None
    there = all_on(before.tape.tape)
    assert there == all_on(after.tape.tape)[: len(there)]
    assert all_on(long.tape) == all_on(after.tape.tape)  # type: ignore[arg-type]  # it has one
    found = after.view.completion
    expected = rows_of(long)
    assert (long.chunk_count, "stop", None) == (
        found.chunk_count,
        found.finish_reason,
        found.error,
    )
    assert (expected.completion.usage, "estimated") == (found.usage, found.usage_source)
    assert expected.completion.finished_at == found.finished_at
    (answer,) = after.view.answers
    assert (expected.answers[0].digest, "complete") == (answer.digest, answer.state)
    assert {"Hello": None, "One two three four": "Hello"} == await shown_tree(store, long)


async def test_odd_words_are_compared_as_they_came(store: Store) -> None:
    """Half a character, a NUL, line ends of other worlds: an answer of these is replaced like any other."""
    request = asked()
    chunks = [BEGIN, *(odd_chunk(word) for word in ODD_WORDS)]
    short = evolve(record_of(*chunks[:3], failure=PROCESS_DIED), request=request)
    long = evolve(record_of(*chunks, END), request=request)
    await store.save([short])
    await store.save([long])
    assert "completed" == (await text(store, long))[0]


ODD_WORDS = ("\ud800", "\0", "é😀\u2028", "␛\r\n")


def odd_chunk(word: str) -> ChunkRun:
    """As a backend writes it, half characters as escapes."""
    payload = text_chunk(word)
    return ParsedChunk(payload, json.dumps(payload).encode())


async def test_a_record_that_is_no_longer_changes_nothing(store: Store) -> None:
    """Neither a shorter one nor an equal one, also if it fails in another way."""
    request = asked()
    await store.save([died(request, *WORDS[:3])])
    before = await read(store, died(request, *WORDS[:3]))
    others = (
        died(request, *WORDS[:2]),
        died(request, *WORDS[:3]),
        evolve(died(request, *WORDS[:3]), failure=ADOPTED),
    )
    for other in others:
        await store.save([other])
        after = await read(store, other)
        assert before.view == after.view


async def test_as_many_chunks_and_an_end_are_more(store: Store) -> None:
    """An answer whose end alone had not been copied is whole."""
    request = asked()
    short = evolve(record_of(*said(*WORDS), END, failure=PROCESS_DIED), request=request)
    assert "process_died" == (short.failure and short.failure.code)
    await store.save([short])
    await store.save([whole(request, *WORDS)])
    assert ("completed", "One two three four") == await text(store, short)


@pytest.mark.parametrize("first", [make_record, make_partial])
async def test_only_what_died_is_replaced(store: Store, first: Any) -> None:
    """Any other end is known, and stays."""
    record = first(answer="One")
    await store.save([record])
    before = await text(store, record)
    await store.save([whole(record.request, *WORDS)])
    assert before == await text(store, record)


async def test_an_upstream_of_that_very_error_is_no_dead_process(store: Store) -> None:
    """The code is ours only where there is no kind beside it."""
    request = asked()
    failure = Failure("upstream_error", "Odd.", upstream_code="process_died")
    record = evolve(record_of(*said("One"), failure=failure), request=request)
    await store.save([record])
    await store.save([whole(request, *WORDS)])
    assert ("process_died", "One") == await text(store, record)


async def test_a_tape_is_only_extended(store: Store) -> None:
    """A longer one that begins otherwise is logged, and the row stays."""
    request = asked()
    short = died(request, "One", " two")
    await store.save([short])
    before = await read(store, short)
    with capture_logs() as logs:
        await store.save([whole(request, "One", " TWO", " three")])
    assert before.view == (await read(store, short)).view
    assert ["longer record contradicts the stored one"] == [line["event"] for line in logs]


async def test_without_a_tape_the_texts_tell(store: Store) -> None:
    """What is longer begins with the text that is there."""
    request = asked()
    for words, expected in ((("One", " two", " x"), "One two x"), (("Two", "", ""), "One")):
        short = evolve(died(asked(), "One"), tape=None)
        request = short.request
        await store.save([short])
        await store.save([whole(request, *words)])
        assert expected == (await text(store, short))[1]


async def test_the_same_in_whole_chunks_is_the_same(store: Store) -> None:
    """What a chunk says counts, not how its tape keeps it."""
    request = asked()
    parsed = [ParsedChunk(text_chunk(word)) for word in WORDS[:2]]
    short = evolve(record_of(*parsed, failure=PROCESS_DIED), request=request)
    pattern = evolve(PATTERNS[0], payload=text_chunk("x"))
    long = evolve(record_of(run_of(pattern, WORDS, "as it is"), END), request=request)
    await store.save([short])
    await store.save([long])
    assert ("completed", "One two three four") == await text(store, short)


async def test_both_in_one_batch(store: Store) -> None:
    """In either order the longer one is kept."""
    for order in ((0, 1), (1, 0)):
        request = asked()
        records = (died(request, "One"), whole(request, *WORDS))
        await store.save([records[number] for number in order])
        assert ("completed", "One two three four") == await text(store, records[0])


async def test_what_is_deleted_stays_deleted(store: Store) -> None:
    """A longer record brings nothing back."""
    request = asked()
    await store.save([died(request, "One")])
    assert await store.delete("alice", request.completion_id)
    await store.save([whole(request, *WORDS)])
    assert await store.find(request.completion_id) is None
    assert [] == await listed(store)


async def test_what_its_owner_changed_stays(store: Store) -> None:
    """New metadata outlives the longer record, and finds it."""
    request = asked(metadata={"a": "1"})
    short = died(request, "One")
    await store.save([short])
    await store.set_metadata("alice", request.completion_id, {"b": "2"})
    await store.save([whole(request, *WORDS)])
    view = await store.view("alice", request.completion_id)
    assert view is not None and {"b": "2"} == view.completion.metadata
    assert ("completed", "One two three four") == await text(store, short)


async def test_an_answer_that_others_follow_stays_as_they_saw_it(store: Store) -> None:
    """Beside the longer one: the follow-up's prompt is what its client sent."""
    request = asked(user("A"))
    short = died(request, "One", " two")
    follow = make_record(user("A"), assistant("One two"), user("Go on"), answer="B")
    await store.save([short])
    await store.save([follow])
    await store.save([whole(request, *WORDS)])
    assert ["A", "One two", "Go on"] == await prompt(store, follow)
    expected = {
        "A": None,
        "One two": "A",
        "One two three four": "A",
        "Go on": "One two",
        "B": "Go on",
    }
    assert expected == await shown_tree(store, follow)
    assert await store.delete("alice", follow.completion_id)
    assert {"A": None, "One two three four": "A"} == await shown_tree(store, short)


async def test_an_answer_that_had_not_begun_gets_its_message(store: Store) -> None:
    """Of nothing, everything is the longer truth."""
    request = asked()
    nothing = evolve(record_of(failure=PROCESS_DIED), request=request)
    await store.save([nothing])
    await store.save([whole(request, *WORDS)])
    assert ("completed", "One two three four") == await text(store, nothing)


async def test_many_at_once_end_with_the_longest(store: Store) -> None:
    """Whoever saves what when: no deadlock, no error, one row each, the longest."""
    requests = [asked(user(f"{number // 5}")) for number in range(15)]

    def records(count: int) -> Sequence[SessionRecord]:
        return [died(request, *WORDS[:count]) for request in requests]

    calls = [records(1), records(3), records(2), [whole(each, *WORDS) for each in requests]]
    await store.save(records(1))
    async with asyncio.timeout(60):
        await asyncio.gather(*(store.save(call[::step]) for call in calls for step in (1, -1)))
    for record in records(1):
        assert ("completed", "One two three four") == await text(store, record)


async def test_an_answer_whose_words_stay_stays_one_message(store: Store) -> None:
    """Where only its end was missing, what others follow is the answer itself, as before."""
    request = asked(user("A"))
    follow = make_record(user("A"), assistant("One two"), user("Go on"), answer="B")
    await store.save([died(request, "One", " two")])
    await store.save([follow])
    await store.save([whole(request, "One", " two")])
    view = await tree(store, follow)
    assert view is not None
    assert 4 == len(view.nodes.items)
    (answer,) = await store.answer(request.completion_id)
    assert [answer] == [row for row in await store.thread(answer.digest) if row.content != "A"]
