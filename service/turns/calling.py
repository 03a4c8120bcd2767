"""Calls the tools of one turn, some at a time, and tells what becomes of each: `Calling`.

A call is announced, as an event, before it is made: whoever asks for the next events has written down
those before. Nothing is called twice.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

from service.tools.contract import SEPARATOR, Calls, Tool, ToolResult
from service.turns.gathering import Wanted
from service.wire.measuring import MOST_VALUES, has_more_values
from statemachine import Event, Outcome, ToolCallEnded, ToolCallStarted

MayCall = Callable[[], float]
"""Counts a call against its caller's limit: seconds to wait if it is used up, and then it isn't counted."""


@frozen
class Call:
    """A call that is to be made.

    Attributes:
        call_id: unlike any other of the answer.
        name: what the model called.
        tool: that; None if there is no such tool.
    """

    call_id: str
    turn: int
    position: int
    name: str
    arguments: str
    tool: Tool | None

    def announced(self) -> ToolCallStarted:
        """The event that says so."""
        server, _, name = self.name.partition(SEPARATOR)
        if self.tool is not None:
            server, name = self.tool.server, self.tool.name
        return ToolCallStarted(self.call_id, self.turn, self.position, server, name, self.arguments)


def calls_of(
    turn: int, wanted: Sequence[Wanted], tools: Mapping[str, Tool], taken: set[str]
) -> list[Call]:
    """The calls that a model wants in a turn.

    Args:
        tools: by the name that models call.
        taken: names of the answer's calls so far, to which these are added. Some models number theirs anew
            in each turn.
    """
    calls = []
    for position, each in enumerate(wanted):
        name = each.call_id
        if not name or name in taken:
            name = f"call_{turn}_{position}" + (f"_{each.call_id}" if each.call_id else "")
        taken.add(name)
        calls.append(Call(name, turn, position, each.name, each.arguments, tools.get(each.name)))
    return calls


class Calling:
    """The calls of one turn.

    Args:
        calls: them, at least one.
        tools: by which they are made.
        at_once: how many are made at the same time.
        may_call: see `MayCall`.

    Attributes:
        calls: them.
        results: what each brought, by its id, as far as they have ended.
        unreadable: the ids of those whose arguments aren't a JSON object that can be read.
    """

    def __init__(
        self, calls: Sequence[Call], tools: Calls, at_once: int, may_call: MayCall
    ) -> None:
        self.calls = calls
        self.results: dict[str, ToolResult] = {}
        self.unreadable: set[str] = set()
        self._todo = deque(calls)
        self._tools = tools
        self._at_once = at_once
        self._may_call = may_call
        self._announced: list[Call] = []
        self._running: dict[asyncio.Task[ToolResult], Call] = {}

    @property
    def is_over(self) -> bool:
        """True once all have ended."""
        return not (self._todo or self._announced or self._running)

    def announce(self) -> list[Event]:
        """The beginnings of those whose turn it is. They are made by the next `read`."""
        events: list[Event] = []
        while self._todo and len(self._running) + len(self._announced) < self._at_once:
            self._announced.append(call := self._todo.popleft())
            events.append(call.announced())
        return events

    async def read(self) -> list[Event]:
        """The next ends, at least one, and the beginnings that follow. Cancelling it leaves nothing but
        `give_up`."""
        for call in self._announced:
            name = f"tool call {call.call_id}"
            self._running[asyncio.create_task(self._made(call), name=name)] = call
        self._announced.clear()
        done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        ended = [(self._running.pop(task), task.result()) for task in done]
        ended.sort(key=lambda pair: pair[0].position)
        return [*[self._note_end(call, result) for call, result in ended], *self.announce()]

    def give_up(self) -> None:
        """Nobody waits for them any more."""
        for task in self._running:
            task.cancel()
        self._running.clear()

    def _note_end(self, call: Call, result: ToolResult) -> Event:
        self.results[call.call_id] = result
        return ToolCallEnded(
            call.call_id, result.outcome, result.text, result.size, result.is_truncated
        )

    async def _made(self, call: Call) -> ToolResult:
        arguments = _arguments_of(call.arguments)  # once, each in its task: they may be long
        if arguments is None:
            self.unreadable.add(call.call_id)
        if call.tool is None:
            return _refused(f"There is no tool {call.name[:100]!r}.")
        if arguments is None:
            return _refused("The arguments are not a JSON object, or too large a one.")
        if wait := self._may_call():
            return _refused(f"Too many tools were called; more may be in {wait:.0f} s.")
        return await self._tools.call(call.tool, arguments)


def _arguments_of(source: str) -> dict[str, Any] | None:
    """A call's arguments; none at all are an empty object. None if they are no object, or one of so many
    values that reading it would hold up everybody else."""
    if not source.strip():
        return {}
    try:
        if has_more_values(source.encode(errors="replace"), MOST_VALUES):
            return None
        value = json.loads(source)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refused(why: str) -> ToolResult:
    return ToolResult(Outcome.ERROR, why, len(why.encode()))
