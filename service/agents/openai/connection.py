"""Sends requests to one backend as the SDK would, over aiohttp's connections.

The SDK takes about a millisecond to build a request, and only the body and one header differ from
call to call. So it builds one template request per agent, whose URL and headers serve every call.
aiohttp, which the SDK would use as well, sends them, and the response is read without the layers
above aiohttp's own reader.
"""

import asyncio
import ssl
import urllib.request
from collections.abc import Mapping

import aiohttp
import httpx2
import openai
from multidict import CIMultiDict
from yarl import URL

from service.agents.openai.lane import LaneConnector, is_tested

_NOT_OURS = frozenset(("host", "content-length", "connection"))
"""Headers of the template that aiohttp writes itself."""
_ABOUT_THE_SDK = "x-stainless-"
"""What the SDK tells of itself: its retries and timeouts, which aren't used here, and the machine."""


class Connection:
    """Sends requests to one path of a backend. Made within the event loop or outside.

    Args:
        client: the SDK's client, which knows the backend's address and key.
        path: below the base URL, such as `/chat/completions`.
        headers: what every request carries besides the SDK's own.
        tls: whom to trust.
        connect_seconds: how long a connection may take, TLS included.
        idle_connection_seconds: how long one that nobody uses is kept.
        uses_lane: have bodies offered to a listener before aiohttp parses them (`lane`).
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        path: str,
        headers: Mapping[str, str],
        tls: ssl.SSLContext,
        connect_seconds: float,
        idle_connection_seconds: float,
        uses_lane: bool,
    ) -> None:
        self._client = client
        self._path = path
        self._asked_headers = dict(headers)
        self._tls = tls
        self._idle_connection_seconds = idle_connection_seconds
        self._make_connector = LaneConnector if uses_lane and is_tested() else aiohttp.TCPConnector
        # Token deadlines are the relay's; here only connecting is timed.
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._url = URL()
        self._proxy: str | None = None
        self._preparing = asyncio.Lock()

    async def post(self, body: bytes, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Send one request; returns once the response's head is there, whatever its status.

        The caller closes the response. Cancelled, it leaves no connection behind.

        Raises:
            aiohttp.ClientError, OSError: no response could be had; `aiohttp.ServerTimeoutError`
                if connecting took too long.
        """
        session = self._session or await self._prepare()
        return await session.post(
            self._url,
            data=body,
            headers=headers,
            allow_redirects=True,
            proxy=self._proxy,
            timeout=self._timeout,
        )

    async def close(self) -> None:
        """Give back every connection."""
        if self._session is not None:
            await self._session.close()

    async def _prepare(self) -> aiohttp.ClientSession:
        async with self._preparing:
            if self._session is None:
                template = await self._template()
                self._url = URL(str(template.url), encoded=True)
                self._proxy = _proxy_for(self._url)
                self._session = aiohttp.ClientSession(
                    connector=self._make_connector(
                        limit=0,  # `server.max_concurrent_streams` is the limit
                        keepalive_timeout=self._idle_connection_seconds,
                        ssl=self._tls,
                    ),
                    headers=CIMultiDict(
                        (name, value)
                        for name, value in template.headers.multi_items()
                        if _is_ours(name.lower())
                    ),
                    cookie_jar=aiohttp.DummyCookieJar(),
                )
        return self._session

    async def _template(self) -> httpx2.Request:
        """Have the SDK build a request; this one goes nowhere."""
        recorder = _Recorder()
        async with httpx2.AsyncClient(transport=recorder) as http_client:
            client = self._client.with_options(http_client=http_client)
            await client.post(
                self._path,
                cast_to=httpx2.Response,
                content=b"{}",
                options={"headers": self._asked_headers},
            )
        assert recorder.request is not None
        return recorder.request


class _Recorder(httpx2.AsyncBaseTransport):
    """A transport that keeps the request and says that all went well."""

    def __init__(self) -> None:
        self.request: httpx2.Request | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.request = request
        return httpx2.Response(200, json={})


def _is_ours(name: str) -> bool:
    return name not in _NOT_OURS and not name.startswith(_ABOUT_THE_SDK)


def _proxy_for(url: URL) -> str | None:
    """The proxy that the environment names for this URL, as the SDK would find it."""
    if url.host is None or urllib.request.proxy_bypass(url.host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(url.scheme) or proxies.get("all")
