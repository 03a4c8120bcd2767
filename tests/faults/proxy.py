"""A TCP proxy before PostgreSQL, for what no server does at a command: a black hole, a reset in the
middle of a transaction, and a commit that is carried out while its answer is lost."""

import asyncio
import contextlib
import enum
import socket
import struct
from pathlib import Path


class Weather(enum.Enum):
    """What becomes of the bytes."""

    FINE = "fine"
    BLACK_HOLE = "black hole"
    """Connections are taken, nothing is ever passed on, in either direction."""
    RESET = "reset"
    """Every connection is reset when its next bytes come."""
    COMMITS_LOST = "commit's answer lost"
    """A COMMIT reaches the server; its answer reaches nobody, the connection is reset."""


class Proxy:
    """From a port to a Unix socket. `weather` may change at any time and counts for the next bytes."""

    def __init__(self, dsn: str, sockets: Path, port: int = 5432) -> None:
        self.weather = Weather.FINE
        self._target = sockets / f".s.PGSQL.{port}"
        self._dsn = dsn
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.commits_lost = 0

    async def start(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    @property
    def dsn(self) -> str:
        """The database's address, through here."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"postgresql://postgres@127.0.0.1:{port}/postgres"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            _reset(writer)
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(str(self._target))
        forgetting = asyncio.Event()

        async def there() -> None:
            while data := await reader.read(65536):
                await self._hold()
                if self.weather is Weather.COMMITS_LOST and b"COMMIT" in data:
                    forgetting.set()
                to_server.write(data)
                await to_server.drain()

        async def back() -> None:
            while data := await from_server.read(65536):
                await self._hold()
                if forgetting.is_set():
                    self.commits_lost += 1
                    return
                writer.write(data)
                await writer.drain()

        ways = {asyncio.ensure_future(there()), asyncio.ensure_future(back())}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_server.transport.abort()

    async def _hold(self) -> None:
        if self.weather is Weather.RESET:
            raise ConnectionResetError
        while self.weather is Weather.BLACK_HOLE:
            await asyncio.sleep(0.02)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
