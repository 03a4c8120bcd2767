"""A way to a server that can begin to swallow everything: a network that drops, seen from a client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class BlackHole:
    """Passes on what is sent to a port of this machine, until it swallows: then nothing gets through in
    either direction, no connection is refused and none ends.

    Attributes:
        port: where it listens.
        swallows: whether it does; to be set.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.swallows = False
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def url(self) -> str:
        """Of the Redis behind it."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        self._writers.append(writer)
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.append(there)
        await asyncio.gather(self._pump(reader, there), self._pump(there_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if not self.swallows:
                    writer.write(data)
                    await writer.drain()
        except ConnectionError:
            pass
        finally:
            if not self.swallows:
                writer.close()

    def close(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def black_hole(target: int) -> AsyncIterator[BlackHole]:
    """One before this port meanwhile."""
    hole = BlackHole(target)
    server = await asyncio.start_server(hole.carry, "127.0.0.1", 0)
    hole.port = server.sockets[0].getsockname()[1]
    try:
        yield hole
    finally:
        server.close()
        hole.close()
        await asyncio.sleep(0.01)
