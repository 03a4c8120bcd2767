"""A TCP proxy before PostgreSQL, for what no server does at a command: a black hole, a reset in the
middle of a transaction, and a commit that is carried out while its answer is lost."""

import asyncio
import contextlib
import enum
import socket
import struct
from pathlib import Path

from tests.ways import Streams, Way, first_of


class Weather(enum.Enum):
    """What becomes of the bytes."""

    FINE = "fine"
    BLACK_HOLE = "black hole"
    """Connections are taken, nothing is ever passed on, in either direction."""
    RESET = "reset"
    """Every connection is reset when its next bytes come."""
    COMMITS_LOST = "commit's answer lost"
    """A COMMIT reaches the server; its answer reaches nobody, the connection is reset."""


class Proxy(Way):
    """From a port to a Unix socket. `weather` may change at any time and counts for the next bytes.

    Attributes:
        commits_lost: how many commits were carried out whose answers reached nobody.
    """

    def __init__(self, sockets: Path, port: int = 5432) -> None:
        super().__init__(sockets / f".s.PGSQL.{port}")
        self.weather = Weather.FINE
        self.commits_lost = 0

    @property
    def dsn(self) -> str:
        """The database's address, through here."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    async def carry(self, client: Streams, target: Streams) -> None:
        (reader, writer), (from_server, to_server) = client, target
        forgetting = asyncio.Event()

        async def there() -> None:
            while data := await reader.read(65536):
                await self.hold()
                if self.weather is Weather.COMMITS_LOST and b"COMMIT" in data:
                    forgetting.set()
                to_server.write(data)
                await to_server.drain()

        async def back() -> None:
            while data := await from_server.read(65536):
                await self.hold()
                if forgetting.is_set():
                    self.commits_lost += 1
                    return
                writer.write(data)
                await writer.drain()

        await first_of(there(), back())

    async def hold(self) -> None:
        if self.weather is Weather.RESET:
            raise ConnectionResetError
        while self.weather is Weather.BLACK_HOLE:
            await asyncio.sleep(0.02)

    def end(self, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        super().end(writer)
