"""The relay on random walks with readers besides its first client: they come at any position, stall, are
lost and leave, and come back, while the first does the same.

What the relay promises a single client is in `test_relay_walks.py`, whose world this is.
"""

import asyncio
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from aiohttp import web
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from service.edge.errors import ApiError
from service.stream.follower import EXPIRED, Follower
from service.stream.relay import Relay
from service.stream.writers import ClientConnectionLost, frame_of
from service.wire import ChunkEncoder, error_event
from service.wire.encoder import DONE, PING, numbered_events
from statemachine import (
    ChunkReceived,
    ChunkRun,
    ClientGone,
    Event,
    Failure,
    SessionRecord,
    StreamSession,
)
from tests.service.stream.test_relay_walks import PING_SECONDS, World, last_steps, steps, turns
from tests.statemachine.conftest import asked

WAIT_SECONDS = 30.0
SMALL_TAPE_BYTES = 1000


def encoder() -> ChunkEncoder:
    request = asked()
    return ChunkEncoder(request.completion_id, request.model, int(request.created_at), False)


def events_in(data: bytes) -> list[bytes]:
    """The events, without comments."""
    lines = [line for line in data.split(b"\n") if not line.startswith(b":")]
    return b"\n".join(lines).split(b"\n\n")[:-1]


class Connection:
    """A reader's writer, which may be told to wait, to have no room, or to fail."""

    def __init__(self, world: "Crowd", position: int, *, has_ids: bool) -> None:
        self.seen = b""
        self.is_open = False
        self.is_lost = False
        self.waits = True
        self.has_room = True
        self.has_sent = False
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.error: Failure | None = None
        self._world = world
        self._is_writing = False
        self.position = position
        self.has_ids = has_ids

    @property
    def events(self) -> list[bytes]:
        return events_in(self.seen)

    @property
    def chunks(self) -> list[bytes]:
        return [event for event in self.events if b'"choices"' in event]

    def _show(self, data: bytes) -> None:
        self.seen += data
        if b'"choices"' in data:
            reached = self.position + len(self.chunks)
            self._world.expect(reached <= self._world.safe_count, "safe before it is shown")

    async def _write(self, data: bytes) -> None:
        self._world.expect(not self._is_writing, "one write at a time to a reader")
        if self.is_lost:
            raise ClientConnectionLost
        self._show(data)
        self._is_writing = True
        try:
            if self.waits:
                await self.may_write.wait()
        finally:
            self._is_writing = False
        if self.is_lost:
            raise ClientConnectionLost

    async def open(self) -> None:
        self._world.expect(not self.is_open, "opened once")
        if self.is_lost:
            raise ClientConnectionLost
        self.is_open = True

    open_at_once = open

    async def send(self, data: bytes) -> None:
        self._world.expect(self.is_open, "opened first")
        await self._write(data)
        self.has_sent = True

    async def ping(self) -> None:
        await self._write(PING)

    def is_clear(self) -> bool:
        stalled = self._is_writing or not self.may_write.is_set()
        return self.has_sent and self.has_room and not (stalled or self.is_lost)

    def send_frame_now(self, frame: bytes) -> None:
        self._world.expect(self.is_clear(), "sent past a wait only where there is room")
        head, _, rest = frame.partition(b"\r\n")
        self._world.expect(frame_of(rest[: int(head, 16)]) == frame, "a whole frame")
        self._show(rest[:-2])

    def end_with(self, tail: bytes) -> None:
        self._show(tail)

    def stop_waiting(self) -> None:
        self.waits = False
        self.may_write.set()

    def response(self) -> web.StreamResponse:
        return web.Response()


class Crowd(World):
    """A world with readers. `written` are all chunks' events, as they were written down."""

    def __init__(self, client_gone: ClientGone, settles: bool, *, is_small: bool) -> None:
        self.written: list[bytes] = []
        self.shown_first: list[bytes] = []
        self.settled_count = 0
        self._sending: Sequence[ChunkRun] = ()
        self.readers: list[tuple[Connection, asyncio.Task[Any]]] = []
        self._written_by, self._first_by = encoder(), encoder()
        super().__init__(client_gone, settles)
        policy = evolve(self.session.policy, client_gone_wait_seconds=WAIT_SECONDS)
        if is_small:
            policy = evolve(policy, max_tape_bytes=SMALL_TAPE_BYTES)
        self.session = StreamSession(asked(), policy)
        before, here = self.relay, self
        self.relay = Relay(
            self.session,
            here,  # type: ignore[arg-type]
            before._client,
            before._upstream,
            self.saver,
            before._limits,
            self.clock,
            before._moments,
        )

    @property
    def safe_count(self) -> int:
        return self.settled_count if self.settles_chunks else len(self.written)

    # --- what the relay sees ------------------------------------------------------------------

    def append(self, completion_id: str, events: Sequence[Event], now: float) -> None:
        super().append(completion_id, events, now)
        runs = [event.run for event in events if isinstance(event, ChunkReceived)]
        self.written += events_in(self._written_by.encode_all(runs)) if runs else []

    async def settle(self, *, is_final: bool) -> None:
        count = len(self.written)
        await super().settle(is_final=is_final)
        self.settled_count = max(count, self.settled_count)

    def _show(self, call: str, text: str) -> None:
        self.expect(self.relay.readers.has_client, "who has left is sent nothing")
        self.calls.append(call)
        self.shown += text
        if call == "send":
            self.shown_first += events_in(self._first_by.encode_all(self._sending))
            self.expect(len(self.shown_first) <= self.safe_count, "safe before it is shown")

    async def send_chunks(self, runs: Sequence[ChunkRun]) -> None:
        self._sending = runs
        await super().send_chunks(runs)

    def send_chunks_now(self, runs: Sequence[ChunkRun]) -> None:
        self._sending = runs
        super().send_chunks_now(runs)

    # --- what may happen ----------------------------------------------------------------------

    def leave(self) -> None:
        self.relay.readers.lose_client()

    def everybody_leaves(self) -> None:
        self.leave()
        for _, task in self.readers:
            task.cancel()

    def a_long_time_passes(self) -> None:
        self.now += WAIT_SECONDS
        if (event := self.session.due(self.now)) is not None:
            self.relay.post(event)

    def _come(self, position: int, *, has_ids: bool = False) -> None:
        assert self.relay.task is not None
        tape = self.session.transcript.tape
        if self.relay.task.done() or not tape.first <= position <= tape.count:
            return
        connection = Connection(self, position, has_ids=has_ids)
        task = asyncio.create_task(self._follow(connection))
        self.readers.append((connection, task))

    async def _follow(self, connection: Connection) -> None:
        assert self.relay.task is not None
        if self.relay.task.done():
            connection.is_lost = True  # it came too late
            return
        if connection.position < self.session.transcript.tape.first:
            connection.is_lost = True
            return
        audience = self.relay.readers.join()
        writer: Any = connection
        form = (False, connection.has_ids)
        follower = Follower(audience, writer, connection.position, form, PING_SECONDS, self.clock)
        try:
            await follower.run()
        except ApiError as error:
            connection.error = error.failure
        finally:
            self.relay.readers.leave()

    def one_comes(self) -> None:
        self._come(0)

    def one_comes_in_the_middle(self) -> None:
        self._come(self.session.transcript.tape.count // 2)

    def one_comes_at_the_end(self) -> None:
        self._come(self.session.transcript.tape.count, has_ids=True)

    def _last(self) -> Connection | None:
        return self.readers[-1][0] if self.readers else None

    def one_stalls(self) -> None:
        if (last := self._last()) and last.waits:
            last.may_write.clear()

    def one_reads(self) -> None:
        for connection, _ in self.readers[:1]:
            connection.may_write.set()

    def one_has_no_room(self) -> None:
        if last := self._last():
            last.has_room = not last.has_room

    def one_is_lost(self) -> None:
        for connection, _ in self.readers[:1]:
            connection.is_lost = True
            connection.may_write.set()

    def one_leaves(self) -> None:
        for connection, task in self.readers[-2:-1] or self.readers:
            connection.is_lost = True
            task.cancel()

    # --- what holds afterwards ----------------------------------------------------------------

    def check(self) -> None:
        assert [] == self.broken
        (record,) = self.saver.records
        tape = self.session.transcript.tape
        truth = self.written[: tape.count]
        assert truth[: len(self.shown_first)] == self.shown_first
        assert "response" == self.calls[-1]
        assert self._closed >= 1
        assert 0 == self.relay.readers.count - self.relay.readers.has_client
        is_told = self.relay.readers.has_client and not (self.is_lost or self._tripped)
        if is_told and self.calls[-2:-1] == ["done"]:
            assert truth == self.shown_first
        for connection, task in self.readers:
            self._check_reader(connection, task, record, truth)

    def _check_reader(
        self,
        connection: Connection,
        task: "asyncio.Task[Any]",
        record: SessionRecord,
        truth: list[bytes],
    ) -> None:
        expected = truth[connection.position :]
        if connection.has_ids:
            whole = b"".join(event + b"\n\n" for event in expected)
            expected = events_in(numbered_events(whole, connection.position + 1))
        chunks = connection.chunks
        assert expected[: len(chunks)] == chunks
        if connection.is_lost or task.cancelled():
            return
        assert task.exception() is None
        end = connection.events[len(chunks) :]
        failure = connection.error
        if end and (expired := error_event(EXPIRED).rstrip()) in end[0]:
            assert SMALL_TAPE_BYTES == self.session.policy.max_tape_bytes, expired
            return
        if failure is not None and failure.code == EXPIRED.code:
            return
        assert expected == chunks, "an end before all has been shown"
        told = [each.partition(b"\n")[2] if connection.has_ids else each for each in end]
        if record.failure is None:
            assert ([DONE.rstrip()], None) == (told, failure)
        elif failure is not None:
            assert ([], record.failure.code) == (end, failure.code)
        elif record.failure.code == "stopped":
            assert [] == end
        else:
            assert [error_event(record.failure).rstrip()] == told


OFTEN: list[Callable[[Any], None]] = [
    Crowd.one_comes,
    Crowd.one_comes_in_the_middle,
    Crowd.one_comes_at_the_end,
    Crowd.one_stalls,
    Crowd.one_reads,
    Crowd.one_has_no_room,
    Crowd.chunk,
    Crowd.chunk_past_the_task,
]
SELDOM: list[Callable[[Any], None]] = [
    Crowd.one_is_lost,
    Crowd.one_leaves,
    Crowd.leave,
    Crowd.everybody_leaves,
    Crowd.a_long_time_passes,
]
crowd_steps = st.lists(
    st.tuples(st.sampled_from([*OFTEN, *OFTEN, *SELDOM]), turns), min_size=3, max_size=20
)


@settings(max_examples=60, deadline=None)
@given(
    walk=st.builds(lambda *parts: [*chain(*parts)], steps, crowd_steps, last_steps, crowd_steps),
    client_gone=st.sampled_from(ClientGone),
    settles=st.booleans(),
    is_small=st.booleans(),
)
async def test_readers_get_what_the_first_client_gets(
    walk: list[tuple[Callable[[World], None], int]],
    client_gone: ClientGone,
    settles: bool,
    is_small: bool,
) -> None:
    """From their positions on, in order and once each, after it is written down, and the true end;
    one record is saved, and no task is left."""
    world = Crowd(client_gone, settles, is_small=is_small)
    with capture_logs():  # a mistake's traceback, with all that it names, takes a second
        await play(world, walk)
    world.check()


async def play(world: Crowd, walk: list[tuple[Callable[[World], None], int]]) -> None:
    before = asyncio.all_tasks()
    task = world.relay.start()
    for move, count in walk:
        getattr(world, move.__name__)()  # those of the other walks too, as they are here
        for _ in range(count):
            await asyncio.sleep(0)
    world.client_reads()
    for connection, _ in world.readers:
        connection.may_write.set()
    world.finish()
    async with asyncio.timeout(5):
        await task
        await asyncio.wait([task, *(each for _, each in world.readers)])
    for _ in range(5):
        await asyncio.sleep(0)
    assert before == asyncio.all_tasks()
