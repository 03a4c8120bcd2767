"""Endings that reach a relay from outside or from its client, whatever it waits for."""

import asyncio

import pytest
from freezegun import freeze_time

from service.stream.writers import ClientConnectionLost
from statemachine import (
    ClientGone,
    ClientLeft,
    DrainExpired,
    Event,
    Failure,
    SessionPolicy,
    State,
    StopRequested,
    TimePassed,
    UpstreamFailed,
    UpstreamFinished,
)
from tests.service.stream.conftest import ANSWER, FakeAgent, attempts_of, busy
from tests.service.stream.neighbours import Stage, words

BROKE = Failure("upstream_error", "It broke.")


@pytest.mark.parametrize(
    ("event", "calls"),
    [(StopRequested(), []), (DrainExpired(), ["error draining"]), (ClientLeft(), [])],
)
async def test_outside_events_interrupt_a_silent_upstream(event: Event, calls: list[str]) -> None:
    """An ending from outside doesn't wait for the upstream's next chunk, and closes the
    upstream."""
    stage = Stage().start()
    stage.upstream.say(*words("a"))
    await stage.settle()
    stage.relay.post(event)
    record = await stage.end()
    assert "a" == record.choices[0].message["content"]
    assert stage.upstream.closed
    assert stage.writer.calls[2:] == [*calls, "response"]


@pytest.mark.parametrize("event", [StopRequested(), ClientLeft()])
async def test_an_end_before_the_relay_ran_is_saved_like_any_other(event: Event) -> None:
    """A client may leave in the very moment its relay is made."""
    stage = Stage().start()
    stage.relay.post(event)
    assert (await stage.end()).state is State.CLIENT_GONE


async def test_an_end_from_outside_breaks_a_stalled_write() -> None:
    """The record doesn't wait for the client that holds the write up."""
    stage = Stage().start()
    stage.writer.free.clear()
    stage.upstream.say(*words("a"))
    await stage.settle()
    stage.relay.post(StopRequested())
    await stage.settle()
    assert "a" == stage.saver.records[0].choices[0].message["content"]
    await stage.end()
    assert ["open", "send a", "response"] == stage.writer.calls


async def test_an_end_from_outside_breaks_a_stalled_ping() -> None:
    """The record doesn't wait for it either, though another ping is due meanwhile."""
    policy = SessionPolicy(keep_alive_interval_seconds=0.01)
    stage = Stage(policy).start()
    stage.upstream.say(*words("a"))
    await stage.settle()
    stage.writer.free.clear()
    await asyncio.sleep(0.1)
    assert stage.writer.calls.count("ping") >= 1
    stage.relay.post(StopRequested())
    await stage.settle()
    assert "a" == stage.saver.records[0].choices[0].message["content"]
    await stage.end()


async def test_an_end_while_a_retry_waits_asks_nobody_again() -> None:
    """An ending from outside interrupts the back-off too, and the agent is closed."""
    agent, fallback = FakeAgent("a", [busy(5.0)], ANSWER, retries=1), FakeAgent("b", ANSWER)
    stage = Stage()
    stage.relay._upstream = attempts_of(agent, fallback)
    stage.start()
    while not agent.asked or agent.open_now:
        await asyncio.sleep(0)
    await stage.settle()
    stage.relay.post(StopRequested())
    assert (await stage.end()).state is State.CLIENT_GONE
    assert (1, 0, 0) == (agent.asked, agent.open_now, fallback.asked)


@pytest.mark.parametrize("ending", [UpstreamFinished(), UpstreamFailed(BROKE)])
async def test_the_end_does_not_wait_for_a_ping_that_stalls(ending: Event) -> None:
    """The upstream's own end is saved, and handed to the connection, though the client takes
    nothing."""
    with freeze_time("2026-01-01 12:00:00") as clock:
        stage = Stage(SessionPolicy(keep_alive_interval_seconds=15.0)).start()
        stage.upstream.say(*words("a"))
        await stage.settle()
        stage.writer.free.clear()
        clock.tick(15.1)
        stage.relay.post(TimePassed())
        await stage.settle()
        stage.upstream.say(*words("b"), ending)
        record = await stage.end()
    assert "ab" == record.choices[0].message["content"]
    told = "done" if record.failure is None else "error upstream_error"
    assert ["ping", "send b", told, "response"] == stage.writer.calls[-4:]


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_the_end_does_not_wait_where_two_pings_were_late(is_stopped: bool) -> None:
    """A busy loop may bring the second before the first was begun; one that stalls holds nobody
    up."""
    with freeze_time("2026-01-01 12:00:00") as clock:
        stage = Stage(SessionPolicy(keep_alive_interval_seconds=15.0)).start()
        stage.upstream.say(*words("a"))
        await stage.settle()
        stage.writer.free.clear()
        for _ in range(2):
            clock.tick(15.1)
            stage.relay.post(TimePassed())
        await stage.settle()
        if is_stopped:
            stage.relay.post(StopRequested())
        else:
            stage.upstream.say(UpstreamFinished())
        await stage.end()


async def test_a_client_cut_off_in_the_middle_of_a_write_has_left() -> None:
    """Its connection gives it up, and the write that waited raises."""
    stage = Stage().start()
    stage.writer.free.clear()
    stage.upstream.say(*words("a"))
    await stage.settle()
    stage.writer.abort()
    record = await stage.end()
    assert record.state is State.CLIENT_GONE


async def test_a_client_lost_while_writing_is_detached_under_finish() -> None:
    """Under `finish` a failed write only detaches the client; the answer is kept whole."""
    stage = Stage(SessionPolicy(client_gone=ClientGone.FINISH)).start()
    stage.writer.fails = ClientConnectionLost()
    stage.upstream.say(*words("a"))
    await stage.settle()
    stage.upstream.say(*words("b"), UpstreamFinished())
    record = await stage.end()
    assert record.state is State.COMPLETED
    assert "ab" == record.choices[0].message["content"]
    assert record.client_left_at is not None


async def test_a_ping_that_finds_the_client_gone_ends_the_session() -> None:
    """Under `cancel` a ping that can't be written stops the silent upstream."""
    stage = Stage(SessionPolicy(keep_alive_interval_seconds=0.05))
    stage.writer.fails = ClientConnectionLost()
    record = await stage.start().end()
    assert record.state is State.CLIENT_GONE
    assert stage.upstream.closed


async def test_a_ping_that_comes_with_the_end_does_not_cut_a_slow_client_off() -> None:
    """A ping that waited for its turn until all was carried out has nothing more to interrupt."""
    with freeze_time("2026-01-01 12:00:00") as clock:
        stage = Stage(SessionPolicy(keep_alive_interval_seconds=15.0)).start()
        stage.upstream.say(*words("a"))
        await stage.settle()
        clock.tick(15.1)
        stage.upstream.say(UpstreamFinished())
        stage.relay.post(TimePassed())  # before the relay's task has taken the end in
        await stage.end()
    assert ["ping", "done", "response"] == stage.writer.calls[2:]


async def test_a_client_that_left_is_not_sent_the_ping_that_was_due() -> None:
    """Under `finish` the session goes on, but what waited for its client is dropped."""
    with freeze_time("2026-01-01 12:00:00") as clock:
        policy = SessionPolicy(ClientGone.FINISH, keep_alive_interval_seconds=15.0)
        stage = Stage(policy).start()
        await stage.settle()
        clock.tick(15.1)
        stage.relay.post(TimePassed())
        stage.relay.post(ClientLeft())
        await stage.settle()
        stage.upstream.say(*words("a"), UpstreamFinished())
        assert State.COMPLETED is (await stage.end()).state
    assert ["response"] == stage.writer.calls
