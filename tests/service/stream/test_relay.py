"""The relay alone, between hand-written neighbours: order, time, interruptions, its own faults."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web
from freezegun import freeze_time

from db.journal import NoJournal
from service.agents.protocol import Sink
from service.clock import steady_clock
from service.stream.client import ClientSide
from service.stream.moments import Moments, Watcher, Watchers
from service.stream.ports import RelayLimits
from service.stream.relay import Relay
from service.stream.writers import ClientConnectionLost
from statemachine import (
    ChunkReceived,
    ChunkRun,
    ClientGone,
    ClientLeft,
    DrainExpired,
    Event,
    Failure,
    RepeatedChunks,
    SessionPolicy,
    SessionRecord,
    SessionRequest,
    State,
    StopRequested,
    StreamSession,
    TimePassed,
    UpstreamFailed,
    UpstreamFinished,
)
from tests.statemachine.conftest import asked, finish_chunk, text_after, text_chunk

LIMITS = RelayLimits(send_timeout_seconds=60.0, commit_timeout_seconds=0.2)


class FakeUpstream:
    """Hands out what a test puts in; an exception put in is raised."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[list[Event] | Exception] = asyncio.Queue()
        self.closed = False

    def say(self, *events: Event) -> None:
        self.events.put_nowait(list(events))

    async def read(self, sink: Sink | None = None) -> list[Event]:
        assert sink is not None
        self.sink = sink
        item = await self.events.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def close(self) -> None:
        self.closed = True


class FakeWriter:
    """Notes every call. `blocked` stops writes until it is set or the connection aborted."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.takes_at_once = False
        self.free = asyncio.Event()
        self.free.set()
        self.fails: Exception | None = None
        self._aborted = asyncio.Event()

    async def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.fails is not None:
            raise self.fails
        waits = [asyncio.ensure_future(event.wait()) for event in (self.free, self._aborted)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._aborted.is_set():
            raise ClientConnectionLost

    async def open(self) -> None:
        await self._note("open")

    async def send_chunks(self, runs: Sequence[ChunkRun]) -> None:
        await self._note(f"send {texts_of(runs)}")

    def is_clear(self) -> bool:
        return self.takes_at_once

    def send_chunks_now(self, runs: Sequence[ChunkRun]) -> None:
        self.calls.append(f"send at once {texts_of(runs)}")

    async def ping(self) -> None:
        await self._note("ping")

    async def send_error(self, failure: Failure) -> None:
        await self._note(f"error {failure.code}")

    async def send_done(self, record: SessionRecord) -> None:
        await self._note("done")

    async def close(self) -> web.StreamResponse:
        self.calls.append("close")
        return web.Response()

    def abort(self) -> None:
        self.calls.append("abort")
        self._aborted.set()


class FakeSaver:
    """Notes records; commits at once unless told to be slow."""

    def __init__(self) -> None:
        self.records: list[SessionRecord] = []
        self.futures: list[asyncio.Future[None]] = []
        self.is_slow = False

    def save(self, record: SessionRecord) -> "asyncio.Future[None]":
        self.records.append(record)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        if not self.is_slow:
            future.set_result(None)
        return future


class Noted(Watcher):
    """Notes every moment."""

    def __init__(self) -> None:
        self.moments: list[str] = []

    def began(self, request: SessionRequest) -> None:
        self.moments.append("began")

    def reached_first_token(self, request: SessionRequest, ttft_ms: float) -> None:
        assert 0 <= ttft_ms < 60_000
        self.moments.append("first token")

    def ended(self, record: SessionRecord) -> None:
        self.moments.append(f"ended {record.state}")

    def saved(self, completion_id: str) -> None:
        self.moments.append(f"saved {completion_id}")

    def closed(self, request: SessionRequest) -> None:
        self.moments.append("closed")


class Broken(Watcher):
    """A watcher with a mistake in it, which is to harm nobody."""

    def began(self, request: SessionRequest) -> None:
        raise ZeroDivisionError

    reached_first_token = ended = saved = closed = began  # type: ignore[assignment]


class Stage:
    """A relay and its neighbours."""

    def __init__(
        self,
        policy: SessionPolicy | None = None,
        limits: RelayLimits = LIMITS,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        clock = steady_clock()
        self.upstream = FakeUpstream()
        self.writer = FakeWriter()
        self.saver = FakeSaver()
        self.session = StreamSession(asked(created_at=clock()), policy or SessionPolicy())
        self.noted = Noted()
        upstream: Any = self.upstream
        self.relay = Relay(
            self.session,
            NoJournal(),
            ClientSide(self.writer, clock, limits.farewell_seconds),
            upstream,
            self.saver,
            limits,
            clock,
            Moments(self.session.request, Watchers((*watchers, self.noted))),
        )

    def start(self) -> "Stage":
        self.relay.start()
        return self

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def end(self) -> SessionRecord:
        assert self.relay.task is not None
        async with asyncio.timeout(5):
            await self.relay.task
        (record,) = self.saver.records
        return record


def texts_of(runs: Sequence[ChunkRun]) -> str:
    """What chunks say, as far as it is content."""
    texts: list[str] = []
    for run in runs:
        if isinstance(run, RepeatedChunks):
            texts += run.texts
        else:
            texts.append(run.payload["choices"][0]["delta"].get("content", "-"))
    return "|".join(texts)


def words(*texts: str) -> list[Event]:
    return [ChunkReceived(text_chunk(text)) for text in texts]


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

    stage.writer.send_chunks_now = broken  # type: ignore[method-assign]
    stage.upstream.sink.take(text_after(text_chunk("a"), "b"))
    record = await stage.end()
    assert record.state is State.FAILED
    assert record.failure is not None
    assert "internal_error" == record.failure.code
    assert "ab" == record.choices[0].message["content"]


@pytest.mark.parametrize("fate", ["whole", "failed", "left", "cancelled", "not saved"])
async def test_moments_are_announced_once_and_in_order(fate: str) -> None:
    """Whatever becomes of a completion, its beginning is announced first and its closing last, and
    a watcher that raises holds up neither the others nor the answer."""
    stage = Stage(limits=RelayLimits(60.0, 0.05), watchers=[Broken()])
    stage.saver.is_slow = fate == "not saved"
    stage.start().upstream.say(*words("a"), *words("b"))
    await stage.settle()
    assert ["began", "first token"] == stage.noted.moments
    assert stage.relay.task is not None
    match fate:
        case "left":
            stage.relay.post(ClientLeft())
        case "failed":
            stage.upstream.say(UpstreamFailed(Failure("upstream_error", "It broke.")))
        case "cancelled":
            stage.relay.task.cancel()
        case _:
            stage.upstream.say(UpstreamFinished())
    await asyncio.wait((stage.relay.task,))
    state = {"left": "client_gone", "failed": "failed"}.get(fate, "completed")
    ended = {
        "cancelled": [],
        "not saved": ["ended completed"],
    }.get(fate, [f"ended {state}", "saved chatcmpl-1"])
    assert stage.noted.moments[2:] == [*ended, "closed"]


async def test_a_save_that_comes_late_is_announced_late() -> None:
    """A commit after the client got its end is a moment like any other."""
    stage = Stage(limits=RelayLimits(60.0, 0.05))
    stage.saver.is_slow = True
    stage.start().upstream.say(*words("a"), UpstreamFinished())
    await stage.end()
    assert "closed" == stage.noted.moments[-1]
    stage.saver.futures[0].set_result(None)
    await stage.settle()
    assert "saved chatcmpl-1" == stage.noted.moments[-1]


async def test_chunks_of_one_read_leave_together_and_done_comes_last() -> None:
    """The record is saved and the upstream closed."""
    stage = Stage().start()
    stage.upstream.say(*words("a", "b"))
    await stage.settle()
    assert ["open", "send a|b"] == stage.writer.calls
    stage.upstream.say(ChunkReceived(finish_chunk()), UpstreamFinished())
    record = await stage.end()
    assert ["send -", "done", "close"] == stage.writer.calls[2:]
    assert record.state is State.COMPLETED
    assert stage.upstream.closed


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
    assert ["open", "send a", "error idle_timeout", "close"] == stage.writer.calls


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
    assert stage.writer.calls[2:] == [*calls, "close"]


@pytest.mark.parametrize("event", [StopRequested(), ClientLeft()])
async def test_an_end_before_the_relay_ran_is_saved_like_any_other(event: Event) -> None:
    """A client may leave in the very moment its relay is made."""
    stage = Stage().start()
    stage.relay.post(event)
    assert (await stage.end()).state is State.CLIENT_GONE


async def test_an_end_from_outside_breaks_a_stalled_write() -> None:
    """The record doesn't wait for the client that holds the write up."""
    stage = Stage(limits=RelayLimits(60.0, 0.2, farewell_seconds=0.2)).start()
    stage.writer.free.clear()
    stage.upstream.say(*words("a"))
    await stage.settle()
    stage.relay.post(StopRequested())
    await stage.settle()
    assert "a" == stage.saver.records[0].choices[0].message["content"]
    await stage.end()
    assert ["abort", "close"] == stage.writer.calls[-2:]


async def test_a_stalled_write_is_a_client_that_left() -> None:
    """A write that makes no progress for `send_timeout_seconds` is cut off."""
    stage = Stage(limits=RelayLimits(0.1, 0.2)).start()
    stage.writer.free.clear()
    stage.upstream.say(*words("a"))
    record = await stage.end()
    assert "abort" in stage.writer.calls
    assert record.state is State.CLIENT_GONE


async def test_a_stalled_client_is_not_the_models_silence() -> None:
    """While the client holds the upstream up, the model's idle deadline doesn't run."""
    policy = SessionPolicy(idle_seconds=0.1)
    stage = Stage(policy, RelayLimits(0.4, 0.2)).start()
    stage.upstream.say(*words("a"))
    await stage.settle()
    stage.writer.free.clear()
    stage.upstream.say(*words("b"))
    record = await stage.end()
    assert record.failure is not None
    assert (State.CLIENT_GONE, "client_left") == (record.state, record.failure.code)


async def test_pings_do_not_excuse_the_models_silence() -> None:
    """Where pings go out more often than the idle deadline, it still ends a silent upstream."""
    policy = SessionPolicy(keep_alive_interval_seconds=0.05, idle_seconds=0.3)
    stage = Stage(policy).start()
    stage.upstream.say(*words("a"))
    record = await stage.end()
    assert record.failure is not None
    assert "idle_timeout" == record.failure.code
    assert stage.writer.calls.count("ping") >= 3


async def test_a_slow_commit_delays_done_only_so_long() -> None:
    """`[DONE]` waits for the commit at most `commit_timeout_seconds`."""
    stage = Stage(limits=RelayLimits(60.0, 0.05))
    stage.saver.is_slow = True
    stage.start().upstream.say(*words("a"), UpstreamFinished())
    await stage.end()
    assert ["done", "close"] == stage.writer.calls[-2:]


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


async def test_an_upstream_that_breaks_after_its_reason_has_ended_well() -> None:
    """A connection that breaks after every finish reason has left nothing out."""
    broken = UpstreamFailed(Failure("upstream_incomplete", "It broke."))
    stage = Stage().start()
    stage.upstream.say(*words("a"), ChunkReceived(finish_chunk()), broken)
    assert (await stage.end()).state is State.COMPLETED


async def test_a_ping_that_comes_with_the_end_does_not_cut_a_slow_client_off() -> None:
    """A ping that waited for its turn until all was carried out has nothing more to interrupt."""
    with freeze_time("2026-01-01 12:00:00") as clock:
        stage = Stage(SessionPolicy(keep_alive_interval_seconds=15.0)).start()
        stage.upstream.say(*words("a"))
        await stage.settle()
        clock.tick(15.1)
        stage.upstream.say(UpstreamFinished())
        close = stage.writer.close

        async def close_slowly() -> web.StreamResponse:
            await stage.settle()
            return await close()

        stage.writer.close = close_slowly  # type: ignore[method-assign]
        stage.relay.post(TimePassed())  # before the relay's task has taken the end in
        await stage.end()
    assert ["ping", "done", "close"] == stage.writer.calls[2:]


@pytest.mark.parametrize("breaks", ["read", "write", "ping"])
async def test_a_fault_of_our_own_keeps_the_text(breaks: str) -> None:
    """A mistake in our own code fails the completion, whose text is saved all the same."""
    stage = Stage(SessionPolicy(keep_alive_interval_seconds=0.05)).start()
    stage.upstream.say(*words("a"))
    await stage.settle()
    if breaks == "read":
        stage.upstream.events.put_nowait(ZeroDivisionError())
    else:
        stage.writer.fails = ZeroDivisionError()
    if breaks == "write":
        stage.upstream.say(*words("b"))
    record = await stage.end()
    assert record.failure is not None
    assert (State.FAILED, "internal_error") == (record.state, record.failure.code)
    assert record.choices[0].message["content"] in ("a", "ab")


async def test_the_record_is_saved_though_the_clients_side_breaks() -> None:
    """Even if the client's side breaks in an unforeseen way at the very end, the record is saved."""
    stage = Stage().start()
    stage.writer.fails = ZeroDivisionError()
    stage.upstream.say(UpstreamFinished())
    record = await stage.end()
    assert record.state is State.COMPLETED


async def test_somebody_elses_cancellation_is_not_swallowed() -> None:
    """A relay cancelled by anybody but itself ends as cancelled and cuts its client off."""
    stage = Stage().start()
    await stage.settle()
    assert stage.relay.task is not None
    stage.relay.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stage.relay.task
    assert ["abort"] == stage.writer.calls
    assert stage.upstream.closed
