"""A toolbox in memory, for tests of whoever calls tools: it does what it is told, and counts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from attrs import Factory, define

from service.tools.contract import Calls, Tool, Toolbox, ToolResult, ToolsUnavailable
from statemachine import Failure, Outcome

Work = Callable[[Mapping[str, Any]], Awaitable[ToolResult] | ToolResult]


def answered(text: str, outcome: Outcome = Outcome.OK) -> ToolResult:
    """A result as a tool brings it."""
    return ToolResult(outcome, text, len(text.encode()))


@define
class MemoryToolbox:
    """See `Toolbox`.

    Attributes:
        work: full name → what the tool does; each makes a tool.
        unavailable: `tools` raises ToolsUnavailable.
        called: each call, in order: full name and arguments.
        running: how many are at work now.
        most_running: how many were at once, at most.
        given_up: full names of calls that were cancelled.
        opened, left: answers that began and ended.
        is_closed: whether it was closed.
    """

    work: dict[str, Work] = Factory(dict)
    unavailable: bool = False
    called: list[tuple[str, dict[str, Any]]] = Factory(list)
    running: int = 0
    most_running: int = 0
    given_up: list[str] = Factory(list)
    opened: int = 0
    left: int = 0
    is_closed: bool = False

    def answer(self, name: str, text: str, outcome: Outcome = Outcome.OK) -> None:
        """Have a tool that answers at once."""
        self.work[name] = lambda _: answered(text, outcome)

    def answer_after(self, name: str, seconds: float, text: str) -> None:
        """Have a tool that takes so long."""

        async def work(_: Mapping[str, Any]) -> ToolResult:
            await asyncio.sleep(seconds)
            return answered(text)

        self.work[name] = work

    def hang(self, name: str) -> None:
        """Have a tool that never answers."""

        async def work(_: Mapping[str, Any]) -> ToolResult:
            await asyncio.Event().wait()
            raise AssertionError("an event that nobody sets")

        self.work[name] = work

    async def tools(self) -> Sequence[Tool]:
        if self.unavailable:
            message = "The tools of the server 'memory' can't be listed now."
            raise ToolsUnavailable(Failure("tools_unavailable", message, status=503))
        named = [name.split("__", 1) for name in self.work]
        return [Tool(server, name, f"Does {name}.", {"type": "object"}) for server, name in named]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Calls]:
        self.opened += 1
        try:
            yield _Calls(self)
        finally:
            self.left += 1

    async def close(self) -> None:
        self.is_closed = True


class _Calls:
    """See `Calls`."""

    def __init__(self, box: MemoryToolbox) -> None:
        self._box = box

    async def call(self, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        box = self._box
        box.called.append((tool.full_name, dict(arguments)))
        box.running += 1
        box.most_running = max(box.running, box.most_running)
        try:
            result = box.work[tool.full_name](arguments)
            return result if isinstance(result, ToolResult) else await result
        except asyncio.CancelledError:
            box.given_up.append(tool.full_name)
            raise
        finally:
            box.running -= 1


def is_toolbox(box: MemoryToolbox) -> Toolbox:
    """The same, as mypy checks that it is one."""
    return box
