"""A connection to a server that a test plays, and whoever reads and listens at our end of it."""

import asyncio
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

from aiohttp.client_proto import ResponseHandler

from service.agents.openai.lane import LaneProtocol

STATUS = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
HEAD = STATUS + CHUNKED + b"\r\n"
LAST = b"0\r\n\r\n"
EVENT = b"data: {}\n\n"
ALL, NONE = [99], [0]


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class FakeTransport(asyncio.Transport):
    """Notes only that it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Line:
    """A connection to a server that the test plays, and somebody who reads and listens.

    Attributes:
        log: what came, in order of arrival, from both the listener and the reader.
        listened: what of it the listener took.
    """

    def __init__(self, takes: Sequence[int], kind: type[ResponseHandler] = LaneProtocol) -> None:
        self.protocol: Any = kind(asyncio.get_running_loop())
        self.transport = FakeTransport()
        self.protocol.connection_made(self.transport)
        self.log: list[bytes] = []
        self.listened: list[bytes] = []
        self._takes = cycle(takes)
        self.ask()

    def ask(self) -> None:
        """A request is sent, and its response awaited."""
        self.protocol.set_response_params(read_until_eof=True)
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        _, body = await self.protocol.read()
        while True:
            self.protocol.listener = self._listen
            try:
                data = await body.readany()
            finally:
                self.protocol.listener = None
            if not data:
                return
            self.log.append(data)

    def _listen(self, pieces: Sequence[bytes]) -> int:
        assert pieces
        count = min(next(self._takes), len(pieces))
        self.log += pieces[:count]
        self.listened += pieces[:count]
        return count

    async def receive(self, pieces: Iterable[bytes], turns: Iterable[int] = (4,)) -> None:
        """Pieces arrive; after each the event loop turns this many times."""
        for piece, count in zip(pieces, cycle(turns), strict=False):
            if self.transport.is_closed:
                return
            self.protocol.data_received(piece)
            for _ in range(count):
                await asyncio.sleep(0)

    async def lose(self, error: Exception | None = None) -> str:
        """The connection is lost. How reading ended, if it did."""
        self.protocol.connection_lost(error)
        for _ in range(4):
            await asyncio.sleep(0)
        if not self.reading.done():
            self.reading.cancel()
            await asyncio.wait((self.reading,))
            return "never"
        broken = self.reading.exception()
        return "well" if broken is None else type(broken).__name__

    @property
    def body(self) -> bytes:
        return b"".join(self.log)


async def answer(
    pieces: Sequence[bytes],
    takes: Sequence[int] = ALL,
    turns: Sequence[int] = (4,),
    kind: type[ResponseHandler] = LaneProtocol,
) -> tuple[bytes, str, Line]:
    """The body of a response that arrives in these pieces, and how its reading ends, at the latest
    when the connection is lost."""
    line = Line(takes, kind)
    await line.receive(pieces, turns)
    ending = await line.lose()
    return line.body, ending, line
