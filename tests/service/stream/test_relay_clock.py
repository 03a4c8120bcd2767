"""What a relay does when time has passed: pings, deadlines, and whose silence it is."""

import asyncio

from freezegun import freeze_time

from statemachine import (
    ChunkReceived,
    SessionPolicy,
    State,
    UpstreamFinished,
)
from statemachine.session import TRAILER_SECONDS
from tests.service.stream.neighbours import Stage, words
from tests.statemachine.conftest import finish_chunk


async def test_pings_follow_the_clock() -> None:
    """On a frozen clock, fifteen seconds of silence make one ping; no test has to wait for it."""
    with freeze_time("2026-01-01 12:00:00") as clock:
        stage = Stage(SessionPolicy(keep_alive_interval_seconds=15.0)).start()
        await stage.settle()
        clock.tick(14.9)
        await stage.settle()
        assert [] == stage.writer.calls
        clock.tick(0.2)
        await stage.settle()
        assert ["open", "ping"] == stage.writer.calls
        clock.tick(15.1)
        await stage.settle()
        assert ["open", "ping", "ping"] == stage.writer.calls
        stage.upstream.say(*words("a"), UpstreamFinished())
        assert (await stage.end()).state is State.COMPLETED


async def test_the_first_token_brings_the_timer_forward() -> None:
    """The timer that was set for the next ping fires for the idle deadline, which is due
    earlier."""
    with freeze_time("2026-01-01 12:00:00") as clock:
        policy = SessionPolicy(keep_alive_interval_seconds=300.0, idle_seconds=20.0)
        stage = Stage(policy).start()
        stage.upstream.say(*words("a"))
        await stage.settle()
        clock.tick(20.1)
        record = await stage.end()
    assert record.failure is not None
    assert "idle_timeout" == record.failure.code
    assert ["open", "send a", "error idle_timeout", "response"] == stage.writer.calls


async def test_a_stalled_client_is_not_the_models_silence() -> None:
    """While the client holds the upstream up, the model's idle deadline doesn't run."""
    policy = SessionPolicy(idle_seconds=0.1)
    stage = Stage(policy).start()
    stage.upstream.say(*words("a"))
    await stage.settle()
    stage.writer.free.clear()
    stage.upstream.say(*words("b"))
    await asyncio.sleep(0.4)
    stage.writer.abort()
    record = await stage.end()
    assert record.failure is not None
    assert (State.CLIENT_GONE, "client_left") == (record.state, record.failure.code)


async def test_silence_counts_from_when_the_client_made_room_again() -> None:
    """Not from the last look at the clock while the client still held the upstream up."""
    with freeze_time("2026-01-01 12:00:00") as clock:
        policy = SessionPolicy(keep_alive_interval_seconds=None, idle_seconds=20.0)
        stage = Stage(policy).start()
        stage.upstream.say(*words("a"))
        await stage.settle()
        stage.writer.free.clear()
        stage.upstream.say(*words("b"))
        for seconds in (20.1, 19.0):  # looked at after 20 s, made room after 39 s
            await stage.settle()
            clock.tick(seconds)
        stage.writer.free.set()
        await stage.settle()
        clock.tick(19.0)
        await stage.settle()
        assert not stage.session.state.is_final
        clock.tick(1.1)
        record = await stage.end()
    assert record.failure is not None
    assert "idle_timeout" == record.failure.code


async def test_a_whole_answer_brings_the_timer_forward() -> None:
    """The timer that was set for the next ping fires when usage and `[DONE]` have had their time."""
    with freeze_time("2026-01-01 12:00:00") as clock:
        stage = Stage(SessionPolicy(keep_alive_interval_seconds=300.0)).start()
        stage.upstream.say(*words("a"))
        await stage.settle()
        stage.upstream.say(ChunkReceived(finish_chunk()))
        await stage.settle()
        clock.tick(TRAILER_SECONDS + 0.1)
        record = await stage.end()
    assert record.state is State.COMPLETED
    assert stage.upstream.closed


async def test_pings_do_not_excuse_the_models_silence() -> None:
    """Where pings go out more often than the idle deadline, it still ends a silent upstream."""
    policy = SessionPolicy(keep_alive_interval_seconds=0.05, idle_seconds=0.3)
    stage = Stage(policy).start()
    stage.upstream.say(*words("a"))
    record = await stage.end()
    assert record.failure is not None
    assert "idle_timeout" == record.failure.code
    assert stage.writer.calls.count("ping") >= 3
