"""Chunks that a relay is handed while its task waits for the upstream."""

from collections.abc import Sequence

import pytest
from freezegun import freeze_time

from statemachine import (
    ChunkReceived,
    ChunkRun,
    ClientLeft,
    DrainExpired,
    Event,
    SessionPolicy,
    State,
    StopRequested,
    UpstreamFinished,
)
from tests.service.stream.neighbours import SlowJournal, Stage, words
from tests.statemachine.conftest import finish_chunk, text_after, text_chunk


async def test_chunks_past_the_task_are_sent_at_once_and_kept() -> None:
    """Repeats handed over while the task waits are sent in their place, and are in the record."""
    stage = Stage().start()
    stage.upstream.say(*words("a"))
    await stage.settle()
    assert not stage.upstream.sink.is_clear()
    stage.writer.takes_at_once = True
    assert stage.upstream.sink.is_clear()
    stage.upstream.sink.take(text_after(text_chunk("a"), "b", "c"))
    assert "send at once b|c" == stage.writer.calls[-1]
    stage.upstream.say(ChunkReceived(finish_chunk()), UpstreamFinished())
    record = await stage.end()
    assert "abc" == record.choices[0].message["content"]
    assert 4 == record.chunk_count


@pytest.mark.parametrize("event", [ClientLeft(), StopRequested(), DrainExpired()])
async def test_nothing_comes_past_the_task_after_the_end(event: Event) -> None:
    """Once the session has ended, the relay is no longer clear."""
    stage = Stage().start()
    stage.upstream.say(*words("a"))
    await stage.settle()
    stage.writer.takes_at_once = True
    stage.relay.post(event)
    assert not stage.upstream.sink.is_clear()
    record = await stage.end()
    assert "a" == record.choices[0].message["content"]


async def test_nothing_comes_past_the_task_while_a_write_waits() -> None:
    """A ping that is being written would be cut in two, however much room the client has."""
    with freeze_time("2026-01-01 12:00:00") as clock:
        stage = Stage(SessionPolicy(keep_alive_interval_seconds=15.0)).start()
        stage.upstream.say(*words("a"))
        await stage.settle()
        stage.writer.takes_at_once = True
        assert stage.upstream.sink.is_clear()
        stage.writer.free.clear()
        clock.tick(15.1)
        await stage.settle()
        assert "ping" == stage.writer.calls[-1]
        assert not stage.upstream.sink.is_clear()
        stage.writer.free.set()
        await stage.settle()
        assert stage.upstream.sink.is_clear()
        stage.upstream.say(UpstreamFinished())
        await stage.end()


async def test_a_first_token_past_the_task_starts_the_idle_deadline() -> None:
    """Where the chunks before it were empty, the model's silence after it is noticed all the
    same."""
    with freeze_time("2026-01-01 12:00:00") as clock:
        stage = Stage(SessionPolicy(idle_seconds=5.0, keep_alive_interval_seconds=None)).start()
        stage.upstream.say(*words(""))
        await stage.settle()
        stage.writer.takes_at_once = True
        stage.upstream.sink.take(text_after(text_chunk(""), "b"))
        clock.tick(5.1)
        await stage.settle()
    record = await stage.end()
    assert record.failure is not None
    assert "idle_timeout" == record.failure.code


async def test_a_fault_of_our_own_past_the_task_keeps_the_text() -> None:
    """If sending at once breaks, the session ends as failed, with what it had."""
    stage = Stage().start()
    stage.upstream.say(*words("a"))
    await stage.settle()
    stage.writer.takes_at_once = True

    def broken(runs: Sequence[ChunkRun]) -> None:
        raise ValueError("broken")

    stage.relay._client.send_now = broken
    stage.upstream.sink.take(text_after(text_chunk("a"), "b"))
    record = await stage.end()
    assert record.state is State.FAILED
    assert record.failure is not None
    assert "internal_error" == record.failure.code
    assert "ab" == record.choices[0].message["content"]


async def listening(policy: SessionPolicy | None = None) -> tuple[Stage, SlowJournal]:
    """An answer whose first word was shown, and whose journal takes its time from now on."""
    journal = SlowJournal()
    journal.is_safe.set()
    stage = Stage(policy, journal=journal).start()
    stage.upstream.say(*words("a"))
    await stage.settle()
    stage.writer.takes_at_once = True
    journal.is_safe.clear()
    return stage, journal


async def test_a_chunk_is_shown_once_it_is_safe() -> None:
    """By whoever says so, and nothing comes past it meanwhile."""
    stage, journal = await listening()
    stage.upstream.sink.take(text_after(text_chunk("a"), "b"))
    assert not stage.upstream.sink.is_clear()
    assert "send at once b" not in stage.writer.calls
    journal.note_safe()
    assert "send at once b" == stage.writer.calls[-1]
    assert stage.upstream.sink.is_clear()
    stage.upstream.say(ChunkReceived(finish_chunk()), UpstreamFinished())
    record = await stage.end()
    assert "ab" == record.choices[0].message["content"]


@pytest.mark.parametrize("event", [ClientLeft(), StopRequested(), DrainExpired()])
async def test_what_is_safe_after_the_end_is_not_shown_twice(event: Event) -> None:
    """An end waits for it too, and shows it if there is still anybody to show it to."""
    stage, journal = await listening()
    stage.upstream.sink.take(text_after(text_chunk("a"), "b"))
    stage.relay.post(event)
    await stage.settle()
    journal.note_safe()
    record = await stage.end()
    assert "ab" == record.choices[0].message["content"]
    shown = [call for call in stage.writer.calls if call.endswith(" b")]
    assert len(shown) == (0 if isinstance(event, ClientLeft) else 1)


async def test_an_answer_that_grows_too_large_past_the_task_ends_at_once() -> None:
    """Whether or not its chunks wait for the journal, and whatever the upstream does."""
    policy = SessionPolicy(max_answer_bytes=1000)
    stage, journal = await listening(policy)
    journal.is_safe.set()
    stage.upstream.sink.take(text_after(text_chunk("a"), "b" * 2000))
    record = await stage.end()
    assert record.failure is not None
    assert "answer_too_large" == record.failure.code


async def test_nobody_is_asked_before_the_beginning_is_safe() -> None:
    """Else a repeat, after a crash, would ask a second time. Who leaves meanwhile waits for nothing."""
    journal = SlowJournal()
    stage, other = (Stage(journal=journal).start() for _ in range(2))
    await stage.settle()
    was_asked = stage.upstream.is_reading
    other.relay.post(ClientLeft())
    journal.note_safe()
    await stage.settle()
    assert (False, True) == (was_asked, stage.upstream.is_reading)
    assert "client_gone" == (await other.end()).state.value
    stage.upstream.say(*words("a"), ChunkReceived(finish_chunk()), UpstreamFinished())
    assert "completed" == (await stage.end()).state.value
