"""One client's side of a running answer: what is written to it, and whether it can be.

A relay may have none, one or several of these. The rules:

1. One call at a time; whoever writes first waits for nobody.
2. A client that can't be written to raises `ClientConnectionLost` and is written to no more.
3. After the session's end nothing waits for it: what is left goes to its connection, which also
   gives up a client that takes nothing (`service.edge.connections`).
"""

from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from aiohttp import web

from service.clock import Clock
from service.stream.writers import ClientConnectionLost, Writer
from statemachine import ChunkRun, Effect, OpenStream, SendChunk, SendDone, SendError, SendPing


class ClientSide:
    """A client's connection, seen from the relay.

    Args:
        writer: turns effects into bytes.
        clock: what time it is, in POSIX seconds.

    Attributes:
        is_clear: true if chunks could be sent now without waiting. Never raises.
        send_now: sends chunks right after `is_clear` was true. Raises only ValueError, for a chunk that
            can't be encoded.
        is_reachable: False once a write has failed.
        holds_upstream: chunks are being written, and the upstream isn't read meanwhile.
        upstream_free_at: when the last such write came to its end.
    """

    __slots__ = (
        "_clock",
        "_writer",
        "holds_upstream",
        "is_clear",
        "is_reachable",
        "send_now",
        "upstream_free_at",
    )

    def __init__(self, writer: Writer, clock: Clock) -> None:
        self.is_reachable = True
        self.holds_upstream = False
        self.upstream_free_at = 0.0
        self._writer = writer
        self._clock = clock
        # The writer's own: they are called for each chunk.
        self.is_clear = writer.is_clear
        self.send_now = writer.send_chunks_now

    async def send(self, runs: Sequence[ChunkRun]) -> None:
        """Send chunks in one write; returns when the client has room for more.

        Raises ClientConnectionLost. Cancelling it leaves the bytes already taken in order.
        """
        self.holds_upstream = True  # a ping doesn't: it must not excuse the model's silence
        try:
            await self._write(self._writer.send_chunks(runs))
        finally:
            self.holds_upstream = False
            self.upstream_free_at = self._clock()

    async def tell(self, effect: Effect) -> None:
        """Carry out one of the other effects that are meant for the client; the same errors."""
        match effect:
            case OpenStream():
                await self._write(self._writer.open())
            case SendPing():
                await self._write(self._writer.ping())
            case SendError(failure):
                await self._write(self._writer.send_error(failure))
            case SendDone(record):
                await self._write(self._writer.send_done(record))

    def stop_waiting(self) -> None:
        """The session has ended: from now on no write waits until the client has room."""
        self._writer.stop_waiting()

    def leave(self) -> None:
        """Its connection is gone: from now on nothing is written to it."""
        self.is_reachable = False
        self.is_clear = _never

    def abort(self) -> None:
        """Cut the connection now; a write that waits raises `ClientConnectionLost`."""
        self._writer.abort()

    def response(self) -> web.StreamResponse:
        """The response for the handler to return, whose body aiohttp then ends. The last call."""
        return self._writer.response()

    async def _write(self, writing: Coroutine[Any, Any, None]) -> None:
        try:
            await writing
        except ClientConnectionLost:
            self.leave()
            raise


def _never() -> bool:
    return False


def runs_of(effects: Iterable[Effect]) -> list[ChunkRun]:
    """The runs of the chunks that these effects begin with."""
    runs: list[ChunkRun] = []
    for effect in effects:
        if not isinstance(effect, SendChunk):
            break
        runs.append(effect.run)
    return runs
