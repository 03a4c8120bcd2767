"""Carries out a session's effects: towards the client, the upstream and the saver.

Called by `service.stream.relay` alone. The rules:

1. Effects are carried out in their order, by one caller at a time; nothing else writes to the
   client, and nothing else calls the persistence hook.
2. Chunks that wait together leave in one write.
3. What the journal was asked to make safe first is safe first.
4. A client that can't be written to is reported (`ClientLeft`) and sent nothing more. After the
   session's end it may hold up its own farewell for some seconds, and nothing else.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import structlog
from aiohttp import web
from attrs import frozen

from service.clock import Clock
from service.stream.attempts import Upstream
from service.stream.writers import ClientConnectionLost, Writer
from service.telemetry import log_completion
from statemachine import (
    ClientLeft,
    Effect,
    Event,
    OpenStream,
    Save,
    SendChunk,
    SendDone,
    SendError,
    SendPing,
    SendText,
    SessionRecord,
    StopUpstream,
    StreamSession,
)

log = structlog.get_logger(__name__)

_CHUNKS = (SendChunk, SendText)


class Journal(Protocol):
    """What happened, written down before it is shown; `db.journal.Journal` is the real one."""

    def append(self, completion_id: str, events: Sequence[Event], now: float) -> None:
        """Write events down. Returns once the kernel has them; never raises."""

    @property
    def settles_chunks(self) -> bool:
        """True if even before a session's end `settle` has something to wait for."""

    @property
    def settles_ends(self) -> bool:
        """True if `settle` has something to wait for at a session's end."""

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


class Delivery:
    """The effects of one session that wait to be carried out.

    Args:
        session, journal, writer, saver, limits, clock: as for `service.stream.relay.Relay`.
        report: told that the client has left.

    Attributes:
        upstream: to be stopped on request; set before anything is carried out.
        writing_since: when the write that waits for the client began, in POSIX seconds, or None.
        holds_upstream: chunks are being written, and the upstream isn't read meanwhile.
        upstream_free_at: when the last such write came to its end.
    """

    def __init__(
        self,
        session: StreamSession,
        journal: Journal | None,
        writer: Writer,
        saver: Saver,
        limits: RelayLimits,
        clock: Clock,
        report: Callable[[Event], None],
    ) -> None:
        self.upstream: Upstream | None = None
        self.writing_since: float | None = None
        self.holds_upstream = False
        self.upstream_free_at = 0.0
        self._session = session
        self._journal = journal
        self._settles_chunks = journal is not None and journal.settles_chunks
        self._settles_ends = journal is not None and journal.settles_ends
        self._writer = writer
        self._saver = saver
        self._limits = limits
        self._clock = clock
        self._report = report
        self._effects: list[Effect] = []  # hardly ever more than two; an empty deque has 760 bytes
        self._carrying = asyncio.Lock()
        self._is_reachable = True
        self._write_was_broken = False

    def add(self, effects: Iterable[Effect]) -> None:
        """Put effects at the end of the queue."""
        self._effects.extend(effects)

    @property
    def has_effects(self) -> bool:
        return bool(self._effects)

    @property
    def is_waiting_for_a_carrier(self) -> bool:
        """True if there are effects and nobody is carrying them out."""
        return bool(self._effects) and not self._carrying.locked()

    def carry_out_now(self) -> bool:
        """Do what `carry_out` does, if nothing of it needs waiting; else do nothing of it.

        True if nothing is left. It is the way of nearly every chunk.
        """
        effects = self._effects
        if not effects:
            return True
        for effect in effects:
            if type(effect) is not SendText and type(effect) is not SendChunk:
                return False
        if not self._can_send_now():
            return False
        self._writer.send_chunks_now(effects)  # type: ignore[arg-type]
        effects.clear()
        return True

    def is_clear(self) -> bool:
        """True if text that came now could be sent now: nothing waits, nothing has ended."""
        return not (self._effects or self._session.state.is_final) and self._can_send_now()

    def send_now(self, effects: Sequence[Effect]) -> bool:
        """Carry out what follows from text, right after `is_clear` was true. True if nothing is
        left."""
        if len(effects) == 1 and type(effects[0]) is SendText:
            self._writer.send_chunks_now(effects)  # type: ignore[arg-type]
            return True
        self.add(effects)
        return self.carry_out_now()

    def _can_send_now(self) -> bool:
        return (
            self._is_reachable
            and self._session.attached
            and not self._settles_chunks
            and not self._carrying.locked()
            and self._writer.is_clear()
        )

    async def carry_out(self) -> None:
        """Every effect that waits, in order. Cancelled, it leaves those that were not begun."""
        async with self._carrying:
            while self._effects:
                await self._carry_out_next()

    async def carry_out_until_the_end(self) -> None:
        """The same, but what ends the session is left to the relay's own task."""
        async with self._carrying:
            while self._effects and not self._session.state.is_final:
                await self._carry_out_next()

    @property
    def _is_attached(self) -> bool:
        """True while the client is there and wants to be told."""
        return self._is_reachable and self._session.attached

    def put_a_stalled_client_last(self) -> None:
        """If a write was broken off, let the record not wait for that client."""
        if self._write_was_broken:
            self._effects.sort(key=_is_for_the_client)

    def abort(self) -> None:
        """Cut the client's connection now."""
        self._writer.abort()

    async def close(self) -> web.StreamResponse:
        """End the body; the response for the handler to return."""
        if self._is_reachable and self._writer.is_clear():
            return await self._writer.close()
        if self._is_reachable:
            try:
                async with asyncio.timeout(self._limits.farewell_seconds):
                    return await self._writer.close()
            except TimeoutError:
                pass
        self._writer.abort()
        return await self._writer.close()

    def let_go(self) -> None:
        """The last call. Without the ring of relay, delivery and upstream all that a stream held is
        free at once; its memory is used again while the caches still know it."""
        self.upstream = None
        self._report = lambda _: None

    async def _carry_out_next(self) -> None:
        is_final = self._session.state.is_final
        if self._journal is not None and (self._settles_ends if is_final else self._settles_chunks):
            await self._journal.settle(is_final=is_final)
        effect = self._effects.pop(0)
        match effect:
            case SendChunk() | SendText():
                chunks = [effect]
                while self._effects and isinstance(self._effects[0], _CHUNKS):
                    chunks.append(self._effects.pop(0))  # type: ignore[arg-type]
                if self._is_attached and self._writer.is_clear():
                    self._writer.send_chunks_now(chunks)
                else:
                    await self._send(effect, chunks)
            case StopUpstream():
                assert self.upstream is not None
                await self.upstream.close()
            case Save(record):
                await self._save(record)
            case _:
                await self._send(effect)

    async def _send(self, effect: Effect, chunks: Sequence[SendChunk | SendText] = ()) -> None:
        """Write to the client, if it is there; find out if it isn't.

        Args:
            chunks: to be written together, if that is what the effect asks for; itself the first.
        """
        if not self._is_attached:
            return
        self.writing_since = self._clock()
        self.holds_upstream = bool(chunks)
        try:
            # Neither opening nor `[DONE]`, which leaves with the body's end, waits for the client.
            if self._session.state.is_final and not isinstance(effect, (OpenStream, SendDone)):
                async with asyncio.timeout(self._limits.farewell_seconds):
                    await self._write(effect, chunks)
            else:
                await self._write(effect, chunks)
        except asyncio.CancelledError:
            self._write_was_broken = True
            raise
        except TimeoutError:
            self._is_reachable = False
        except ClientConnectionLost:
            self._is_reachable = False
            self._report(ClientLeft())
        finally:
            self.writing_since = None
            if self.holds_upstream:  # a ping doesn't: it must not excuse the model's silence
                self.holds_upstream = False
                self.upstream_free_at = self._clock()

    async def _write(self, effect: Effect, chunks: Sequence[SendChunk | SendText]) -> None:
        match effect:
            case SendChunk() | SendText():
                await self._writer.send_chunks(chunks)
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
        saved = self._saver.save(record)
        log_completion(record)
        done, _ = await asyncio.wait((saved,), timeout=self._limits.commit_timeout_seconds)
        if not done:
            log.warning("commit is late", completion_id=record.completion_id)


def _is_for_the_client(effect: Effect) -> bool:
    return not isinstance(effect, (StopUpstream, Save))
