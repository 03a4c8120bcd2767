"""Chooses which of a database's network addresses to connect to, in what order. No driver here.

libpq can choose, but not for an event loop. It looks host names up synchronously, so that a slow
name server would stop every stream. Where a name has several addresses (`localhost` has two on most
machines), or the address several hosts, it tries the next one on a new socket; aiopg 1.4.0 doesn't
notice, and waits for the old socket until it times out
(`test_a_host_with_several_addresses_is_reached` would show the end of that). So libpq is given one
address at a time, and the order is its own: that of the list, by `load_balance_hosts=random` any;
`target_session_attrs=prefer-standby` goes through the list twice.
"""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from itertools import zip_longest

from attrs import evolve, frozen

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


@frozen
class Way:
    """libpq's parameters for one attempt at one address; "" stands for its defaults."""

    host: str
    hostaddr: str
    port: str
    target_session_attrs: str

    @property
    def is_socket(self) -> bool:
        """True if libpq goes to a Unix socket."""
        return not self.hostaddr and (not self.host or self.host[0] in "/@")


class Route:
    """The ways to one database, from libpq's `host`, `hostaddr` and `port`.

    Raises:
        StoreUnavailable: the ports and the hosts don't go together.
    """

    def __init__(self, parts: Mapping[str, str], resolve: Resolve = _resolve) -> None:
        self._resolve = resolve
        self._attributes = parts.get("target_session_attrs") or "any"
        self._shuffles = parts.get("load_balance_hosts") == "random"
        # libpq takes lists of each, separated by commas: one port for all hosts, or one for each.
        hosts, ports = (parts.get("host") or "").split(","), (parts.get("port") or "").split(",")
        addresses = parts["hostaddr"].split(",") if parts.get("hostaddr") else []
        if len(ports) not in (1, max(len(hosts), len(addresses))):
            raise StoreUnavailable(
                f"The database's address has {len(ports)} ports; "
                "give one port for all hosts, or one for each, in DATABASE_URL"
            )
        self._given = [
            Way(host or "", address or "", (ports[0] if port is None else port) or "5432", "any")
            for host, address, port in zip_longest(hosts, addresses, ports)
        ]
        (first, *others) = self._given
        self.is_fixed = (
            not others
            and (first.is_socket or bool(first.hostaddr))
            and self._attributes != "prefer-standby"
        )
        """True of one Unix socket, one given address and libpq's defaults: there is nothing to choose."""

    async def ways(self) -> AsyncIterator[Way]:
        """The ways to try, one after the other, those left out that accept no connection; if none
        does, the first, which will say why.

        Raises:
            StoreUnavailable: no host's name is known.
        """
        ways = await self._known()
        passes = [self._attributes]
        if self._attributes == "prefer-standby":
            passes = ["standby", "any"]
        deaf: set[Way] = set()
        for attributes in passes:
            for way in ways:
                if len(ways) > 1 and not way.is_socket and way not in deaf:
                    if not await _accepts(way.hostaddr, way.port):
                        deaf.add(way)
                if way not in deaf:
                    yield evolve(way, target_session_attrs=attributes)
        if len(deaf) == len(ways):
            yield evolve(ways[0], target_session_attrs=passes[-1])

    async def _known(self) -> list[Way]:
        """Each address of each host whose name is known."""
        ways: list[Way] = []
        for given in (
            random.sample(self._given, len(self._given)) if self._shuffles else self._given
        ):
            if given.is_socket or given.hostaddr:
                ways.append(given)
                continue
            try:
                found = await self._resolve(given.host, given.port)
            except (OSError, UnicodeError):  # the latter of a name with an empty or a long part
                continue
            if self._shuffles:
                random.shuffle(found)
            ways.extend(evolve(given, hostaddr=each) for each in found)
        if not ways:
            names = ", ".join(given.host for given in self._given)
            raise StoreUnavailable(
                f"The database's host name isn't known: {names}; "
                "check DATABASE_URL and the name server"
            )
        return ways


async def _accepts(address: str, port: str) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            _, writer = await asyncio.open_connection(address, int(port))
            writer.close()
            await writer.wait_closed()
    except (OSError, ValueError):
        return False
    return True


CURRENT_WAY: ContextVar[Way] = ContextVar("way")
"""Where the task that is running would connect to."""


class Current:
    """A part of the address as the running task wants it at the moment of connecting.

    aiopg's pool is given its address once and for all, but psycopg2 calls `str` at each connect.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __str__(self) -> str:
        return str(getattr(CURRENT_WAY.get(), self._name))
