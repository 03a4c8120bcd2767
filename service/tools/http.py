"""Makes the HTTP client that a link goes by: what it may bring is bounded, and calls are watched.

Never here: MCP (`service.tools.mcp`).
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import httpx2

from service.tools.fates import EXCHANGE
from service.tools.link import NotConnected

_ssl = httpx2.create_ssl_context()
"""One for all: making it takes a tenth of a second."""


def make_client(
    headers: Mapping[str, str], connect_seconds: float, most_bytes: int
) -> httpx2.AsyncClient:
    """A client for one link. Proxies are those of the environment.

    Args:
        headers: sent with each request.
        most_bytes: of a body that is no event stream; of a larger one the SDK says that it can't be read.
    """
    return httpx2.AsyncClient(
        headers={"Accept-Encoding": "identity", **headers},
        timeout=httpx2.Timeout(None, connect=connect_seconds),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        event_hooks={"request": [_watch], "response": [_bound(most_bytes)]},
        verify=_ssl,
    )


def _is_call(request: httpx2.Request) -> bool:
    return request.method == "POST" and b'"tools/call"' in request.content[:200]


async def _watch(request: httpx2.Request) -> None:
    exchange = EXCHANGE.get()
    if exchange is not None and _is_call(request):
        exchange.is_watched = True
        exchange.had_session = "mcp-session-id" in request.headers
        request.extensions = {**request.extensions, "trace": exchange.trace}


def _bound(most_bytes: int) -> Callable[[httpx2.Response], Any]:
    async def look(response: httpx2.Response) -> None:
        is_packed = response.headers.get("content-encoding", "identity") != "identity"
        is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
        if is_packed or not is_stream:
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Bounded(response.stream, 0 if is_packed else most_bytes)
        exchange = EXCHANGE.get()
        if exchange is not None and _is_call(response.request):
            exchange.status = response.status_code
            if exchange.had_session:
                exchange.is_without_session = await _says_no_session(response)

    return look


async def _says_no_session(response: httpx2.Response) -> bool:
    """Whether it is the answer to a session that the server doesn't know: 404 by MCP, and 400 with a word
    about it from servers that are written after the TypeScript SDK's examples."""
    if response.status_code == 400:
        with suppress(httpx2.StreamError):
            return b"session" in (await response.aread()).lower()
    return response.status_code == 404


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


@contextmanager
def telling_status(http: httpx2.AsyncClient) -> Iterator[Callable[[], None]]:
    """Make of what fails before connecting is done, an error that has the last bad status."""
    statuses: list[int] = []
    is_connected = False

    async def look(response: httpx2.Response) -> None:
        if response.status_code >= 400:
            statuses.append(response.status_code)

    def connected() -> None:
        nonlocal is_connected
        is_connected = True
        http.event_hooks = {**http.event_hooks, "response": before}

    before = http.event_hooks["response"]
    http.event_hooks = {**http.event_hooks, "response": [*before, look]}
    try:
        yield connected
    except Exception:
        if is_connected or not statuses:
            raise
        raise NotConnected(f"HTTP {statuses[-1]}") from None
