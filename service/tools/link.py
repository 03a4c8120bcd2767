"""Defines a server's other end as the rest of the room knows it, whatever protocol lies between.

Never here: the protocol (`service.tools.mcp`), and when what is called.
"""

import asyncio
import enum
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from attrs import frozen

NOT_CALLED = "The tool was not called."
NOT_KNOWN = "Whether the tool did what it was asked is not known."


@frozen
class Offered:
    """A tool as its server lists it. `parameters` is a JSON Schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@frozen
class Listing:
    """All tools of a server. `fresh_seconds`: for how long, as it says; None: it doesn't say."""

    tools: tuple[Offered, ...]
    fresh_seconds: float | None = None


@frozen
class Enclosed:
    """A part of a result that is no text: what it is, in words, and its size in bytes if that is known."""

    words: str
    size: int | None = None


@frozen
class Answered:
    """What a tool answered: its parts in their order, and a JSON value besides. `is_error`: it failed."""

    parts: tuple[str | Enclosed, ...]
    structured: Any = None
    is_error: bool = False


class Fate(enum.Enum):
    """What is known of a call that brought no answer."""

    NOT_SENT = enum.auto()
    """It surely wasn't carried out: no byte of it left."""
    SESSION_GONE = enum.auto()
    """It surely wasn't carried out: the server knows the session no more."""
    REFUSED = enum.auto()
    """The server said that it failed."""
    TIMEOUT = enum.auto()
    UNKNOWN = enum.auto()
    """It may have been carried out or not."""


class CallFailed(Exception):
    """A call brought no answer. The message says why, for the model; it holds no argument and no header."""

    def __init__(self, fate: Fate, words: str) -> None:
        super().__init__(words)
        self.fate = fate
        self.words = words


class NotConnected(Exception):
    """There is no link, and nothing was called. The message says why, in few words, without secrets."""


class Link(Protocol):
    """A connected client of one server. It belongs to the task that opened it; others may call.

    Attributes:
        listing: the tools right after connecting.
        protocol_version: the revision of MCP that both speak.
        over: set by the link when the server is gone, and by others to have it closed.
    """

    listing: Listing
    protocol_version: str
    over: asyncio.Event

    async def list_tools(self) -> Listing:
        """Ask anew. Raises whatever the way to the server raises."""

    async def call(self, name: str, arguments: Mapping[str, Any], seconds: float) -> Answered:
        """Call a tool, once. Raises CallFailed; cancelled, it tells the server that it was given up."""


Open = Callable[[Callable[[], None]], AbstractAsyncContextManager[Link]]
"""Makes a link; its argument is called when the server says that its tools changed. Entering connects and
lists, and raises whatever goes wrong with that."""
