"""A way to a server that can begin to swallow everything: a network that drops, seen from a client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.ways import Way


class BlackHole(Way):
    """Passes on what is sent to a port of this machine, until it swallows: then nothing gets through in
    either direction, no connection is refused and none ends.

    Attributes:
        swallows: whether it does; to be set.
    """

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", target))
        self.swallows = False

    @property
    def url(self) -> str:
        """Of the Redis behind it."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def passed(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if not self.swallows:
                sink.write(data)
                await sink.drain()
        if self.swallows:
            await asyncio.Event().wait()  # nor does the end


@asynccontextmanager
async def black_hole(target: int) -> AsyncIterator[BlackHole]:
    """One before this port meanwhile."""
    hole = await BlackHole(target).start()
    try:
        yield hole
    finally:
        await hole.stop()
