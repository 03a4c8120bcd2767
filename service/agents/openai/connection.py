"""Sends requests to one backend as the SDK would, over aiohttp's connections.

The SDK takes about a millisecond to build a request, and only the body and one header differ from
call to call. So it builds one template request for each call, whose URL and headers serve from then
on. aiohttp, which the SDK would use as well, sends them, and the response is read without the layers
above aiohttp's own reader.
"""

import asyncio
import ssl
import urllib.request
from collections.abc import Coroutine, Mapping
from typing import Any
from urllib.parse import quote

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
_LONGEST_FIELD_BYTES, _MOST_FIELDS = 65_536, 500
"""Of a response's head; aiohttp's own limits are 8,190 and 128."""
_READ_AHEAD_BYTES = 64 * 1024
"""aiohttp reads twice as much ahead of a client that is slow; its default is 256 KB."""
_AS_IT_IS = "%/:?=&+,;@!$'()*~[]"
"""Characters of a query that need no quoting, or are it."""
_REDIRECTS = frozenset((301, 302, 307, 308))
_SEE_OTHER = 303
_MOST_REDIRECTS = 5


class RedirectedElsewhere(aiohttp.ClientError):
    """A response sends us where no request of ours belongs.

    Attributes:
        status: the response's.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Connection:
    """Sends requests to the paths of a backend. Made within the event loop or outside.

    Args:
        client: the SDK's client, which knows the backend's address and key. It sends nothing.
        query: what goes behind every path's `?`.
        headers: what every request carries besides the SDK's own, or instead.
        tls: whom to trust.
        connect_seconds: how long a connection may take, TLS included.
        idle_connection_seconds: how long one that nobody uses is kept.
        uses_lane: have bodies offered to a listener before aiohttp parses them (`lane`).
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        query: str,
        headers: Mapping[str, str],
        tls: ssl.SSLContext,
        connect_seconds: float,
        idle_connection_seconds: float,
        uses_lane: bool,
    ) -> None:
        self._client = client
        self._query = query
        self._asked_headers = dict(headers)
        self._tls = tls
        self._idle_connection_seconds = idle_connection_seconds
        self._make_connector = LaneConnector if uses_lane and is_tested() else aiohttp.TCPConnector
        # Token deadlines are the relay's; here only connecting is timed.
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[str, URL] = {}
        self._proxy: str | None = None
        self._preparing = asyncio.Lock()

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> Coroutine[Any, Any, aiohttp.ClientResponse]:
        """Send one request; returns once the response's head is there, whatever its status.

        A redirect within the backend's own origin is followed, as a POST. The caller closes the
        response. Cancelled, it leaves no connection behind.

        Args:
            path: below the base URL, such as `/chat/completions`.

        Raises:
            RedirectedElsewhere: the response is a redirect to another origin, or to another method.
            aiohttp.ClientError, OSError: no response could be had; `aiohttp.ServerTimeoutError`
                if connecting took too long.
        """
        return self._send("POST", path, headers, body)

    def get(
        self, path: str, headers: Mapping[str, str]
    ) -> Coroutine[Any, Any, aiohttp.ClientResponse]:
        """The same without a body."""
        return self._send("GET", path, headers)

    async def close(self) -> None:
        """Give back every connection."""
        if self._session is not None:
            await self._session.close()

    async def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> aiohttp.ClientResponse:
        url = self._urls.get(path)
        if url is None:
            url = await self._prepare(path)
        assert self._session is not None
        for _ in range(_MOST_REDIRECTS + 1):
            response = await self._session.request(
                method,
                url,
                data=body,
                headers=headers,
                allow_redirects=False,
                proxy=self._proxy,
                timeout=self._timeout,
            )
            status = response.status
            if status not in _REDIRECTS and status != _SEE_OTHER:
                return response
            response.close()
            url = _redirected(response, url)
        raise RedirectedElsewhere(status, f"redirected over {_MOST_REDIRECTS} times")

    async def _prepare(self, path: str) -> URL:
        async with self._preparing:
            if path not in self._urls:
                template = await self._template(path)
                url = URL(str(template.url), encoded=True)
                if self._query:
                    query = quote(self._query, safe=_AS_IT_IS)
                    url = URL(f"{url}?{query}", encoded=True)
                if self._session is None:
                    self._proxy = _proxy_for(url)
                    self._session = self._open_session(template.headers)
                self._urls[path] = url
        return self._urls[path]

    def _open_session(self, headers: httpx2.Headers) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=self._make_connector(
                limit=0,  # `server.max_concurrent_streams` is the limit
                keepalive_timeout=self._idle_connection_seconds,
                ssl=self._tls,
            ),
            headers=CIMultiDict(
                (name, value) for name, value in headers.multi_items() if _is_ours(name.lower())
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # aiohttp unpacks whole reads at once, whatever they unpack to
            max_line_size=_LONGEST_FIELD_BYTES,
            max_field_size=_LONGEST_FIELD_BYTES,
            max_headers=_MOST_FIELDS,
            read_bufsize=_READ_AHEAD_BYTES,
        )

    async def _template(self, path: str) -> httpx2.Request:
        """Have the SDK build a request; this one goes nowhere."""
        recorder = _Recorder()
        async with httpx2.AsyncClient(transport=recorder) as http_client:
            client = self._client.with_options(http_client=http_client)
            await client.post(
                path,
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


def no_transport() -> httpx2.AsyncBaseTransport:
    """What an SDK client gets that words requests and sends none."""
    return _Recorder()


def _redirected(response: aiohttp.ClientResponse, url: URL) -> URL:
    """Where a redirect leads, within the same origin. Raises RedirectedElsewhere."""
    status = response.status
    try:
        target = url.join(URL(response.headers["Location"]))
        is_ours = target.origin() == url.origin() and target.user is None
    except (KeyError, ValueError):
        raise RedirectedElsewhere(status, "redirected to no address") from None
    place = (
        f"{target.scheme}://{target.host}:{target.port}{target.path}"  # no query: it may be secret
    )
    if not is_ours:
        raise RedirectedElsewhere(status, f"redirected to another origin, {place}")
    if status == _SEE_OTHER and response.method != "GET":
        raise RedirectedElsewhere(status, f"redirected to a GET of {place}")
    return target


def _is_ours(name: str) -> bool:
    return name not in _NOT_OURS and not name.startswith(_ABOUT_THE_SDK)


def _proxy_for(url: URL) -> str | None:
    """The proxy that the environment names for this URL, as the SDK would find it."""
    if url.host is None or urllib.request.proxy_bypass(url.host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(url.scheme) or proxies.get("all")
