"""Drives ONE session from its first event to its last effect.

    the upstream ──events──▶ ┌───────┐
    the clock ─────event───▶ │ Relay │ ──effects──▶ the writer, the upstream, the saver
    `post` ────────event───▶ └───────┘

The rules:

1. Every event goes through `_admit`: the journal writes it down, the session handles it, its
   effects join the queue. What came in one read is written down in one go.
2. Effects are carried out in order by one holder of `_carrying` at a time; nothing else writes
   to the client, and nothing else calls the persistence hook.
3. Chunks that arrived together leave in one write, and the next read waits for that write: the
   client's back-pressure reaches the upstream. No task, timer or future is made per chunk.
4. One timer per session looks at what time has made due (`session.due`) and at writes that
   stall. It is set again when it fires, not when a chunk comes.
5. An event from outside that ends the session interrupts whatever the relay waits for: the
   upstream's next bytes, or a client that doesn't read.
6. The relay runs in a task of its own. A handler that aiohttp cancels posts `ClientLeft` and
   goes; the relay lives on until the record is saved.
7. Whatever breaks in here ends the session as failed, so the text so far is kept.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
from aiohttp import web
from attrs import frozen

from service.clock import Clock
from service.sse import ClientConnectionLost, Writer
from service.telemetry import log_completion
from service.upstream import Upstream
from statemachine import (
    ClientLeft,
    Effect,
    Event,
    Failure,
    OpenStream,
    Save,
    SendChunk,
    SendDone,
    SendError,
    SendPing,
    SessionRecord,
    StopUpstream,
    StreamSession,
    UpstreamFailed,
    UpstreamFinished,
)
from statemachine.messages import JsonObject

log = structlog.get_logger(__name__)


class Journal(Protocol):
    """What happened, written down before it is shown; `db.journal.Journal` is the real one."""

    def append(self, completion_id: str, events: Sequence[Event], now: float) -> None:
        """Write events down. Returns once the kernel has them; never raises."""

    async def settle(self, *, is_final: bool) -> None:
        """Return once what was appended is as safe as configured."""


class Saver(Protocol):
    """The persistence hook; `db.saver.Saver` is the real one."""

    def save(self, record: SessionRecord) -> "asyncio.Future[None]":
        """Take the record over for good. The future is done once it is committed; cancelling
        it or not waiting changes nothing."""


@frozen
class RelayLimits:
    """How long a relay waits, in seconds."""

    send_timeout_seconds: float
    """For a client that takes nothing, before it counts as gone."""
    commit_timeout_seconds: float
    """For the commit, before the client is told the end."""
    farewell_seconds: float = 5.0
    """For a client that reads slowly, once its stream has ended."""


class Relay:
    """One session with its surroundings.

    Args:
        session: the state machine; nobody else may call its `handle`.
        journal: where events are written down first; None: nowhere.
        writer: the client's side.
        saver: the one persistence hook.
        limits: see `RelayLimits`.
        clock: what time it is, for the session.

    Call `start` once, await `task` for the response to return to aiohttp, and `post` whatever
    happens outside.
    """

    def __init__(
        self,
        session: StreamSession,
        journal: Journal | None,
        writer: Writer,
        saver: Saver,
        limits: RelayLimits,
        clock: Clock,
    ) -> None:
        self.session = session
        self._journal = journal
        self.task: asyncio.Task[web.StreamResponse] | None = None
        self._upstream: Upstream | None = None
        self._writer = writer
        self._saver = saver
        self._limits = limits
        self._clock = clock
        self._effects: deque[Effect] = deque()
        self._carrying = asyncio.Lock()
        self._is_running = False
        self._is_reachable = True
        self._write_was_broken = False
        self._interrupted = False
        self._ping_task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing_since: float | None = None

    def start(self, make_upstream: "Callable[[Callable[[Event], None]], Upstream]") -> None:
        """Begin. `make_upstream` is given the function to announce attempts to."""
        self._upstream = make_upstream(self._admit)
        name = f"relay {self.session.request.completion_id}"
        self.task = asyncio.create_task(self._run(self._upstream), name=name)

    def post(self, event: Event) -> None:
        """Let the session know of something that happened outside. Returns at once."""
        was_final = self.session.state.is_final
        self._admit(event)
        if self.session.state.is_final:
            if not was_final:
                self._interrupt()
        elif self._effects and not self._carrying.locked():
            # Only pings come this way: the relay's own task is waiting for the upstream.
            self._ping_task = asyncio.create_task(self._carry_out_pings())

    # --- the life ---------------------------------------------------------------------------

    async def _run(self, upstream: Upstream) -> web.StreamResponse:
        self._is_running = True
        self._set_timer()
        try:
            await self._drive(upstream)
            await self._part()
            return await self._close_body()
        except BaseException:
            self._writer.abort()  # a client left without an end must not wait for one
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await upstream.close()

    async def _drive(self, upstream: Upstream) -> None:
        """Until the session has ended: read, admit, carry out."""
        session = self.session
        milestones = 0
        while not session.state.is_final:
            try:
                *events, last = await upstream.read()
                if isinstance(last, UpstreamFailed) and events:
                    self._admit(*events)  # whether it failed depends on what these finished
                    events = []
                self._admit(*events, self._truthful(last))
                if session.milestones != milestones:
                    milestones = session.milestones
                    self._set_timer()
                if not session.state.is_final:
                    await self._carry_out()
            except asyncio.CancelledError:
                self._go_on_if_interrupted()
            except Exception:
                log.exception("relay failed")
                self._admit(UpstreamFailed(_OWN_FAULT))

    async def _part(self) -> None:
        """Carry out what the end asked for. Whatever breaks, the record is saved; a client that
        doesn't read comes last."""
        if self._write_was_broken:
            self._effects = deque(sorted(self._effects, key=_is_for_the_client))
        while self._effects:
            try:
                await self._carry_out()
            except asyncio.CancelledError:
                self._go_on_if_interrupted()
            except Exception:
                log.exception("effect failed")

    async def _close_body(self) -> web.StreamResponse:
        if not self._is_reachable:
            self._writer.abort()
        return await self._writer.close()

    def _truthful(self, event: Event) -> Event:
        """An upstream that breaks off after every choice's finish reason has ended well."""
        if (
            isinstance(event, UpstreamFailed)
            and event.failure.code == "upstream_incomplete"
            and self.session.transcript.is_whole
        ):
            return UpstreamFinished()
        return event

    # --- events in --------------------------------------------------------------------------

    def _admit(self, *events: Event) -> None:
        """The one place that every event passes: first the journal, then the session."""
        now = self._clock()
        if self._journal is not None:
            self._journal.append(self.session.request.completion_id, events, now)
        for event in events:
            self._effects.extend(self.session.handle(event, now))

    def _interrupt(self) -> None:
        """Wake the relay's task from whatever it awaits. Not yet running, it needs no waking."""
        if self._ping_task is not None:
            self._ping_task.cancel()
        if self._is_running and self.task is not None:
            self._interrupted = True
            self.task.cancel()

    def _go_on_if_interrupted(self) -> None:
        """Swallow the cancellation that `_interrupt` made; let anybody else's through."""
        if not self._interrupted:
            raise
        self._interrupted = False
        assert self.task is not None
        self.task.uncancel()

    # --- time -------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now, patience = self._clock(), self._limits.send_timeout_seconds
        since = now if self._writing_since is None else self._writing_since
        delay = min(self.session.wakes_at, since + patience) - now
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(delay, _SHORTEST_TIMER_SECONDS), self._tick)

    def _tick(self) -> None:
        now = self._clock()
        since = self._writing_since
        if since is not None and now - since >= self._limits.send_timeout_seconds:
            log.info("client stalled", completion_id=self.session.request.completion_id)
            self._writer.abort()  # the waiting write raises, and the client has left
        event = self.session.due(now)
        try:
            if event is not None:
                self.post(event)
        finally:  # even after a mistake of ours, a stream must not be left without its deadlines
            if not self.session.state.is_final:
                self._set_timer()

    # --- effects out ------------------------------------------------------------------------

    async def _carry_out(self) -> None:
        """Every effect that waits, in order. An interrupted one is not repeated."""
        async with self._carrying:
            if self._journal is not None:
                await self._journal.settle(is_final=self.session.state.is_final)
            while self._effects:
                await self._carry_out_next()

    async def _carry_out_pings(self) -> None:
        """The same from beside the relay's task, which alone may carry out an end."""
        async with self._carrying:
            while self._effects and not self.session.state.is_final:
                await self._carry_out_next()
        if self.session.state.is_final:
            self._interrupt()

    async def _carry_out_next(self) -> None:
        effect = self._effects.popleft()
        match effect:
            case SendChunk(payload):
                payloads = [payload]
                while self._effects and isinstance(self._effects[0], SendChunk):
                    payloads.append(self._effects.popleft().payload)  # type: ignore[attr-defined]
                await self._send(effect, payloads)
            case StopUpstream():
                assert self._upstream is not None
                await self._upstream.close()
            case Save(record):
                await self._save(record)
            case _:
                await self._send(effect)

    async def _send(self, effect: Effect, payloads: Sequence[JsonObject] = ()) -> None:
        """Write to the client, if it is there; find out if it isn't."""
        if not self._is_reachable or not self.session.attached:
            return
        self._writing_since = self._clock()
        try:
            if self.session.state.is_final:
                async with asyncio.timeout(self._limits.farewell_seconds):
                    await self._write(effect, payloads)
            else:
                await self._write(effect, payloads)
        except asyncio.CancelledError:
            self._write_was_broken = True
            raise
        except TimeoutError:
            self._is_reachable = False
        except ClientConnectionLost:
            self._is_reachable = False
            self._admit(ClientLeft())
        finally:
            self._writing_since = None

    async def _write(self, effect: Effect, payloads: Sequence[JsonObject]) -> None:
        match effect:
            case SendChunk():
                await self._writer.send_chunks(payloads)
            case OpenStream():
                await self._writer.open()
            case SendPing():
                await self._writer.ping()
            case SendError(failure):
                await self._writer.send_error(failure)
            case SendDone(record):
                await self._writer.send_done(record)

    async def _save(self, record: SessionRecord) -> None:
        """Hand the record over, and give its commit a moment before the client is told."""
        log_completion(record)
        saved = self._saver.save(record)
        done, _ = await asyncio.wait((saved,), timeout=self._limits.commit_timeout_seconds)
        if not done:
            log.warning("commit is late", completion_id=record.completion_id)


def _is_for_the_client(effect: Effect) -> bool:
    return not isinstance(effect, (StopUpstream, Save))


_SHORTEST_TIMER_SECONDS = 0.001
_OWN_FAULT = Failure("internal_error", "The service made a mistake and could not go on.")
