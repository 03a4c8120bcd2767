"""Chooses which of a database's network addresses to connect to. No driver here.

libpq can choose, but not for an event loop. It looks host names up synchronously, so that a slow
name server would stop every stream. Where a name has several addresses (`localhost` has two on most
machines) it tries the next one on a new socket; aiopg 1.4.0 doesn't notice, and waits for the old
socket until it times out (`test_a_host_with_several_addresses_is_reached` would show the end of
that).
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from itertools import zip_longest

from db.store import StoreUnavailable

PROBE_TIMEOUT_SECONDS = 2.0
"""How long one of several addresses may take to accept a connection before the next is tried."""

Resolve = Callable[[str, str], Awaitable[list[str]]]


def shown(parts: Mapping[str, str]) -> str:
    """The address for logs and messages, without user and password."""
    host = parts.get("host") or parts.get("hostaddr") or "the default socket"
    name = parts.get("dbname") or parts.get("user") or ""
    return f"{host}:{parts.get('port') or 5432}/{name}"


async def _resolve(host: str, port: str) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Route:
    """The way to one database: libpq's `host`, `hostaddr` and `port`, as last chosen.

    Raises:
        StoreUnavailable: the ports and the hosts don't go together.
    """

    def __init__(self, parts: Mapping[str, str], resolve: Resolve = _resolve) -> None:
        self.host = parts.get("host") or ""
        self.hostaddr = parts.get("hostaddr") or ""
        self.port = parts.get("port") or "5432"
        self._resolve = resolve
        # libpq takes lists of each, separated by commas: one port for all hosts, or one for each.
        hosts, ports = self.host.split(","), self.port.split(",")
        addresses = self.hostaddr.split(",") if self.hostaddr else []
        if len(ports) not in (1, max(len(hosts), len(addresses))):
            raise StoreUnavailable(
                f"The database's address has {len(ports)} ports; "
                "give one port for all hosts, or one for each, in DATABASE_URL"
            )
        self._given = list(zip_longest(hosts, addresses, ports))
        sockets = any(not host or host[0] in "/@" for host in self.host.split(","))
        single = len(self._given) == 1
        self.is_fixed = (sockets and not self.hostaddr) or (bool(self.hostaddr) and single)
        """True of Unix sockets, a given address and libpq's defaults: there is nothing to choose."""

    async def choose(self) -> None:
        """Settle on the first address that accepts connections; if none does, on the first.

        Raises:
            StoreUnavailable: no host's name is known.
        """
        if self.is_fixed:
            return
        candidates: list[tuple[str, str, str]] = []
        for host, address, port in self._given:
            port = port or self._given[0][2]
            try:
                found = [address] if address else await self._resolve(host, port)
            except (OSError, UnicodeError):  # the latter of a name with an empty or a long part
                continue
            candidates.extend((host or "", each, port) for each in found)
        if not candidates:
            names = ", ".join(host for host, *_ in self._given)
            raise StoreUnavailable(
                f"The database's host name isn't known: {names}; "
                "check DATABASE_URL and the name server"
            )
        self.host, self.hostaddr, self.port = candidates[0]
        if len(candidates) > 1:
            for host, address, port in candidates:
                if await _accepts(address, port):
                    self.host, self.hostaddr, self.port = host, address, port
                    return


async def _accepts(address: str, port: str) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            _, writer = await asyncio.open_connection(address, int(port))
            writer.close()
            await writer.wait_closed()
    except (OSError, ValueError):
        return False
    return True
