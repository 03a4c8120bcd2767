"""A way of TCP to a server, on which something may happen to the bytes: `Way`, for whatever stands between
a service and what it needs."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Self

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Way:
    """From a port of this machine to a target.

    Attributes:
        target: an address, or a Unix socket; None: nowhere yet.
    """

    def __init__(self, target: tuple[str, int] | Path | None, host: str = "127.0.0.1") -> None:
        self.target = target
        self._host = host
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, port)
        return self

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Listen no more, and end all connections."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    # --- what may be another's --------------------------------------------------------------

    async def open(self) -> None:
        """Return once a connection that was taken may be passed on."""

    async def carry(self, client: Streams, target: Streams) -> None:
        """Serve a connection, until either side ends it."""
        await first_of(self.passed(client[0], target[1]), self.passed(target[0], client[1]))

    async def hold(self) -> None:
        """Return once the bytes, or the end, that have just come may pass."""

    def end(self, writer: asyncio.StreamWriter) -> None:
        """End a client's connection."""
        writer.transport.abort()

    # --- the way ----------------------------------------------------------------------------

    async def passed(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Pass on what comes from one side, to its end."""
        while True:
            data = await source.read(65536)
            await self.hold()
            if not data:
                return
            sink.write(data)
            await sink.drain()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.open()
            target = await self._connect()
            try:
                await self.carry((reader, writer), target)
            finally:
                target[1].transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self.end(writer)
            self._tasks.discard(task)

    async def _connect(self) -> Streams:
        if isinstance(self.target, Path):
            return await asyncio.open_unix_connection(str(self.target))
        if self.target is None:
            raise ConnectionRefusedError
        return await asyncio.open_connection(*self.target)


async def first_of(*each: Awaitable[None]) -> None:
    """Return once one of these is over; the others are given up."""
    tasks = {asyncio.ensure_future(one) for one in each}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
