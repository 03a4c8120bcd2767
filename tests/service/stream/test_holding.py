"""What is held back before the first token."""

from itertools import islice, repeat
from typing import Any

import pytest

from service.stream.holding import HELD_AS_THEY_COME, MOST_HELD, MOST_HELD_BYTES, HeldBack
from statemachine import ChunkReceived, Event, ParsedChunk, RepeatedChunks
from statemachine.chunks import begins_answer
from statemachine.folding import weight_of
from tests.service.stream.conftest import ANSWER, DONE, ROLE, FakeAgent, Step, ask, event
from tests.statemachine.conftest import chunk, text_chunk

pytestmark = pytest.mark.usefixtures("no_back_off")


def held(payloads: Any) -> list[Event]:
    held_back = HeldBack()
    for payload in payloads:
        held_back.add([ChunkReceived(payload)])
    return held_back.events


def test_few_are_held_as_they_come() -> None:
    """Nothing is lost or reordered where there is no need."""
    payloads = [ROLE, chunk({}), chunk({}), {}] * 20
    assert [ChunkReceived(payload) for payload in payloads] == held(payloads)


@pytest.mark.parametrize("payload", [chunk({}), chunk({"content": ""}), {}, {"choices": []}])
def test_endless_repeats_take_no_memory(payload: dict[str, Any]) -> None:
    """Ten minutes of empty deltas are as good as one; ids and times don't make them new."""
    numbered = (
        {**payload, "id": str(n), "created": n, "obfuscation": "x" * (n % 7)} for n in range(9999)
    )
    assert HELD_AS_THEY_COME == len(held(numbered))


def test_something_new_is_held_behind_many_repeats() -> None:
    """A role that comes after minutes of heartbeats still comes first."""
    events = held([*repeat(chunk({}), 9999), ROLE, *repeat(chunk({}), 9999)])
    assert HELD_AS_THEY_COME + 2 == len(events)
    assert ChunkReceived(ROLE) in events


def test_what_differs_each_time_is_bounded() -> None:
    """By number, and by size, with a source or without."""
    assert MOST_HELD == len(held({"progress": n} for n in range(9999)))
    large = [{"progress": n, "x": "x" * 100_000} for n in range(100)]
    assert sum(map(weight_of, large[:12])) > MOST_HELD_BYTES
    assert 11 == len(held(large))
    held_back = HeldBack()
    held_back.add([ChunkReceived(ParsedChunk({"n": n}, b"x" * 100_000)) for n in range(100)])
    assert 11 == len(held_back.events)


async def test_keep_alive_deltas_dont_end_an_attempt() -> None:
    """A model that sends empty chunks for long before its first word answers all the same."""
    empty = event(chunk({"content": ""}))
    many: list[Step] = [empty * 50 for _ in islice(repeat(None), 100)]
    agent = FakeAgent("a", [event(ROLE), *many, *ANSWER])
    events = await ask(agent)
    assert len(events) < 2 * HELD_AS_THEY_COME
    (said,) = [one for one in events if isinstance(one, ChunkReceived) and begins_answer(one.run)][
        :-1
    ]
    assert isinstance(said.run, RepeatedChunks)  # identical to an empty one but for its text
    assert ("Hi",) == said.run.texts
    assert 1 == agent.asked


@pytest.mark.parametrize("body", [DONE, b": ping\n\n" + DONE, event({}) + DONE])
async def test_done_alone_is_tried_again(body: bytes) -> None:
    """An upstream that said nothing at all may say something the next time."""
    agent, fallback = FakeAgent("a", [body], [body], retries=1), FakeAgent("b", ANSWER)
    events = await ask(agent, fallback)
    assert (2, 1) == (agent.asked, fallback.asked)
    assert ChunkReceived(text_chunk("Hi")) == events[0]
