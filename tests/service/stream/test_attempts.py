"""One attempt: what is read of an answer, and that closing leaves nothing open."""

import asyncio

import pytest

from service.agents.protocol import Target
from service.stream.moments import Asking, Attempt, Watcher
from statemachine import (
    ChunkReceived,
    Event,
    RepeatedChunks,
    SessionRequest,
    UpstreamFailed,
    UpstreamFinished,
)
from tests.service.stream.conftest import (
    ANSWER,
    CALL,
    DONE,
    HANG,
    OPENED,
    ROLE,
    WHOLE,
    FakeAgent,
    Step,
    ask,
    attempts_of,
    busy,
    event,
    read_all,
    received,
)
from tests.statemachine.conftest import finish_chunk, text_chunk

# --- reading --------------------------------------------------------------------------------------


async def test_an_agent_that_answers_is_asked_once(announced: list[Event]) -> None:
    """Every event comes in order; the first attempt is no event, since a session begins with
    it."""
    agent = FakeAgent("a", ANSWER, retries=5)
    assert WHOLE == await ask(agent, announced=announced)
    assert 1 == agent.asked
    assert [] == announced


async def test_each_attempt_is_announced_as_it_begins(no_back_off: None) -> None:
    """With whom it asks and the `traceparent` that it is sent; before its outcome."""

    class Begins(Watcher):
        def __init__(self) -> None:
            self.told: list[Asking | Attempt] = []

        def asking(self, request: SessionRequest, asking: Asking) -> None:
            self.told.append(asking)

        def tried(self, request: SessionRequest, attempt: Attempt) -> None:
            self.told.append(attempt)

    watcher, first = Begins(), FakeAgent("a", [busy()], [busy()], retries=1)
    await read_all(attempts_of(first, FakeAgent("b", ANSWER), watcher=watcher))
    target = Target("fake", CALL.request.model)
    expected = [Asking(name, number, target, CALL.traceparent) for name, number in ASKED]
    assert expected == watcher.told[::2]
    assert ASKED == [
        (tried.agent, tried.number) for tried in watcher.told[1::2] if isinstance(tried, Attempt)
    ]


ASKED = [("a", 1), ("a", 2), ("b", 1)]


async def test_each_read_gives_the_events_of_one_socket_read() -> None:
    """Socket reads that complete no event are passed over."""
    agent = FakeAgent(
        "a",
        [
            event(text_chunk("a"), text_chunk("b")),
            b": comment\n\n",
            b"data:",
            event(text_chunk("c"))[5:],
            event(finish_chunk()) + DONE,
        ],
    )
    upstream = attempts_of(agent)
    assert await upstream.read() == received(text_chunk("a"), text_chunk("b"))
    (text,) = await upstream.read()
    assert isinstance(text, ChunkReceived)
    assert isinstance(text.run, RepeatedChunks)  # identical to "b" except for its text
    assert ("c",) == text.run.texts
    assert await upstream.read() == [*received(finish_chunk()), UpstreamFinished()]
    await upstream.close()


async def test_a_body_that_just_ends_is_reported_as_incomplete() -> None:
    """Only the session knows if its finish reasons make that a good end."""
    events = await ask(FakeAgent("a", [event(text_chunk("Hi"), finish_chunk())]))
    assert events[:-1] == received(text_chunk("Hi"), finish_chunk())
    assert isinstance(events[-1], UpstreamFailed)
    assert "upstream_incomplete" == events[-1].failure.code


async def test_done_without_a_token_is_an_answer() -> None:
    """After an empty answer that ended well nobody else is asked."""
    agent, fallback = FakeAgent("a", [event(ROLE), DONE], retries=3), FakeAgent("b", ANSWER)
    assert await ask(agent, fallback) == [*received(ROLE), UpstreamFinished()]
    assert (1, 0) == (agent.asked, fallback.asked)


# --- closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        [HANG],
        [OPENED, HANG],
        [event(ROLE), HANG],
        [event(text_chunk("Hi")), HANG],
        [event(text_chunk("Hi")) + b"data: ", HANG],
    ],
)
async def test_closing_after_a_cancelled_read_leaves_nothing_open(steps: list[Step]) -> None:
    """This holds whatever the read was waiting for, and nobody else is asked."""
    agent = FakeAgent("a", steps, retries=3)
    fallback = FakeAgent("b", ANSWER)
    upstream = attempts_of(agent, fallback)
    reading = asyncio.create_task(read_all(upstream))
    await agent.hangs.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await upstream.close()
    assert 0 == agent.open_now
    assert (1, 0) == (agent.asked, fallback.asked)


async def test_a_cancelled_wait_between_attempts_ends_the_asking() -> None:
    """Neither the agent nor its fallback is asked again."""
    agent, fallback = FakeAgent("a", [busy(5.0)], ANSWER, retries=1), FakeAgent("b", ANSWER)
    upstream = attempts_of(agent, fallback)
    reading = asyncio.create_task(upstream.read())
    while not agent.asked or agent.open_now:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert not reading.done()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await upstream.close()
    assert (1, 0) == (agent.asked, fallback.asked)


async def test_closing_ends_an_answer_that_still_goes_on() -> None:
    """`close` does so at once, and twice is as good as once."""
    agent = FakeAgent("a", [event(text_chunk("Hi")), HANG])
    upstream = attempts_of(agent)
    await upstream.read()
    assert 1 == agent.open_now
    await upstream.close()
    assert 0 == agent.open_now
    await upstream.close()


async def test_closing_what_was_never_read_closes_nothing() -> None:
    """Before the first read nobody was asked."""
    agent = FakeAgent("a", ANSWER)
    await attempts_of(agent).close()
    assert 0 == agent.asked


async def test_a_bug_in_an_agent_is_not_hidden() -> None:
    """An exception that no agent should raise comes out of `read`, and nothing stays open."""
    broken: list[list[Step]] = [[ZeroDivisionError()], [event(ROLE), ZeroDivisionError()]]
    for steps in broken:
        agent, fallback = FakeAgent("a", steps, ANSWER, retries=3), FakeAgent("b", ANSWER)
        upstream = attempts_of(agent, fallback)
        with pytest.raises(ZeroDivisionError):
            await upstream.read()
        await upstream.close()
        assert 0 == agent.open_now
        assert (1, 0) == (agent.asked, fallback.asked)
