"""A relay's hand-written neighbours: upstream, client, saver and watchers."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

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
    Event,
    Failure,
    RepeatedChunks,
    SessionPolicy,
    SessionRecord,
    SessionRequest,
    StreamSession,
)
from tests.statemachine.conftest import asked, text_chunk

LIMITS = RelayLimits(commit_timeout_seconds=0.2)


class FakeUpstream:
    """Hands out what a test puts in; an exception put in is raised."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[list[Event] | Exception] = asyncio.Queue()
        self.closed = False
        self.is_reading = False
        self.was_closed_while_read = False

    def say(self, *events: Event) -> None:
        self.events.put_nowait(list(events))

    async def read(self, sink: Sink | None = None) -> list[Event]:
        assert sink is not None
        self.sink = sink
        self.is_reading = True
        try:
            item = await self.events.get()
        finally:
            self.is_reading = False
        if isinstance(item, Exception):
            raise item
        return item

    async def close(self) -> None:
        self.was_closed_while_read |= self.is_reading
        self.closed = True


class FakeWriter:
    """Notes every call. With `free` cleared, writes wait until it is set, the connection is aborted
    or nobody is to wait any more."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.takes_at_once = False
        self.waits = True
        self.free = asyncio.Event()
        self.free.set()
        self.fails: Exception | None = None
        self._aborted = asyncio.Event()

    async def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.fails is not None:
            raise self.fails
        if not self.waits:
            return
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

    def stop_waiting(self) -> None:
        self.waits = False

    def response(self) -> web.StreamResponse:
        self.calls.append("response")
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

    def not_saved(self, completion_id: str) -> None:
        self.moments.append(f"not saved {completion_id}")

    def closed(self, request: SessionRequest) -> None:
        self.moments.append("closed")


class Broken(Watcher):
    """A watcher with a mistake in it, which is to harm nobody."""

    def began(self, request: SessionRequest) -> None:
        raise ZeroDivisionError

    reached_first_token = ended = saved = closed = began  # type: ignore[assignment]


class SlowJournal(NoJournal):
    """What it is given is safe once a test says so.

    Attributes:
        waiting: whoever is to be told then.
    """

    settles_chunks = settles_ends = True

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.is_safe = asyncio.Event()

    def when_settled(self, tell: Callable[[], None]) -> None:
        self.waiting.append(tell)

    async def settle(self, *, is_final: bool) -> None:
        await self.is_safe.wait()

    def note_safe(self) -> None:
        self.is_safe.set()
        waiting, self.waiting = self.waiting, []
        for tell in waiting:
            tell()


class Stage:
    """A relay and its neighbours."""

    def __init__(
        self,
        policy: SessionPolicy | None = None,
        limits: RelayLimits = LIMITS,
        watchers: Sequence[Watcher] = (),
        journal: NoJournal | None = None,
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
            journal or NoJournal(),
            ClientSide(self.writer, clock),
            upstream,
            self.saver,
            limits,
            clock,
            Moments(self.session, Watchers((*watchers, self.noted))),
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
        assert not self.upstream.was_closed_while_read
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
