"""Reaches one server: what tools it has, and connections to it.

`AddressServer` has a connection for each answer, since one that breaks takes all its calls along, and uses
it again for another one if the server keeps nothing of either;
`CommandServer` keeps one process, and begins it anew when it ends. Never here: the protocol
(`service.tools.mcp`), and what is called (`service.tools.toolbox`).
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Protocol

import structlog

from service.settings.tools import ToolServerConfig
from service.tools.connection import Connection, closed
from service.tools.link import Link, Listing, NotConnected, Open
from service.tools.listing import KnownTools
from service.tools.names import ServerTool, is_allowed, named
from statemachine.backoff import backoff

log = structlog.get_logger(__name__)

_START_SECONDS = 60.0
"""The least that a process may take to begin: it may be fetched first."""
_STEADY_SECONDS = 60.0
"""A process that ran so long begins its back-off anew when it ends."""
_IDLE_SECONDS, _MOST_IDLE = 30.0, 20
"""How long connections are kept that no answer uses, and how many to one server."""
_STATELESS_SINCE = "2026-07-28"
"""The revision of MCP from which on a server keeps nothing of a client between two calls. Those before have
sessions, in which an answer could find what another one's caller left."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 60.0
_CLOSING_SECONDS = 7.0
"""What a process may take to end: the SDK waits two seconds, three times."""


class Server(Protocol):
    """One server of a toolbox.

    Attributes:
        config: its part of the configuration.
        known: its tools.
        is_shared: its connections are everybody's, and not for who got one to leave.
    """

    config: ToolServerConfig
    known: KnownTools
    is_shared: bool

    async def connect(self, seconds: float) -> Connection:
        """A connection to call by, which may still be connecting. Raises NotConnected if there can be none
        within so long."""

    def give_back(self, connection: Connection) -> bool:
        """Take a connection over that nobody calls by any more, for another answer. False: close it."""

    async def close(self) -> None:
        """Give back what is kept open, within seconds. Never raises."""


class AddressServer:
    """See `Server`: one over HTTP.

    Args:
        open: makes a link to it.
        clock: seconds that never run backwards.
    """

    is_shared = False

    def __init__(self, config: ToolServerConfig, open: Open, clock: Callable[[], float]) -> None:
        self.config = config
        self.known = KnownTools(config.name, self._ask, _chooser(config), clock)
        self._open = _learning(open, self.known)
        self._asking = set[Connection]()
        self._idle: list[tuple[Connection, asyncio.TimerHandle]] = []

    async def connect(self, seconds: float) -> Connection:
        while self._idle:
            connection, alarm = self._idle.pop()
            alarm.cancel()
            if not connection.is_over:
                return connection
        return self._new()

    def _new(self) -> Connection:
        return Connection(self._open, self.known.change, self.config.timeout_seconds)

    def give_back(self, connection: Connection) -> bool:
        version = connection.protocol_version
        if version is None or version < _STATELESS_SINCE or len(self._idle) >= _MOST_IDLE:
            return False
        alarm = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end_idle, connection)
        self._idle.append((connection, alarm))
        return True

    def _end_idle(self, connection: Connection) -> None:
        self._idle = [each for each in self._idle if each[0] is not connection]
        connection.leave()

    async def _ask(self) -> Listing:
        connection = self._new()  # which lists right after connecting
        self._asking.add(connection)
        try:
            return (await connection.link(self.config.timeout_seconds)).listing
        finally:
            connection.leave().add_done_callback(lambda _: self._asking.discard(connection))

    async def close(self) -> None:
        self.known.close()
        idle, self._idle = self._idle, []
        for _, alarm in idle:
            alarm.cancel()
        await closed([*self._asking, *(each for each, _ in idle)], _CLOSING_SECONDS)


class CommandServer:
    """See `Server`: a process of ours, begun when it is needed first and from then on whenever it ends, after
    a pause that grows while it keeps ending.

    Args:
        open: begins it.
        clock: seconds that never run backwards.
    """

    is_shared = True

    def __init__(self, config: ToolServerConfig, open: Open, clock: Callable[[], float]) -> None:
        self.config = config
        self._clock = clock
        self.known = KnownTools(config.name, self._ask, _chooser(config), clock)
        self._open = _learning(open, self.known)
        self._current: Connection | None = None
        self._begun = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def connect(self, seconds: float) -> Connection:
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="tool process")
        if self._keeper.done():
            raise NotConnected("it is closed")
        try:
            async with asyncio.timeout(seconds):
                while self._current is None or self._current.is_over:
                    self._begun.clear()
                    await self._begun.wait()
        except TimeoutError:
            raise NotConnected("it ended, and begins again later") from None
        return self._current

    def give_back(self, connection: Connection) -> bool:
        return True  # it was nobody's own

    async def _keep(self) -> None:
        pauses = _new_pauses()
        while True:
            begun_at = self._clock()
            seconds = max(_START_SECONDS, self.config.timeout_seconds)
            self._current = Connection(self._open, self.known.change, seconds)
            self._begun.set()
            try:
                await self._current.wait()
            finally:
                self._current.leave()
            if self._clock() - begun_at >= _STEADY_SECONDS:
                pauses = _new_pauses()
            pause = next(pauses)
            log.warning("tool server ended", server=self.config.name, pause_seconds=round(pause, 1))
            await asyncio.sleep(pause)

    async def _ask(self) -> Listing:
        seconds = max(_START_SECONDS, self.config.timeout_seconds)
        link = await (await self.connect(seconds)).link(seconds)
        listing = link.listing
        return listing if self.known.is_unknown else await _list_again(link, seconds)

    async def close(self) -> None:
        self.known.close()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))
            if self._current is not None:
                await closed([self._current], _CLOSING_SECONDS)


async def _list_again(link: Link, seconds: float) -> Listing:
    """Ask over a link that others use. In a task of its own: see `service.tools.connection`."""
    asking = asyncio.create_task(link.list_tools(), name="list tools again")
    try:
        await asyncio.wait((asking,), timeout=seconds)
    finally:
        asking.cancel()
    if not asking.done():
        raise NotConnected("it took too long")
    if asking.cancelled():
        raise NotConnected("it is closed")
    if (error := asking.exception()) is not None:
        raise NotConnected(type(error).__name__)
    return asking.result()


def _learning(open: Open, known: KnownTools) -> Open:
    """The same, and what the link lists is known from then on."""

    @asynccontextmanager
    async def opened(changed: Callable[[], None]) -> AsyncIterator[Link]:
        async with open(changed) as link:
            known.learn(link.listing)
            yield link

    return opened


def _chooser(config: ToolServerConfig) -> Callable[[Listing], tuple[ServerTool, ...]]:
    """What makes callable tools of what the server lists: those that are allowed, under names that fit."""

    def choose(listing: Listing) -> tuple[ServerTool, ...]:
        return tuple(
            tool
            for tool in named(config.name, listing.tools)
            if is_allowed(tool.own_name, config.allow, config.deny)
        )

    return choose


def _new_pauses() -> Iterator[float]:
    return backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, random.random)
