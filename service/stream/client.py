"""One client's side of a running answer: what is written to it, and whether it can be.

A relay may have none, one or several of these. The rules:

1. One call at a time; whoever writes first waits for nobody.
2. A client that can't be written to raises `ClientConnectionLost` and is written to no more.
3. After the session's end it may hold up its own farewell for some seconds, and nothing else.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from aiohttp import web

from service.clock import Clock
from service.stream.writers import ClientConnectionLost, Writer
from statemachine import ChunkRun, Effect, OpenStream, SendDone, SendError, SendPing


class ClientSide:
    """A client's connection, seen from the relay.

    Args:
        writer: turns effects into bytes.
        clock: what time it is, in POSIX seconds.
        farewell_seconds: the longest that a client may take for the end of its answer.

    Attributes:
        is_reachable: False once a write has failed.
        was_interrupted: a write was cancelled because the client took its time.
        writing_since: when the write that waits for the client began, in POSIX seconds, or None.
        holds_upstream: chunks are being written, and the upstream isn't read meanwhile.
        upstream_free_at: when the last such write came to its end.
    """

    __slots__ = (
        "_clock",
        "_farewell_seconds",
        "_is_leaving",
        "_writer",
        "holds_upstream",
        "is_reachable",
        "upstream_free_at",
        "was_interrupted",
        "writing_since",
    )

    def __init__(self, writer: Writer, clock: Clock, farewell_seconds: float) -> None:
        self.is_reachable = True
        self.was_interrupted = False
        self.writing_since: float | None = None
        self.holds_upstream = False
        self.upstream_free_at = 0.0
        self._writer = writer
        self._clock = clock
        self._farewell_seconds = farewell_seconds
        self._is_leaving = False

    def is_clear(self) -> bool:
        """True if chunks could be sent now without waiting. Never raises."""
        return self.is_reachable and self._writer.is_clear()

    def send_now(self, runs: Sequence[ChunkRun]) -> None:
        """Send chunks right after `is_clear` was true. Raises only ValueError, for a chunk that
        can't be encoded."""
        self._writer.send_chunks_now(runs)

    async def send(self, runs: Sequence[ChunkRun]) -> None:
        """Send chunks in one write; returns when the client has room for more.

        Raises ClientConnectionLost. Cancelling it leaves the bytes already taken in order.
        """
        self.holds_upstream = True  # a ping doesn't: it must not excuse the model's silence
        try:
            await self._write(self._writer.send_chunks(runs), is_brief=False)
        finally:
            self.holds_upstream = False
            self.upstream_free_at = self._clock()

    async def tell(self, effect: Effect) -> None:
        """Carry out one of the other effects that are meant for the client; the same errors."""
        match effect:
            case OpenStream():
                await self._write(self._writer.open(), is_brief=True)
            case SendPing():
                await self._write(self._writer.ping(), is_brief=False)
            case SendError(failure):
                await self._write(self._writer.send_error(failure), is_brief=False)
            case SendDone(record):
                # It leaves with the body's end, in `close`.
                await self._write(self._writer.send_done(record), is_brief=True)

    def begin_farewell(self) -> None:
        """The session has ended: from now on the client's slowness is bounded."""
        self._is_leaving = True

    def abort(self) -> None:
        """Cut the connection now; a write that waits raises `ClientConnectionLost`."""
        self._writer.abort()

    async def close(self) -> web.StreamResponse:
        """End the body; the response for the handler to return."""
        if self.is_clear():
            return await self._writer.close()
        if self.is_reachable:
            try:
                async with asyncio.timeout(self._farewell_seconds):
                    return await self._writer.close()
            except TimeoutError:
                pass
        self._writer.abort()
        return await self._writer.close()

    async def _write(self, writing: Coroutine[Any, Any, None], *, is_brief: bool) -> None:
        """Args: is_brief: it waits for no client, so that it needs no deadline."""
        self.writing_since = self._clock()
        try:
            if self._is_leaving and not is_brief:
                async with asyncio.timeout(self._farewell_seconds):
                    await writing
            else:
                await writing
        except asyncio.CancelledError:
            self.was_interrupted = True
            raise
        except (ClientConnectionLost, TimeoutError) as error:
            self.is_reachable = False
            raise ClientConnectionLost from error
        finally:
            self.writing_since = None
