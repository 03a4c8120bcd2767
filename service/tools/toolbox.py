"""Calls tools of servers, and of this process: `ServersToolbox`.

1. A call goes out once. It is sent again, once, only where it surely wasn't carried out: no byte of it left,
   or the server didn't know the session.
2. Each call is a task of its own, so that a cancellation that isn't its caller's doesn't reach the caller.
3. Nothing of arguments and results is logged.

Never here: when a tool is called (`service.turns`), and how a server is reached (`service.tools.servers`).
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog

from service.tools.builtin import Builtin
from service.tools.connection import Connection, closed
from service.tools.contract import Calls, Tool, ToolResult
from service.tools.link import NOT_CALLED, NOT_KNOWN, CallFailed, Fate, NotConnected
from service.tools.names import ServerTool
from service.tools.results import answer_of, bounded, failure_of, why_unsendable
from service.tools.servers import Server
from statemachine import Outcome

log = structlog.get_logger(__name__)

_GRACE_SECONDS = 1.0
"""What the client has to tell the server that a call was given up, before it isn't waited for."""
_CLOSING_SECONDS = 5.0
"""What a server has to end a session, before its connection is cut."""
_ENDING_SECONDS = 8.0
"""What a process has to end besides."""
_NOT_SENT = frozenset((Fate.NOT_SENT, Fate.SESSION_GONE))


class ServersToolbox:
    """See `Toolbox`.

    Args:
        servers: of MCP; no two of one name.
        builtin: the tools of this process.
        prepare: done before servers are asked for anything, and of no deadline's time; each time, so it
            must cost nothing from the second time on.
    """

    def __init__(
        self, servers: Sequence[Server], builtin: Builtin, prepare: Callable[[], Awaitable[None]]
    ) -> None:
        self._servers = {server.config.name: server for server in servers}
        self._builtin = builtin
        self._prepare = prepare
        self._closing: set[asyncio.Task[Any]] = set()

    async def tools(self) -> Sequence[Tool]:
        if self._servers:
            await self._prepare()
        asked = [asyncio.ensure_future(server.known.get()) for server in self._servers.values()]
        try:
            listed = await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()
        return [*self._builtin.tools, *(tool for tools in listed for tool in tools)]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Calls]:
        calls = _Calls(self._servers, self._builtin, self._prepare)
        try:
            yield calls
        finally:
            if calls.is_used:
                self._later(calls.give_up())

    def _later(self, work: Any) -> None:
        task = asyncio.create_task(work, name="close tools")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for server in self._servers.values():
            self._later(server.close())
        if self._closing:
            await asyncio.wait(self._closing, timeout=_ENDING_SECONDS)
        for task in self._closing:
            task.cancel()


class _Calls:
    """See `Calls`: the connections of one answer, each had from the first call to its server on."""

    def __init__(
        self,
        servers: Mapping[str, Server],
        builtin: Builtin,
        prepare: Callable[[], Awaitable[None]],
    ) -> None:
        self._servers = servers
        self._builtin = builtin
        self._prepare = prepare
        self._connections: dict[str, Connection] = {}
        self._running: set[asyncio.Task[ToolResult]] = set()
        self._forgotten: list[Connection] = []
        self._unanswered = Counter[Connection]()
        """How many calls over each have brought no answer, or not yet."""

    @property
    def is_used(self) -> bool:
        """Whether there is anything to give up."""
        return bool(self._running or self._connections or self._forgotten)

    async def call(self, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        if (server := self._servers.get(tool.server)) is None:
            return self._builtin.call(tool, arguments)
        if (why := why_unsendable(arguments)) is not None:
            return _failed(Outcome.ERROR, f"{why}. {NOT_CALLED}")
        await self._prepare()
        task = asyncio.create_task(self._call(server, tool, arguments), name="tool call")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        seconds = server.config.timeout_seconds
        try:
            await asyncio.wait((task,), timeout=seconds + _GRACE_SECONDS)
        finally:
            task.cancel()
        return _outcome(task)

    async def _call(self, server: Server, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        config, loop = server.config, asyncio.get_running_loop()
        deadline = loop.time() + config.timeout_seconds
        name = tool.own_name if isinstance(tool, ServerTool) else tool.name
        is_again = False
        while True:
            try:
                connection = await self._connection(server, deadline - loop.time())
                link = await connection.link(deadline - loop.time())
            except NotConnected as error:
                words = f"The tool's server could not be reached ({error}). {NOT_CALLED}"
                return _failed(Outcome.ERROR, words)
            try:
                seconds = max(0.001, deadline - loop.time())
                self._unanswered[connection] += 1
                answered = await link.call(name, arguments, seconds)
                self._unanswered[connection] -= 1
                return answer_of(answered, config.max_result_bytes)
            except CallFailed as failed:
                log.info("tool call failed", server=config.name, fate=failed.fate.name.lower())
                if failed.fate in _NOT_SENT:
                    self._forget(server, connection)
                if failed.fate not in _NOT_SENT or is_again:
                    return failure_of(failed, config.max_result_bytes)
            is_again = True

    async def _connection(self, server: Server, seconds: float) -> Connection:
        """The answer's connection to a server; a new one if it is over."""
        if server.is_shared:
            return await server.connect(seconds)
        name = server.config.name
        if name not in self._connections or self._connections[name].is_over:
            self._connections[name] = await server.connect(seconds)
        return self._connections[name]

    def _forget(self, server: Server, connection: Connection) -> None:
        """Have the next call make a new connection. What goes on over this one goes on to its end."""
        if self._connections.get(server.config.name) is connection:
            del self._connections[server.config.name]
            self._forgotten.append(connection)

    async def give_up(self) -> None:
        """Give up what is under way and close all connections, but those that another answer may use.
        Waits for servers, but not long."""
        if not self._running:
            for name, connection in [*self._connections.items()]:
                if not self._unanswered[connection] and self._servers[name].give_back(connection):
                    del self._connections[name]
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=_GRACE_SECONDS)
        await closed([*self._connections.values(), *self._forgotten], _CLOSING_SECONDS)


def _outcome(task: "asyncio.Task[ToolResult]") -> ToolResult:
    """What a call's task brought. One that was cancelled was so by the link: its caller is past this."""
    if not task.done():
        return _failed(Outcome.TIMEOUT, f"The tool did not answer in time. {NOT_KNOWN}")
    if task.cancelled() or task.exception() is not None:
        return _failed(Outcome.UNKNOWN, f"The way to the tool's server broke. {NOT_KNOWN}")
    return task.result()


def _failed(outcome: Outcome, words: str) -> ToolResult:
    return bounded(outcome, words, len(words.encode()))
