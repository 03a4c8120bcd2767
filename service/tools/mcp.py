"""Speaks MCP, by the official SDK: the one file that sees it, imported late since that takes 0.4 s and 64 MB.

1. A link is opened, used to list and closed in one task, its owner's: what breaks the way to the server ends
   the SDK's client by cancelling that task. Calls come from other tasks.
2. Whether a call left this process is watched (`_Exchange`), since a broken client says of all its calls that
   the connection was closed. Where nobody can tell, it may have left.
3. A call goes out by `send_request`, not by the SDK's `call_tool`: that one asks for the list of tools
   afterwards where it misses one, and throws the result away if it can't have it or finds fault with it.
4. Nothing that the SDK logs is let through: its lines quote what is sent and received.

Never here: which server is asked when, and what its tools are called (`service.tools.servers`).
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TextIO

import httpx2
from attrs import field, frozen
from mcp import Client, MCPError, StdioServerParameters, stdio_client, types
from mcp.client.streamable_http import streamable_http_client

from service import __version__
from service.tools.link import Answered, CallFailed, Enclosed, Fate, Listing, Offered

MOST_BYTES = 32 * 1024 * 1024
"""Of a response of JSON, and of one event; what is larger isn't read. Besides what a result may have."""
_MOST_PAGES = 100
_TIMEOUT, _CLOSED, _UNREADABLE, _INVALID = -32001, -32000, -32700, -32600
_LOST_BY_GATEWAYS = frozenset((408, 502, 504))
"""Statuses by which one between says that it didn't hear the end."""
_NOT_KNOWN = "Whether the tool did what it was asked is not known."
_NOT_CALLED = "The tool was not called."
_LOGGERS = ("mcp", "client")

_info = types.Implementation(name="verbatim", version=__version__)
_ssl = httpx2.create_ssl_context()
"""One for all: making it takes a tenth of a second."""
for _name in _LOGGERS:
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


@frozen
class Address:
    """An MCP server over HTTP. `headers` are filled in."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    connect_seconds: float
    most_result_bytes: int


@frozen
class Command:
    """An MCP server that is a process of ours. `env` is filled in, and added to what the SDK passes on."""

    command: str
    args: tuple[str, ...] = field(repr=False)
    env: Mapping[str, str] = field(repr=False)


@asynccontextmanager
async def open_address(address: Address, changed: Callable[[], None]) -> AsyncIterator["McpLink"]:
    """See `service.tools.link.Open`. Redirects are followed within the server's origin only; proxies are
    those of the environment."""
    most_bytes = max(MOST_BYTES, 6 * address.most_result_bytes)  # six bytes: `\\u0000`
    async with httpx2.AsyncClient(
        headers={"Accept-Encoding": "identity", **address.headers},
        timeout=httpx2.Timeout(None, connect=address.connect_seconds),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        event_hooks={"request": [_watch], "response": [_bound(most_bytes)]},
        verify=_ssl,
    ) as http:
        transport = streamable_http_client(
            address.url, http_client=http, max_sse_event_size=most_bytes
        )
        async with _connected(transport, changed, asyncio.Event()) as link:
            yield link


@asynccontextmanager
async def open_command(command: Command, changed: Callable[[], None]) -> AsyncIterator["McpLink"]:
    """See `service.tools.link.Open`. Leaving ends the process and all that it started, within six seconds."""
    parameters = StdioServerParameters(
        command=command.command, args=list(command.args), env=dict(command.env)
    )
    over = asyncio.Event()
    with _nowhere() as nowhere:  # what it says there may be anything
        transport = _noticing(stdio_client(parameters, errlog=nowhere), over)
        async with _connected(transport, changed, over) as link:
            yield link


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


@asynccontextmanager
async def _connected(
    transport: Any, changed: Callable[[], None], over: asyncio.Event
) -> AsyncIterator["McpLink"]:
    async def heard(message: object) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            changed()

    # No callbacks for sampling, elicitation and roots: the SDK then refuses them, and says beforehand that
    # it will.
    client = Client(
        _written(transport), cache=None, client_info=_info, message_handler=heard, mode="auto"
    )
    async with client:
        yield McpLink(client, await _list_all(client), over)


async def _list_all(client: Client) -> Listing:
    tools: list[types.Tool] = []
    fresh: list[float] = []
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        fresh.append(page.ttl_ms / 1000)
        cursor = page.next_cursor
        if cursor is None:
            break
    offered = tuple(Offered(tool.name, tool.description or "", tool.input_schema) for tool in tools)
    says_how_long = client.session.discover_result is not None  # the older protocol doesn't
    return Listing(offered, min(fresh) if says_how_long else None)


class McpLink:
    """See `Link`."""

    def __init__(self, client: Client, listing: Listing, over: asyncio.Event) -> None:
        self.listing = listing
        self.protocol_version = client.protocol_version
        self.over = over
        self._client = client

    async def list_tools(self) -> Listing:
        return await _list_all(self._client)

    async def call(self, name: str, arguments: Mapping[str, Any], seconds: float) -> Answered:
        request = types.CallToolRequest(
            params=types.CallToolRequestParams(name=name, arguments=dict(arguments))
        )
        exchange = _Exchange()
        token = _exchange.set(exchange)
        try:
            result = await self._client.session.send_request(request, _Result, seconds)
        except MCPError as error:
            raise _failure(error.code, error.message, exchange, seconds) from None
        except ValueError:
            words = f"The tool's answer could not be read. {_NOT_KNOWN}"
            raise CallFailed(Fate.UNKNOWN, words) from None
        except Exception as error:
            raise _broken(exchange, type(error).__name__) from None
        finally:
            _exchange.reset(token)
        if result.result_type == "input_required":
            raise CallFailed(Fate.REFUSED, _asks_for(result.input_requests))
        parts = tuple(_part(block) for block in result.content)
        return Answered(parts, result.structured_content, result.is_error)


class _Result(types.Result):
    """What `tools/call` may return in any revision, as far as it is used here."""

    content: list[types.ContentBlock] = []  # noqa: RUF012 - pydantic copies it
    structured_content: Any = None
    is_error: bool = False
    result_type: str = "complete"
    input_requests: Any = None


def _asks_for(requests: Any) -> str:
    methods = [each.get("method") for each in requests.values()] if requests else []
    wanted = ", ".join(sorted({str(method)[:64] for method in methods})) or "another try"
    return f"The tool asks for what can't be given here: {wanted}."


def _part(block: types.ContentBlock) -> str | Enclosed:
    match block:
        case types.TextContent(text=text):
            return text
        case types.ImageContent(data=data, mime_type=kind):
            return Enclosed(f"an image, {kind}", _decoded_size(data))
        case types.AudioContent(data=data, mime_type=kind):
            return Enclosed(f"audio, {kind}", _decoded_size(data))
        case types.ResourceLink(name=name, uri=uri, mime_type=kind, size=size):
            return Enclosed(", ".join(filter(None, ("a resource", name, uri, kind))), size)
        case types.EmbeddedResource(resource=types.TextResourceContents(text=text)):
            return text
        case types.EmbeddedResource(resource=types.BlobResourceContents() as inner):
            words = ", ".join(filter(None, ("a resource", inner.uri, inner.mime_type)))
            return Enclosed(words, _decoded_size(inner.blob))
    return Enclosed("a part of an unknown kind")


def _decoded_size(data: str) -> int:
    return len(data) * 3 // 4 - data[-2:].count("=")


# --- what became of a call ------------------------------------------------------------------------


class _Exchange:
    """What is known of one call's way out and back.

    Attributes:
        is_written: the client took it.
        is_watched: the HTTP client took it, and will tell when it leaves.
        is_sent: its first byte is on its way.
        status: of the response to it.
        had_session: it named a session of the server's.
    """

    __slots__ = ("had_session", "is_sent", "is_watched", "is_written", "status")

    def __init__(self) -> None:
        self.is_written = self.is_watched = self.is_sent = self.had_session = False
        self.status: int | None = None

    @property
    def surely_stayed(self) -> bool:
        return not self.is_written or (self.is_watched and not self.is_sent)

    async def trace(self, name: str, _: Mapping[str, Any]) -> None:
        """httpcore's callback."""
        if name.endswith("send_request_headers.started"):
            self.is_sent = True


_exchange: ContextVar[_Exchange | None] = ContextVar("tool_call", default=None)
"""Of the call that a request belongs to: the SDK's transport sends in the context of who called, which
`tests/service/tools/test_outcomes.py` would notice the end of."""


def _is_call(request: httpx2.Request) -> bool:
    return request.method == "POST" and b'"tools/call"' in request.content[:200]


async def _watch(request: httpx2.Request) -> None:
    exchange = _exchange.get()
    if exchange is not None and _is_call(request):
        exchange.is_watched = True
        exchange.had_session = "mcp-session-id" in request.headers
        request.extensions = {**request.extensions, "trace": exchange.trace}


def _bound(most_bytes: int) -> Callable[[httpx2.Response], Any]:
    async def look(response: httpx2.Response) -> None:
        exchange = _exchange.get()
        if exchange is not None and _is_call(response.request):
            exchange.status = response.status_code
        is_packed = response.headers.get("content-encoding", "identity") != "identity"
        is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
        if is_packed or not is_stream:
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Bounded(response.stream, 0 if is_packed else most_bytes)

    return look


class _Bounded(httpx2.AsyncByteStream):
    """A body of so many bytes at most; of a larger one the SDK says that it can't be read."""

    def __init__(self, inner: httpx2.AsyncByteStream, most_bytes: int) -> None:
        self._inner = inner
        self._left = most_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._inner:
            self._left -= len(data)
            if self._left < 0:
                raise httpx2.StreamError("too large, or packed")
            yield data

    async def aclose(self) -> None:
        await self._inner.aclose()


def _failure(code: int, message: str, exchange: _Exchange, seconds: float) -> CallFailed:
    status = exchange.status
    if status is not None and not 200 <= status < 300:
        return _refused_by_http(status, code, message, exchange)
    if code == _TIMEOUT:
        words = f"The tool did not answer within {seconds:.3g} s. {_NOT_KNOWN}"
        return CallFailed(Fate.TIMEOUT, words)
    if code in (_CLOSED, _UNREADABLE):
        return _broken(
            exchange, "no answer" if code == _CLOSED else "an unreadable or too large answer"
        )
    if status is not None and code == _INVALID and _is_odd_response(status, message):
        return _broken(exchange, "no answer in MCP")
    return CallFailed(Fate.REFUSED, f"The tool's server refused the call: {message}")


def _is_odd_response(status: int, message: str) -> bool:
    """Whether the SDK's error stands for a good status with something else than an answer."""
    return status == 202 or message.startswith("Unexpected content type")


def _refused_by_http(status: int, code: int, message: str, exchange: _Exchange) -> CallFailed:
    if status == 404 and exchange.had_session:
        words = f"The tool's server has lost the session. {_NOT_CALLED}"
        return CallFailed(Fate.SESSION_GONE, words)
    if 300 <= status < 400:
        words = f"The tool's server redirects elsewhere (HTTP {status}), which is not followed."
        return CallFailed(Fate.REFUSED, words)
    if status in _LOST_BY_GATEWAYS:
        return _broken(exchange, f"HTTP {status}")
    said = "" if message == "Server returned an error response" else f": {message}"
    return CallFailed(Fate.REFUSED, f"The tool's server answered with HTTP {status}{said}")


def _broken(exchange: _Exchange, what: str) -> CallFailed:
    if exchange.surely_stayed:
        words = f"The tool's server could not be reached. {_NOT_CALLED}"
        return CallFailed(Fate.NOT_SENT, words)
    words = f"The way to the tool's server broke ({what}). {_NOT_KNOWN}"
    return CallFailed(Fate.UNKNOWN, words)


# --- transports -----------------------------------------------------------------------------------


@asynccontextmanager
async def _written(transport: Any) -> AsyncIterator[Any]:
    """A transport that notes of each call that it was written."""
    async with transport as (reads, writes):
        yield reads, _Noting(writes)


class _Noting:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def send(self, item: Any) -> None:
        exchange = _exchange.get()
        if exchange is not None:
            exchange.is_written = True
        await self._inner.send(item)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> "_Noting":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


@asynccontextmanager
async def _noticing(transport: Any, over: asyncio.Event) -> AsyncIterator[Any]:
    """A transport that sets `over` when what is read ends."""
    async with transport as (reads, writes):
        yield _Noticing(reads, over), writes


class _Noticing:
    def __init__(self, inner: Any, over: asyncio.Event) -> None:
        self._inner = inner
        self._over = over

    async def receive(self) -> Any:
        return await self._inner.receive()

    def __aiter__(self) -> "_Noticing":
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._inner.__anext__()
        except BaseException:
            self._over.set()
            raise

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> "_Noticing":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
