"""Sends requests to one backend as the SDK would, over aiohttp's connections.

The SDK takes about a millisecond to build a request, and only the body and one header differ from
call to call. So it words one specimen for each path, whose URL and headers serve from then on; until it
is loaded, what it is known to say does (`known`).
aiohttp, which the SDK would use as well, sends them, and the response is read without the layers
above aiohttp's own reader.
"""

import asyncio
import ssl
import urllib.request
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import structlog
from attrs import frozen
from multidict import CIMultiDict
from yarl import URL

from service.agents.openai.direct import Direct
from service.agents.openai.known import Specimen, known_specimen
from service.agents.openai.lane import LaneConnector, is_tested
from service.agents.openai.response import Response

if TYPE_CHECKING:
    from service.agents.openai.specimen import Sdk

log = structlog.get_logger(__name__)

_LIMITS: dict[str, Any] = {
    "max_line_size": 65_536,
    "max_field_size": 65_536,
    "max_headers": 500,
    "read_bufsize": 64 * 1024,
}
"""Of a response's head; aiohttp's own are 8,190 and 128. It reads twice the last ahead of a client that
is slow; its default is 256 KB."""
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


@frozen
class _Way:
    """How a path is asked.

    Attributes:
        specimen: what it goes by.
        url: its address, with the backend's query.
        direct: the short way there, if there is one.
    """

    specimen: Specimen
    url: URL
    direct: Direct | None


class Connection:
    """Sends requests to the paths of a backend. Made within the event loop or outside.

    Args:
        base_url: where paths begin.
        api_key: None for a backend that asks for none.
        query: what goes behind every path's `?`.
        headers: what every request carries besides the SDK's own, or instead.
        connect_seconds: how long a connection may take, TLS included.
        idle_connection_seconds: how long one that nobody uses is kept.
        uses_lane: have bodies offered to a listener before aiohttp parses them (`lane`).
        may_repeat: see `Direct`.

    Attributes:
        is_closed: no request can be sent any more.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        query: str,
        headers: Mapping[str, str],
        connect_seconds: float,
        idle_connection_seconds: float,
        uses_lane: bool,
        may_repeat: bool,
    ) -> None:
        self.is_closed = False
        self._may_repeat = may_repeat
        self._base_url = base_url
        self._api_key = api_key
        self._query = query
        self._headers = dict(headers)
        self._idle_connection_seconds = idle_connection_seconds
        self._make_connector = LaneConnector if uses_lane and is_tested() else aiohttp.TCPConnector
        # Token deadlines are the relay's; here only connecting is timed.
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._old_sessions: list[aiohttp.ClientSession] = []
        self._ways: dict[str, _Way] = {}
        self._trusts_known = True
        self._proxy: str | None = None
        self._preparing = asyncio.Lock()

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> Coroutine[Any, Any, Response]:
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

    def get(self, path: str, headers: Mapping[str, str]) -> Coroutine[Any, Any, Response]:
        """The same without a body."""
        return self._send("GET", path, headers)

    async def prepare(self, path: str) -> None:
        """Load the SDK, in a thread, and see whether a path is asked as it would; if not, ask so from now
        on. Cancelled, it leaves all as it is."""
        specimen = await self._sdks_specimen(path)
        async with self._preparing:
            used = self._ways.get(path)
            if used is not None and used.specimen != specimen:
                log.warning("the SDK words requests otherwise than was known", path=path)
                self._trusts_known = False
                self._ways.clear()
                if self._session is not None:
                    self._old_sessions.append(self._session)
                    self._session = None
            if path not in self._ways:
                self._ways[path] = await self._way(specimen)

    async def close(self) -> None:
        """Give back every connection."""
        self.is_closed = True
        for session in (self._session, *self._old_sessions):
            if session is not None:
                await session.close()

    async def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Response:
        way = self._ways.get(path)
        if way is None:
            way = await self._prepare(path)
        url, direct = way.url, way.direct
        for _ in range(_MOST_REDIRECTS + 1):
            if direct is not None and body is not None:
                response: Response = await direct.post(body, headers)
                direct = None  # a redirect leads to another address
            else:
                response = await self._by_session(method, url, headers, body)
            status = response.status
            if status not in _REDIRECTS and status != _SEE_OTHER:
                return response
            response.close()
            url = _redirected(method, response, url)
        raise RedirectedElsewhere(status, f"redirected over {_MOST_REDIRECTS} times")

    async def _by_session(
        self, method: str, url: URL, headers: Mapping[str, str], body: bytes | None
    ) -> aiohttp.ClientResponse:
        assert self._session is not None  # it was opened for the URL
        return await self._session.request(
            method,
            url,
            data=body,
            headers=headers,
            allow_redirects=False,
            proxy=self._proxy,
            timeout=self._timeout,
        )

    async def _prepare(self, path: str) -> _Way:
        async with self._preparing:
            if path not in self._ways:
                known: Specimen | None = None
                if self._trusts_known:
                    known = known_specimen(self._base_url, self._api_key, self._headers, path)
                self._ways[path] = await self._way(known or await self._sdks_specimen(path))
            return self._ways[path]

    async def _way(self, specimen: Specimen) -> _Way:
        url = URL(specimen.url, encoded=True)
        if self._query:
            query = quote(self._query, safe=_AS_IT_IS)
            url = URL(f"{url}?{query}", encoded=True)
        if self._session is None:
            self._proxy = _proxy_for(url)
            self._session = await self._open_session(url, specimen.headers)
        return _Way(specimen, url, self._direct(self._session, url))

    def _direct(self, session: aiohttp.ClientSession, url: URL) -> Direct | None:
        """The short way to an address, if there is one."""
        if self._proxy is not None or not is_tested():
            return None
        assert session.connector is not None  # it isn't closed
        request = aiohttp.ClientRequest(
            "POST", url, headers=session.headers, loop=asyncio.get_running_loop(), session=session
        )
        limits = {"auto_decompress": False, **_LIMITS}
        return Direct(session.connector, request, self._timeout, self._may_repeat, **limits)

    async def _sdks_specimen(self, path: str) -> Specimen:
        # The SDK's import takes up to a second; so short a use of it isn't worth keeping it.
        sdk = await asyncio.to_thread(_make_sdk, self._base_url, self._api_key, self._headers)
        try:
            return await sdk.specimen(path)
        finally:
            await sdk.close()

    async def _open_session(self, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientSession:
        tls: ssl.SSLContext | bool = True
        if url.scheme == "https" or self._proxy is not None:
            tls = await asyncio.to_thread(_trusted_authorities)
        if self.is_closed:
            raise aiohttp.ClientConnectionError("the agent is closed")
        return aiohttp.ClientSession(
            connector=self._make_connector(
                limit=0,  # `server.max_concurrent_streams` is the limit
                keepalive_timeout=self._idle_connection_seconds,
                ssl=tls,
            ),
            headers=CIMultiDict(headers),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # aiohttp unpacks whole reads at once, whatever they unpack to
            **_LIMITS,
        )


def _make_sdk(base_url: str, api_key: str | None, headers: Mapping[str, str]) -> "Sdk":
    from service.agents.openai.specimen import Sdk

    return Sdk(base_url, api_key, headers)


def _trusted_authorities() -> ssl.SSLContext:
    from service.agents.openai.specimen import trusted_authorities

    return trusted_authorities()


def _redirected(method: str, response: Response, url: URL) -> URL:
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
    if status == _SEE_OTHER and method != "GET":
        raise RedirectedElsewhere(status, f"redirected to a GET of {place}")
    return target


def _proxy_for(url: URL) -> str | None:
    """The proxy that the environment names for this URL, as the SDK would find it."""
    if url.host is None or urllib.request.proxy_bypass(url.host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(url.scheme) or proxies.get("all")
