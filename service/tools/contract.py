"""Defines what an agent's tools are to whoever calls them, whatever stands behind."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from attrs import frozen

from statemachine import Failure, Outcome

SEPARATOR = "__"
"""Between a server's name and a tool's, in the name that models call."""


class ToolsUnavailable(Exception):
    """A server's tools aren't known, and can't be asked for now. Nothing was called.

    Attributes:
        failure: says which server, for people; `tools_unavailable` (503).
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@frozen
class Tool:
    """A tool that a model may call.

    Attributes:
        server: the name of who has it, in the configuration; no `__` in it.
        name: its own name there.
        description: for models.
        parameters: the JSON Schema of its arguments.
    """

    server: str
    name: str
    description: str
    parameters: Mapping[str, Any]

    @property
    def full_name(self) -> str:
        """What models call it by: letters, digits, `_` and `-`, at most 64."""
        return f"{self.server}{SEPARATOR}{self.name}"


@frozen
class ToolResult:
    """What a call brought.

    Attributes:
        outcome: `ok`, `error`, `timeout` or `unknown`.
        text: what the model is told; of an error why, in words.
        size: of the whole answer, in bytes of UTF-8.
        is_truncated: `text` has less than that, and says so at its end.
    """

    outcome: Outcome
    text: str
    size: int = 0
    is_truncated: bool = False


class Calls(Protocol):
    """The tools as one answer uses them."""

    async def call(self, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool, and wait until it answers, or for its server's `timeout_seconds`. Several may be
        called at once. Called once, whatever happens, unless it is sure that it wasn't.

        Never raises but what cancelling raises; cancelled, the call is given up, and it isn't known whether
        it was carried out.
        """


class Toolbox(Protocol):
    """All tools of one agent."""

    async def tools(self) -> Sequence[Tool]:
        """Those that may be called now, by `full_name` each once. Remembered for as long as servers say.

        Raises ToolsUnavailable if a server can't be asked whose tools were never known.
        """

    def open(self) -> AbstractAsyncContextManager[Calls]:
        """For one answer. Entering connects to nobody yet. Leaving gives up what is under way, and waits for
        no server."""

    async def close(self) -> None:
        """Give back every connection, and end every process that was started. Never raises."""
