"""Says what became of a call that brought no answer, from what was seen of its way. Pure.

Whether a call left this process is watched (`Exchange`), since a broken client says of all its calls that the
connection was closed. Where nobody can tell, it may have left. Never here: who watches
(`service.tools.http`, `service.tools.mcp`).
"""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from service.tools.link import NOT_CALLED, NOT_KNOWN, CallFailed, Fate

_TIMEOUT, _CLOSED, _UNREADABLE, _INVALID = -32001, -32000, -32700, -32600
_LOST_BY_GATEWAYS = frozenset((408, 502, 504))
"""Statuses by which one between says that it didn't hear the end."""


class Exchange:
    """What is known of one call's way out and back.

    Attributes:
        is_written: the client took it.
        is_watched: the HTTP client took it, and will tell when it leaves.
        is_sent: its first byte is on its way.
        status: of the response to it.
        had_session: it named a session of the server's.
        is_without_session: the server says that it knows no such session.
    """

    __slots__ = (
        "had_session",
        "is_sent",
        "is_watched",
        "is_without_session",
        "is_written",
        "status",
    )

    def __init__(self) -> None:
        self.is_written = self.is_watched = self.is_sent = False
        self.had_session = self.is_without_session = False
        self.status: int | None = None

    @property
    def surely_stayed(self) -> bool:
        return not self.is_written or (self.is_watched and not self.is_sent)

    async def trace(self, name: str, _: Mapping[str, Any]) -> None:
        """httpcore's callback."""
        if name.endswith("send_request_headers.started"):
            self.is_sent = True


EXCHANGE: ContextVar[Exchange | None] = ContextVar("tool_call", default=None)
"""Of the call that a request belongs to: the SDK's transport sends in the context of who called, which
`tests/service/tools/test_outcomes.py` would notice the end of."""


def failure(code: int, message: str, exchange: Exchange) -> CallFailed:
    """The failure that an error of JSON-RPC stands for, the server's or one that the SDK made up.

    Args:
        message: shown to the model.
    """
    status = exchange.status
    if status is not None and not 200 <= status < 300:
        return _refused_by_http(status, message, exchange)
    if code == _TIMEOUT:
        return CallFailed(Fate.TIMEOUT, f"The tool did not answer in time. {NOT_KNOWN}")
    if code in (_CLOSED, _UNREADABLE):
        return broken(
            exchange, "no answer" if code == _CLOSED else "an unreadable or too large answer"
        )
    if status is not None and code == _INVALID and _is_odd_response(status, message):
        return broken(exchange, "no answer in MCP")
    return CallFailed(Fate.REFUSED, f"The tool's server refused the call: {message}")


def _is_odd_response(status: int, message: str) -> bool:
    """Whether the SDK's error stands for a good status with something else than an answer."""
    return status == 202 or message.startswith("Unexpected content type")


def _refused_by_http(status: int, message: str, exchange: Exchange) -> CallFailed:
    if exchange.is_without_session:
        words = f"The tool's server has lost the session. {NOT_CALLED}"
        return CallFailed(Fate.SESSION_GONE, words)
    if 300 <= status < 400:
        words = f"The tool's server redirects elsewhere (HTTP {status}), which is not followed."
        return CallFailed(Fate.REFUSED, words)
    if status in _LOST_BY_GATEWAYS:
        return broken(exchange, f"HTTP {status}")
    said = "" if message == "Server returned an error response" else f": {message}"
    return CallFailed(Fate.REFUSED, f"The tool's server answered with HTTP {status}{said}")


def broken(exchange: Exchange, what: str) -> CallFailed:
    """The failure of a call whose way broke; `what` says how, in few words."""
    if exchange.surely_stayed:
        words = f"The tool's server could not be reached. {NOT_CALLED}"
        return CallFailed(Fate.NOT_SENT, words)
    words = f"The way to the tool's server broke ({what}). {NOT_KNOWN}"
    return CallFailed(Fate.UNKNOWN, words)
