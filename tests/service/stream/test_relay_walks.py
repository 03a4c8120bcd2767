"""The relay on random walks: chunks by either way, pings, stalls, losses and ends at any moment."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from service.agents.protocol import Sink
from service.stream.client import ClientSide
from service.stream.moments import Moments, Watchers
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
    State,
    StopRequested,
    StreamSession,
    TimePassed,
    UpstreamFailed,
    UpstreamFinished,
)
from tests.service.stream.neighbours import FakeSaver, Noted
from tests.statemachine.conftest import asked, finish_chunk, text_after, text_chunk

REPEATED = text_after(text_chunk(""), "x").run
assert isinstance(REPEATED, RepeatedChunks)
PATTERN = REPEATED.pattern
PING_SECONDS = 1.0
BROKE_OFF = UpstreamFailed(Failure("upstream_incomplete", "It broke off."))
BROKE = UpstreamFailed(Failure("upstream_error", "It broke."))


def text_in(runs: Sequence[ChunkRun]) -> str:
    texts: list[str] = []
    for run in runs:
        if isinstance(run, RepeatedChunks):
            texts += run.texts
        else:
            texts.append(run.payload["choices"][0]["delta"].get("content", ""))
    return "".join(texts)


class World:
    """A relay's upstream, journal and client, and what may happen to them.

    Each chunk is a letter like no other. `journaled`, `settled` and `shown` are the letters in the
    order in which they were written down, made safe and sent.
    """

    def __init__(self, client_gone: ClientGone, settles: bool) -> None:
        self.now = 0.0
        self.journaled = self.settled = ""
        self.shown = ""
        self.calls: list[str] = []
        self.broken: list[str] = []
        self.saver = FakeSaver()
        self.noted = Noted()
        self.settles_chunks = self.settles_ends = settles
        self._said = 0
        self._closed = 0
        self._telling: list[asyncio.Task[None]] = []
        self._queue: asyncio.Queue[list[Event] | Exception] = asyncio.Queue()
        self._sink: Sink | None = None  # while the relay waits for the upstream
        self._is_reading = self._is_writing = False
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._waits = True
        self._has_room = False
        self._trips = self._tripped = False
        self.is_lost = False
        policy = SessionPolicy(client_gone, PING_SECONDS, idle_seconds=None, total_seconds=None)
        self.session = StreamSession(asked(), policy)
        here: Any = self
        self.relay = Relay(
            self.session,
            here,
            ClientSide(here, self.clock),
            Upstream(self),  # type: ignore[arg-type]
            self.saver,
            RelayLimits(commit_timeout_seconds=1.0),
            self.clock,
            Moments(self.session, Watchers((self.noted,))),
        )

    def clock(self) -> float:
        return self.now

    def expect(self, holds: bool, promise: str) -> None:
        """Note a broken promise: raised, it would only be one more mistake that the relay
        survives."""
        if not holds:
            self.broken.append(promise)

    # --- the journal ------------------------------------------------------------------------

    def append(self, completion_id: str, events: Sequence[Event], now: float) -> None:
        runs = [event.run for event in events if isinstance(event, ChunkReceived)]
        self.journaled += text_in(runs)

    async def settle(self, *, is_final: bool) -> None:
        appended = self.journaled
        for _ in range(2):
            await asyncio.sleep(0)
        self.settled = appended

    def when_settled(self, tell: Callable[[], None]) -> None:
        async def wait() -> None:
            await self.settle(is_final=False)
            tell()

        self._telling.append(asyncio.create_task(wait()))

    # --- the client -------------------------------------------------------------------------

    async def _write(self, call: str, text: str = "") -> None:
        self.expect(not self._is_writing, "one write at a time")
        if self._trips:
            self._trips, self._tripped = False, True
            raise ZeroDivisionError
        if self.is_lost:
            raise ClientConnectionLost
        self._show(call, text)
        self._is_writing = True
        try:
            await self._may_write.wait()
        finally:
            self._is_writing = False
        if self.is_lost:
            raise ClientConnectionLost

    def _show(self, call: str, text: str) -> None:
        self.expect(self.session.attached, "who has left is sent nothing")
        self.calls.append(call)
        self.shown += text
        safe = self.settled if self.settles_chunks else self.journaled
        self.expect(safe.startswith(self.shown), "safe before it is shown")

    async def open(self) -> None:
        self.expect([] == self.calls, "opened first, and once")
        await self._write("open")

    async def send_chunks(self, runs: Sequence[ChunkRun]) -> None:
        await self._write("send", text_in(runs))

    def is_clear(self) -> bool:
        is_stalled = self._is_writing or not self._may_write.is_set()
        return self._has_room and "send" in self.calls and not (is_stalled or self.is_lost)

    def send_chunks_now(self, runs: Sequence[ChunkRun]) -> None:
        self.expect(self.is_clear(), "sent past a wait only where there is room")
        self._show("send", text_in(runs))

    async def ping(self) -> None:
        await self._write("ping")

    async def send_error(self, failure: Failure) -> None:
        await self._write(f"error {failure.code}")

    async def send_done(self, record: SessionRecord) -> None:
        self.expect([record] == self.saver.records, "saved before the end is told")
        self.calls.append("done")

    def stop_waiting(self) -> None:
        self.expect(self.session.state.is_final, "only at the end nobody waits")
        self._may_write.set()
        self._waits = False

    def response(self) -> web.StreamResponse:
        self.calls.append("response")
        return web.Response()

    def abort(self) -> None:
        self.expect(self.is_lost, "nobody who reads is cut off")

    # --- the upstream -----------------------------------------------------------------------

    async def read(self, sink: Sink) -> Sequence[Event]:
        self._sink = sink if self._queue.empty() else None
        self._is_reading = True
        try:
            item = await self._queue.get()
        finally:
            self._sink = None
            self._is_reading = False
        if isinstance(item, Exception):
            raise item
        return item

    async def close_upstream(self) -> None:
        self.expect(not self._is_reading, "closed by who reads it")
        self._closed += 1

    def _bring(self, item: list[Event] | Exception) -> None:
        self._sink = None  # it will be woken
        self._queue.put_nowait(item)

    def _letter(self) -> str:
        self._said += 1
        return chr(0x100 + self._said)

    def _parsed(self) -> Event:
        return ChunkReceived(text_chunk(self._letter()))

    def _repeated(self) -> ChunkReceived:
        letter = self._letter()
        return ChunkReceived(RepeatedChunks(PATTERN, (letter,), f'"{letter}"'.encode()))

    # --- what may happen --------------------------------------------------------------------

    def chunk(self) -> None:
        self._bring([self._parsed()])

    def two_chunks(self) -> None:
        self._bring([self._parsed(), self._repeated()])

    def chunk_past_the_task(self) -> None:
        if self._sink is not None and self._sink.is_clear():
            self._sink.take(self._repeated())
        else:
            self._bring([self._repeated()])

    def a_ping_is_due(self) -> None:
        self.now += PING_SECONDS
        self.relay.post(TimePassed())

    def client_stalls(self) -> None:
        if self._waits:
            self._may_write.clear()

    def client_reads(self) -> None:
        self._may_write.set()

    def client_is_lost(self) -> None:
        self.is_lost = True
        self._may_write.set()

    def room_or_none(self) -> None:
        self._has_room = not self._has_room

    def a_write_trips(self) -> None:
        self._trips = True

    def leave(self) -> None:
        self.relay.post(ClientLeft())

    def stop(self) -> None:
        self.relay.post(StopRequested())

    def drain(self) -> None:
        self.relay.post(DrainExpired())

    def finish(self) -> None:
        self._bring([ChunkReceived(finish_chunk()), UpstreamFinished()])

    def break_off_whole(self) -> None:
        self._bring([ChunkReceived(finish_chunk()), BROKE_OFF])

    def break_off(self) -> None:
        self._bring([self._parsed(), BROKE])

    def a_read_trips(self) -> None:
        self._bring(ZeroDivisionError())

    # --- what holds afterwards --------------------------------------------------------------

    def check(self) -> None:
        assert [] == self.broken
        (record,) = self.saver.records
        content = (record.choices[0].message["content"] or "") if record.choices else ""
        assert self.journaled.startswith(content), "kept as it was written down"
        assert content.startswith(self.shown), "shown in order, once each"
        assert self._closed >= 1
        assert "began" == self.noted.moments[0]
        assert "closed" == self.noted.moments[-1]
        ended, saved = f"ended {record.state}", f"saved {record.completion_id}"
        assert [1, 1] == [self.noted.moments.count(moment) for moment in (ended, saved)]
        assert (record.failure is None) is (record.state is State.COMPLETED)
        assert "response" == self.calls[-1]
        if self.is_lost or self._tripped or not self.session.attached:
            return
        assert content == self.shown
        if record.failure is None:
            assert "done" == self.calls[-2]
        elif record.failure.code != "stopped":
            assert f"error {record.failure.code}" == self.calls[-2]


class Upstream:
    """The world as its relay's `Attempts`."""

    def __init__(self, world: World) -> None:
        self.read = world.read
        self.close = world.close_upstream


COMMON: list[Callable[[World], None]] = [
    World.chunk,
    World.two_chunks,
    World.chunk_past_the_task,
    World.chunk_past_the_task,
    World.a_ping_is_due,
    World.a_ping_is_due,
    World.client_stalls,
    World.client_reads,
    World.room_or_none,
    World.room_or_none,
]
RARE: list[Callable[[World], None]] = [
    World.client_is_lost,
    World.leave,
    World.stop,
    World.drain,
    World.finish,
    World.break_off_whole,
    World.break_off,
    World.a_read_trips,
    World.a_write_trips,
]
turns = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5])
steps = st.lists(st.tuples(st.sampled_from(COMMON), turns), max_size=25)
last_steps = st.lists(st.tuples(st.sampled_from([*RARE, *COMMON]), turns), max_size=6)


@settings(max_examples=50, deadline=None)
@given(
    walk=st.builds(list.__add__, steps, last_steps),
    client_gone=st.sampled_from(ClientGone),
    settles=st.booleans(),
)
async def test_the_relays_promises_hold_on_every_walk(
    walk: list[tuple[Callable[[World], None], int]], client_gone: ClientGone, settles: bool
) -> None:
    """Every chunk is written down before it is shown, in order and once; one record is saved
    before the end is sent; nobody who reads is cut off, and no task is left."""
    world = World(client_gone, settles)
    before = asyncio.all_tasks()
    task = world.relay.start()
    for move, count in walk:
        move(world)
        for _ in range(count):
            await asyncio.sleep(0)
    world.client_reads()
    world.finish()
    async with asyncio.timeout(5):
        await task
    for _ in range(5):
        await asyncio.sleep(0)
    assert before == asyncio.all_tasks()
    world.check()
