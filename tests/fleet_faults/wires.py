"""The ways between a replica and what it needs, which can be cut: `Wires`.

A cut drops what is sent and says nothing: no RST, no FIN, no ICMP. Two forms: `Proxied`, proxies that
stop passing anything on, works everywhere; `tests.fleet_faults.namespaces` gives each replica a network of
its own. `Loopback` has nothing to cut, and costs nothing.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from attrs import frozen

from tests.ways import Way

REDIS, POSTGRES, CLIENTS = "redis", "postgres", "clients"
Address = tuple[str, int]


@frozen
class Place:
    """Where a replica runs, and what it reaches from there.

    Attributes:
        host: where it listens.
        command: what stands before the program.
        redis_url, dsn, backend_url: as it has to call them.
    """

    host: str
    command: Sequence[str]
    redis_url: str
    dsn: str
    backend_url: str


class Wires(Protocol):
    """All replicas' ways.

    Attributes:
        how: what a cut is here, for whoever reads the table.
    """

    how: str

    async def place(self, name: str) -> Place:
        """A replica's place, the same each time."""

    def address(self, name: str, served: Address) -> Address:
        """Where clients find a replica that listens there."""

    def cut(self, name: str, what: str) -> None:
        """From now on nothing passes between a replica and this."""

    def mend(self, name: str, what: str) -> None:
        """It passes again, and what was sent meanwhile with it."""

    async def close(self) -> None:
        """Release every resource."""


@frozen
class Ends:
    """What replicas need, where it really is.

    Attributes:
        redis_url: of the engine.
        dsn: of the database.
        sockets: the directory of its Unix socket.
        backend_url: of the backend.
    """

    redis_url: str
    dsn: str
    sockets: Path
    backend_url: str


class Loopback:
    """Everything on one machine, and no cuts."""

    how = "nothing cut"

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    async def place(self, name: str) -> Place:
        ends = self._ends
        return Place("127.0.0.1", (), ends.redis_url, ends.dsn, ends.backend_url)

    def address(self, name: str, served: Address) -> Address:
        return served

    def cut(self, name: str, what: str) -> None:
        raise AssertionError("this scenario didn't ask for wires that can be cut")

    def mend(self, name: str, what: str) -> None:
        raise AssertionError("this scenario didn't ask for wires that can be cut")

    async def close(self) -> None:
        pass


class Proxied:
    """A proxy on each way of each replica."""

    how = "proxies that drop"

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._links: dict[tuple[str, str], Link] = {}

    async def place(self, name: str) -> Place:
        ends = self._ends
        targets: dict[str, Address | Path | None] = {
            REDIS: address_in(ends.redis_url),
            POSTGRES: ends.sockets / ".s.PGSQL.5432",
            CLIENTS: None,
        }
        for what, target in targets.items():
            if (name, what) not in self._links:
                self._links[name, what] = await Link(target).start()
        redis, postgres = self._links[name, REDIS], self._links[name, POSTGRES]
        return Place(
            "127.0.0.1",
            (),
            f"redis://127.0.0.1:{redis.port}/0",
            f"postgresql://postgres@127.0.0.1:{postgres.port}/postgres",
            ends.backend_url,
        )

    def address(self, name: str, served: Address) -> Address:
        link = self._links[name, CLIENTS]
        link.target = served
        return "127.0.0.1", link.port

    def cut(self, name: str, what: str) -> None:
        self._links[name, what].passes.clear()

    def mend(self, name: str, what: str) -> None:
        self._links[name, what].passes.set()

    async def close(self) -> None:
        for link in self._links.values():
            await link.stop()


def address_in(url: str) -> Address:
    """A URL's host and port."""
    host, _, port = url.partition("//")[2].partition("/")[0].rpartition(":")
    return host, int(port)


class Link(Way):
    """A way on which bytes pass or wait.

    Attributes:
        passes: cleared, nothing passes, ends of connections included; set again, what waited does.
    """

    def __init__(self, target: Address | Path | None, host: str = "127.0.0.1") -> None:
        super().__init__(target, host)
        self.passes = asyncio.Event()
        self.passes.set()

    async def open(self) -> None:
        await self.passes.wait()

    async def hold(self) -> None:
        await self.passes.wait()
