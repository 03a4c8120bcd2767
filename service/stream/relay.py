"""Drives ONE session from its first event to its last effect.

    the upstream ──events──▶ ┌───────┐              ┌──────────┐
    the clock ─────event───▶ │ Relay │ ──effects──▶ │ Delivery │──▶ client, upstream, saver
    `post` ────────event───▶ └───────┘              └──────────┘

The rules:

1. Every event goes through `_admit`: the journal writes it down, the session handles it, its
   effects join the queue. What came in one read is written down in one go.
2. The next read waits until the effects of the last are carried out (`service.stream.delivery`): the
   client's back-pressure reaches the upstream. No task, timer or future is made per chunk.
3. One timer per session looks at what time has made due (`session.due`) and at writes that
   stall. It is set again when it fires, not when a chunk comes.
4. An event from outside that ends the session interrupts whatever the relay waits for: the
   upstream's next bytes, or a client that doesn't read.
5. The relay runs in a task of its own. A handler that aiohttp cancels posts `ClientLeft` and
   goes; the relay lives on until the record is saved.
6. Whatever breaks in here ends the session as failed, so the text so far is kept.
"""

import asyncio
from collections.abc import Callable, Sequence

import structlog
from aiohttp import web

from service.clock import Clock
from service.stream.attempts import Upstream
from service.stream.delivery import Delivery, Journal, RelayLimits, Saver
from service.stream.writers import Writer
from statemachine import (
    Event,
    Failure,
    StreamSession,
    TextReceived,
    UpstreamFailed,
    UpstreamFinished,
)

log = structlog.get_logger(__name__)

_SHORTEST_TIMER_SECONDS = 0.001
_OWN_FAULT = Failure("internal_error", "The service made a mistake and could not go on.")


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
        self.task: asyncio.Task[web.StreamResponse] | None = None
        self._journal = journal
        self._clock = clock
        self._patience = limits.send_timeout_seconds
        self._delivery = Delivery(session, journal, writer, saver, limits, clock, self._admit)
        self._completion_id = session.request.completion_id
        self._add_effects = self._delivery.add
        self._milestones = 0
        self._is_running = False
        self._interrupted = False
        self._ping_task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ticks_at = 0.0

    def start(self, make_upstream: Callable[[Callable[[Event], None]], Upstream]) -> None:
        """Begin. `make_upstream` is given the function to announce attempts to."""
        upstream = make_upstream(self._admit)
        self._delivery.upstream = upstream
        upstream.listen(self._delivery.is_clear, self._pass_on)
        name = f"relay {self.session.request.completion_id}"
        self.task = asyncio.create_task(self._run(upstream), name=name)

    def post(self, event: Event) -> None:
        """Let the session know of something that happened outside. Returns at once."""
        was_final = self.session.state.is_final
        self._admit(event)
        if self.session.state.is_final:
            if not was_final:
                self._interrupt()
        else:
            self._carry_out_beside()

    def _pass_on(self, event: TextReceived) -> None:
        """Text that came while the task waits for the upstream, and can be sent at once. It is
        spared the task's waking; all else happens to it that happens in `_drive`."""
        session = self.session
        try:
            now = self._clock()
            if self._journal is not None:
                self._journal.append(self._completion_id, (event,), now)
            if not self._delivery.send_now(session.handle(event, now)):
                self._carry_out_beside()
            if session.milestones != self._milestones:
                self._note_milestone()
        except Exception:
            log.exception("relay failed")
            self.post(UpstreamFailed(_OWN_FAULT))

    # --- the life ---------------------------------------------------------------------------

    async def _run(self, upstream: Upstream) -> web.StreamResponse:
        self._is_running = True
        self._set_timer()
        try:
            await self._drive(upstream)
            await self._part()
            return await self._delivery.close()
        except BaseException:
            self._delivery.abort()  # a client left without an end must not wait for one
            raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
            try:
                await upstream.close()
            finally:
                self._delivery.let_go()

    async def _drive(self, upstream: Upstream) -> None:
        """Until the session has ended: read, admit, carry out."""
        session = self.session
        while not session.state.is_final:
            try:
                events = await upstream.read()
                last = events[-1]
                if isinstance(last, UpstreamFailed):
                    self._admit_all(events[:-1])  # whether it failed depends on what these finished
                    events = [self._truthful(last)]
                self._admit_all(events)
                if session.milestones != self._milestones:
                    self._note_milestone()
                if not (self._delivery.carry_out_now() or session.state.is_final):
                    await self._delivery.carry_out()
            except asyncio.CancelledError:
                self._go_on_if_interrupted()
            except Exception:
                log.exception("relay failed")
                self._admit(UpstreamFailed(_OWN_FAULT))

    async def _part(self) -> None:
        """Carry out what the end asked for. Whatever breaks, the record is saved."""
        self._delivery.put_a_stalled_client_last()
        while self._delivery.has_effects:
            try:
                await self._delivery.carry_out()
            except asyncio.CancelledError:
                self._go_on_if_interrupted()
            except Exception:
                log.exception("effect failed")

    def _carry_out_beside(self) -> None:
        """Have effects carried out while the relay's own task waits for the upstream: pings."""
        if self._delivery.is_waiting_for_a_carrier:
            self._ping_task = asyncio.create_task(self._ping())

    async def _ping(self) -> None:
        """Carry out a ping from beside the relay's task, which alone may carry out an end."""
        await self._delivery.carry_out_until_the_end()
        if self.session.state.is_final:
            self._interrupt()

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

    def _admit(self, event: Event) -> None:
        self._admit_all((event,))

    def _admit_all(self, events: Sequence[Event]) -> None:
        """The one place that every event passes: first the journal, then the session."""
        now = self._clock()
        if self._journal is not None:
            self._journal.append(self._completion_id, events, now)
        for event in events:
            self._add_effects(self.session.handle(event, now))

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

    def _note_milestone(self) -> None:
        """Now something may be due earlier than the timer knows."""
        self._milestones = self.session.milestones
        if self.session.wakes_at < self._ticks_at:  # never, if it is final
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = self._clock()
        since = self._delivery.writing_since or now
        self._ticks_at = min(self.session.wakes_at, since + self._patience)
        delay = self._ticks_at - now
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(delay, _SHORTEST_TIMER_SECONDS), self._tick)

    def _tick(self) -> None:
        now = self._clock()
        since = self._delivery.writing_since
        if since is not None and now - since >= self._patience:
            log.info("client stalled", completion_id=self.session.request.completion_id)
            self._delivery.abort()  # the waiting write raises, and the client has left
        held = self._delivery.holds_upstream
        self.session.excuse_silence(now if held else self._delivery.upstream_free_at)
        event = self.session.due(now)
        try:
            if event is not None:
                self.post(event)
        finally:  # even after a mistake of ours, a stream must not be left without its deadlines
            if not self.session.state.is_final:
                self._set_timer()
