"""Drives ONE session from its first event to its last effect.

    the upstream ──events──▶ ┌───────┐ ──chunks, pings, the end──▶ client
    the clock ─────event───▶ │ Relay │ ──StopUpstream────────────▶ upstream
    `post` ────────event───▶ └───────┘ ──Save────────────────────▶ saver

The rules:

1. Every event goes through `_admit`: the journal writes it down, the session handles it, its
   effects join the queue. What came in one read is written down in one go.
2. Effects are carried out in their order, by one caller at a time; nothing else writes to the
   client, and nothing else calls the persistence hook. Chunks that wait together leave in one
   write.
3. The next read waits until the effects of the last are carried out: the client's back-pressure
   reaches the upstream. No task, timer or future is made per chunk.
4. One timer per session looks at what time has made due (`service.stream.timer`). A client that takes
   nothing is cut off by its connection.
5. An event from outside that ends the session interrupts whatever the relay waits for: the
   upstream's next bytes, or a client that doesn't read.
6. The relay runs in a task of its own. A handler that aiohttp cancels tells it so and goes; the relay
   lives on until the record is saved.
7. The session hears of the last reader that leaves, and of the first that comes after it. Those besides
   the first client read the tape by themselves (`service.stream.audience`).
8. A chunk that must be safe before it is shown waits alone: who tells that it is safe has it shown.
9. Whatever breaks in here ends the session as failed, so the text so far is kept.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

import structlog
from aiohttp import web

from service.clock import Clock
from service.stream.client import ClientSide, runs_of
from service.stream.moments import Moments
from service.stream.ports import Journal, RelayLimits, Saver, Upstream
from service.stream.prompt import Prompt
from service.stream.readers import Readers
from service.stream.timer import SessionTimer
from service.stream.waiting import Turn, is_done_within
from service.stream.writers import ClientConnectionLost
from statemachine import (
    ChunkReceived,
    ChunkRun,
    ClientLeft,
    Effect,
    Event,
    Failure,
    Save,
    SendChunk,
    SendPing,
    SessionRecord,
    StopUpstream,
    StreamSession,
    UpstreamFailed,
)

log = structlog.get_logger(__name__)

_OWN_FAULT = Failure("internal_error", "The service made a mistake and could not go on.")


class Relay:
    """One session with its surroundings.

    Args:
        session: the state machine; nobody else may call its `handle`.
        journal: where events are written down first.
        client: whom to write to.
        upstream: where the answer comes from.
        saver: the one persistence hook.
        limits: see `RelayLimits`.
        clock: what time it is, for the session.
        moments: told what becomes of the completion.

    Call `start` once, await `task` for aiohttp's response, and `post` whatever happens outside.

    Attributes:
        record: what is kept of it; None until that is committed, or late.
        save: done once it is committed.
        readers: who reads it, the first client included.
        prompt: what was asked.
    """

    def __init__(
        self,
        session: StreamSession,
        journal: Journal,
        client: ClientSide,
        upstream: Upstream,
        saver: Saver,
        limits: RelayLimits,
        clock: Clock,
        moments: Moments,
    ) -> None:
        self.session = session
        self.task: asyncio.Task[web.StreamResponse] | None = None
        self.record: SessionRecord | None = None
        self.save: asyncio.Future[None] | None = None
        self._journal = journal
        self._client = client
        self._upstream = upstream
        self._saver = saver
        self._limits = limits
        self._clock = clock
        self._timer = SessionTimer(session, client, clock, self.post)
        self._moments = moments
        self.prompt = Prompt(session, journal)
        self._completion_id = session.request.completion_id
        self._settles_chunks = journal.settles_chunks
        settle = partial(journal.settle, is_final=False) if self._settles_chunks else None
        self.readers = Readers(session, client, self.post, settle)
        self._effects: list[Effect] = []  # hardly ever more than two; an empty deque has 760 bytes
        self._carrying = Turn()
        self._milestones = 0
        self._has_first_token = self._is_running = self._interrupted = False
        self._ping_task: asyncio.Task[None] | None = None

    def start(self) -> "asyncio.Task[web.StreamResponse]":
        """Begin, in a task of its own."""
        self._moments.began()
        self.task = asyncio.create_task(self._run(), name=f"relay {self._completion_id}")
        return self.task

    def post(self, event: Event) -> None:
        """Let the session know of something that happened outside. Returns at once."""
        was_final = self.session.state.is_final
        if type(event) is ClientLeft and not was_final:
            self._moments.left_alone()
        self._admit(event)
        if self.session.state.is_final:
            if not was_final:
                self._interrupt()
            return
        self._note_milestones()
        self._carry_out_beside()

    def cut_off(self, event: Event) -> None:
        """End a session that runs, and show nothing of what waits to be shown."""
        self.readers.cut_off()
        self._effects = [each for each in self._effects if type(each) is not SendChunk]
        self.post(event)

    # --- the life ---------------------------------------------------------------------------

    async def _run(self) -> web.StreamResponse:
        self._is_running = True
        self._timer.set()
        try:
            await self._drive()
            await self._part()
            return self._client.response()
        except BaseException:
            self._client.abort()  # a client left without an end must not wait for one
            raise
        finally:
            self.readers.note_end(self.record)
            self._timer.stop()
            try:
                await self._upstream.close()
            finally:
                self._moments.closed()

    async def _drive(self) -> None:
        """Until the session has ended: read, admit, carry out."""
        session, has_begun = self.session, not self._settles_chunks
        while not session.state.is_final:
            try:
                if not has_begun:  # nobody is asked of whom whoever brings it back doesn't know
                    await self._journal.settle(is_final=False)
                    has_begun = True
                self._admit_all(await self._upstream.read(self))
                is_first_token = self._note_milestones()
                if not (self._carry_out_now() or session.state.is_final):
                    await self._carry_out()
                if is_first_token and self._is_attached and session.opened:
                    self._moments.sent_first_token()
            except asyncio.CancelledError:
                self._go_on_if_interrupted()
            except Exception:
                log.exception("relay failed")
                self._admit(UpstreamFailed(_OWN_FAULT))

    async def _part(self) -> None:
        """Carry out what the end asked for, waiting for no client; whatever breaks, it is saved."""
        self._client.stop_waiting()
        if self._ping_task is not None:
            self._ping_task.cancel()  # it may wait for a client, and everything would wait for it
        while self._effects:
            try:
                await self._carry_out()
            except asyncio.CancelledError:
                self._go_on_if_interrupted()
            except Exception:
                log.exception("effect failed")

    # --- chunks past the task (a reader may skip this) --------------------------------------

    def is_clear(self) -> bool:
        """See `Sink`: nothing waits, nothing has ended, and the client has room."""
        return (
            not (self._effects or self.session.state.is_final)
            and not self._carrying.is_taken
            and (self._client.is_clear() or not self.readers.has_client)
        )

    def take(self, event: ChunkReceived) -> None:
        """See `Sink`. What happens to chunks in `_drive` happens here too, in the call that brings
        them, while the task goes on waiting for the upstream."""
        session = self.session
        try:
            now = self._clock()
            self._journal.append(self._completion_id, (event,), now)
            effects = session.handle(event, now)
            if (audience := self.readers.audience) is not None:
                audience.note_more()
            if self._settles_chunks and not session.state.is_final:
                self._effects.extend(effects)
                if self._effects:
                    self._journal.when_settled(self._show_settled)
            elif len(effects) == 1 and type(effects[0]) is SendChunk and self.readers.has_client:
                self._client.send_now((effects[0].run,))
            else:
                self._effects.extend(effects)
                if not self._carry_out_now():
                    self._carry_out_beside()
            if session.milestones != self._milestones:
                self._note_milestones()
        except Exception:
            log.exception("relay failed")
            self.post(UpstreamFailed(_OWN_FAULT))

    def _show_settled(self) -> None:
        """What waited since `take` may be shown, unless it was by whoever ends or carries it."""
        if self.session.state.is_final or self._carrying.is_taken:
            return
        try:
            if not self._carry_out_now(is_settled=True):
                self._carry_out_beside()
        except Exception:
            log.exception("relay failed")
            self.post(UpstreamFailed(_OWN_FAULT))

    # --- events in --------------------------------------------------------------------------

    def _admit(self, event: Event) -> None:
        self._admit_all((event,))

    def _admit_all(self, events: Sequence[Event]) -> None:
        """The one place that every event passes: first the journal, then the session."""
        now = self._clock()
        self._journal.append(self._completion_id, events, now)
        for event in events:
            self._effects.extend(self.session.handle(event, now))
        if self.readers.audience is not None:
            self.readers.audience.note_more()

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

    # --- effects out ------------------------------------------------------------------------

    def _carry_out_now(self, *, is_settled: bool = False) -> bool:
        """Carry out the queue if it holds chunks alone and none of them has to wait; else nothing
        of it. True if nothing is left: the way of nearly every chunk.

        Args:
            is_settled: what is in it is as safe as configured.
        """
        effects = self._effects
        if not effects:
            return True
        runs = runs_of(effects)
        if len(runs) < len(effects):
            return False
        if self.readers.has_client:
            is_held_up = self._carrying.is_taken or (self._settles_chunks and not is_settled)
            if is_held_up or not (self.session.attached and self._client.is_clear()):
                return False
            self._client.send_now(runs)
        effects.clear()
        return True

    async def _carry_out(self) -> None:
        """Every effect that waits, in order. Cancelled, it leaves those that were not begun."""
        if self._carrying.is_taken:
            await self._carrying.wait()
        with self._carrying:
            while self._effects:
                await self._carry_out_next()

    def _carry_out_beside(self) -> None:
        """Have effects carried out while the relay's own task waits for the upstream: pings."""
        if not self._effects or self._carrying.is_taken:
            return
        if self._ping_task is None or self._ping_task.done():  # one not begun yet carries out all
            self._ping_task = asyncio.create_task(self._ping())

    async def _ping(self) -> None:
        """Carry out what waits, up to the session's end, which is left to the relay's own task."""
        if self._carrying.is_taken:
            await self._carrying.wait()
        try:
            with self._carrying:
                while self._effects and not self.session.state.is_final:
                    await self._carry_out_next()
        except Exception:
            log.exception("relay failed")
            if not self.session.state.is_final:
                self._admit(UpstreamFailed(_OWN_FAULT))
        if self.session.state.is_final:
            self._interrupt()

    async def _carry_out_next(self) -> None:
        # Wait until the journal is as safe as configured; most configurations wait for nothing.
        is_final = self.session.state.is_final
        if self._journal.settles_ends if is_final else self._settles_chunks:
            await self._journal.settle(is_final=is_final)
        effect = self._effects.pop(0)
        match effect:
            case SendChunk():
                runs = [effect.run, *runs_of(self._effects)]
                del self._effects[: len(runs) - 1]
                await self._send(runs)
            case StopUpstream():
                await self._upstream.close()
            case Save(record):
                await self._save(record)
            case _ if self._is_attached:
                try:
                    await self._client.tell(effect)
                    if type(effect) is SendPing:
                        self._moments.pinged()
                except ClientConnectionLost:
                    self._note_client_left()

    async def _send(self, runs: Sequence[ChunkRun]) -> None:
        if self._is_attached and self._client.is_clear():
            self._client.send_now(runs)
        elif self._is_attached:
            try:
                await self._client.send(runs)
            except ClientConnectionLost:
                self._note_client_left()

    @property
    def _is_attached(self) -> bool:
        """True while the client is there and wants to be told."""
        return self._client.is_reachable and self.session.attached

    def _note_client_left(self) -> None:
        """A write to the first client has failed. What follows is carried out by whoever wrote."""
        if self.readers.drop_client() and not self.session.state.is_final:
            self._moments.left_alone()
            self._admit(ClientLeft())
            self._note_milestones()

    async def _save(self, record: SessionRecord) -> None:
        """Hand the record over, and give its commit a moment before the client is told."""
        record = self.prompt.put_back(record)
        self._moments.ended(record)
        self.save = save = self._saver.save(record)
        if not await is_done_within(save, self._limits.commit_timeout_seconds):
            log.warning("commit is late", completion_id=record.completion_id)
        self._moments.watch_save(save)
        self.record = record
        self.readers.note_end(record)

    # --- time -------------------------------------------------------------------------------

    def _note_milestones(self) -> bool:
        """Announce the first token, and say so; and something may be due earlier than the timer knows."""
        session = self.session
        if session.milestones == self._milestones:
            return False
        self._milestones = session.milestones
        first_at = None if self._has_first_token else session.first_token_at
        if first_at is not None:
            self._has_first_token = True
            self._moments.reached_first_token((first_at - session.request.created_at) * 1000)
            self.prompt.let_go()
        self._timer.hasten()
        return first_at is not None
