"""A collector of spans that takes everything and looks at nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_TAKEN = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"


class Collector:
    """Counts what it was sent.

    Attributes:
        port: where it listens.
        posts, size: how many exports came, and their bytes.
    """

    def __init__(self) -> None:
        self.port = 0
        self.posts = self.size = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        with suppress(OSError, EOFError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                self.size += len(await reader.readexactly(int(length)))
                self.posts += 1
                writer.write(_TAKEN)
        writer.close()


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """One that listens."""
    running = Collector()
    async with await asyncio.start_server(running.take, "127.0.0.1", 0) as server:
        running.port = server.sockets[0].getsockname()[1]
        yield running
