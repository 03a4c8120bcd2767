"""Speaks MCP, by the official SDK: the one file that sees it, imported late since that takes 0.4 s and 64 MB.

1. A link is opened, used to list and closed in one task, its owner's: what breaks the way to the server ends
   the SDK's client by cancelling that task. Calls come from other tasks.
2. Whether a call left this process is watched (`Exchange`), since a broken client says of all its calls that
   the connection was closed. Where nobody can tell, it may have left.
3. A call goes out by `send_request`, not by the SDK's `call_tool`: that one asks for the list of tools
   afterwards where it misses one, and throws the result away if it can't have it or finds fault with it.
4. Nothing that the SDK logs is let through: its lines quote what is sent and received.

Never here: which server is asked when, and what its tools are called (`service.tools.servers`).
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TextIO

from attrs import field, frozen
from mcp import Client, MCPError, StdioServerParameters, stdio_client, types
from mcp.client.streamable_http import streamable_http_client

from service import __version__
from service.tools.fates import EXCHANGE, Exchange, broken, failure
from service.tools.http import make_client, telling_status
from service.tools.link import (
    NOT_KNOWN,
    Answered,
    CallFailed,
    Enclosed,
    Fate,
    Listing,
    Offered,
)

MOST_BYTES = 32 * 1024 * 1024
"""Of a response of JSON, and of one event; what is larger isn't read. Besides what a result may have."""
_MOST_PAGES = 100
_SHORTEST_SECRET = 6
"""In characters: what is shorter is no secret, and may be any word."""
_LOGGERS = ("mcp", "client")

_info = types.Implementation(name="verbatim", version=__version__)
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
    most_bytes = max(MOST_BYTES, 6 * address.most_result_bytes)  # six bytes: `\u0000`
    secrets = tuple(address.headers.values())
    async with make_client(address.headers, address.connect_seconds, most_bytes) as http:
        transport = streamable_http_client(
            address.url, http_client=http, max_sse_event_size=most_bytes
        )
        with telling_status(http) as connected:
            async with _connected(transport, changed, asyncio.Event(), secrets) as link:
                connected()
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
        secrets = tuple(command.env.values())
        async with _connected(transport, changed, over, secrets) as link:
            yield link


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


@asynccontextmanager
async def _connected(
    transport: Any, changed: Callable[[], None], over: asyncio.Event, secrets: Sequence[str]
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
        yield McpLink(client, await _list_all(client), over, secrets)


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

    def __init__(
        self, client: Client, listing: Listing, over: asyncio.Event, secrets: Sequence[str]
    ) -> None:
        self.listing = listing
        self.protocol_version = client.protocol_version
        self.over = over
        self._client = client
        # Of `Bearer x` also the latter.
        words = {word for secret in secrets for word in (secret, secret.rpartition(" ")[2])}
        self._secrets = sorted((word for word in words if len(word) >= _SHORTEST_SECRET), key=len)

    async def list_tools(self) -> Listing:
        return await _list_all(self._client)

    async def call(self, name: str, arguments: Mapping[str, Any], seconds: float) -> Answered:
        request = types.CallToolRequest(
            params=types.CallToolRequestParams(name=name, arguments=dict(arguments))
        )
        exchange = Exchange()
        token = EXCHANGE.set(exchange)
        try:
            result = await self._client.session.send_request(request, _Result, seconds)
        except MCPError as error:
            message = self._redacted(error.message)
            raise failure(error.code, message, exchange) from None
        except ValueError:
            words = f"The tool's answer could not be read. {NOT_KNOWN}"
            raise CallFailed(Fate.UNKNOWN, words) from None
        except Exception as error:
            raise broken(exchange, type(error).__name__) from None
        finally:
            EXCHANGE.reset(token)
        if result.result_type == "input_required":
            raise CallFailed(Fate.REFUSED, _asks_for(result.input_requests))
        parts = tuple(_part(block) for block in result.content)
        return Answered(parts, result.structured_content, result.is_error)

    def _redacted(self, message: str) -> str:
        """A server's words without what it was told to know us by, which some quote."""
        for secret in reversed(self._secrets):
            message = message.replace(secret, "***")
        return message


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
        exchange = EXCHANGE.get()
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
