"""Accepts connections: deadlines for headers, bodies, idling and for clients that take nothing, and
errors for invalid HTTP.

`Runner` serves the application and answers invalid HTTP in OpenAI's shape; `read_body` applies the
body's deadline. Who the client is, and how much it may ask, is decided elsewhere.
"""

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import structlog
from aiohttp import HttpVersion11, hdrs, http_exceptions, web
from aiohttp.web_protocol import RequestHandler

from service.edge.errors import ApiError, error_response, invalid_request
from service.edge.half_closed import PROBE_AFTER_SECONDS, Probe
from service.edge.kernel import tells_of
from service.edge.parting import Parting
from service.edge.progress import Progress, bound_unsent
from service.edge.turns import Turns
from service.ids import random_hex
from statemachine import Failure

log = structlog.get_logger(__name__)

_HEADERS_TOO_LARGE = Failure(
    "headers_too_large",
    "A header or the address is longer than 8,190 bytes, or there are more than 128 headers.",
    type="invalid_request_error",
)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NOT_HTTP = invalid_request("The request is not valid HTTP.").failure
_SEND_TIMEOUT_SECONDS = 60.0
_LOOKS = 8
"""Times that a client is looked at before it is given up; so it has up to an eighth more."""
_FAREWELL_SECONDS = 5.0
"""How long a stop waits for what clients haven't taken yet."""
_FAREWELL_LOOK_SECONDS = 0.02
_TOO_MANY_HEADERS = "Too many headers"
"""aiohttp 3.14's message for it; there is no class to tell it by."""


class Runner(web.AppRunner):
    """An `AppRunner` whose handlers are cancelled when their client leaves, without access log.

    A client that takes nothing of what waits for it is cut off, whatever it asked for. One that
    takes some of it is not, however slowly. A stop waits some seconds for what clients haven't
    taken yet.

    Args:
        app: the application.
        idle_timeout_seconds: how long a connection may go without a complete request, whether it
            is idle or its headers come byte by byte. Then it is closed.
        shutdown_timeout: how long handlers may take to end, in seconds.
        send_timeout_seconds: asked for the seconds that a client may take nothing, while its
            connection has no such limit of its own (`limit_waiting`).
    """

    def __init__(
        self,
        app: web.Application,
        idle_timeout_seconds: float,
        shutdown_timeout: float,
        send_timeout_seconds: Callable[[], float] = lambda: _SEND_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(
            app,
            handler_cancellation=True,
            access_log=None,  # the canonical line is the log of a completion
            auto_decompress=False,  # a megabyte may unpack to a gigabyte, on the loop
            lingering_time=0,  # not aiohttp's, which parses what it throws away; see `Parting`
            shutdown_timeout=shutdown_timeout,
            keepalive_timeout=idle_timeout_seconds,
        )
        self._send_timeout_seconds = send_timeout_seconds

    async def _make_server(self) -> web.Server:
        # aiohttp offers no other place to choose the class of its connections;
        # test_connections.py fails if this one goes.
        made = await super()._make_server()
        server = _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,
        )
        server.send_timeout_seconds = self._send_timeout_seconds
        server.partings = Turns()
        return server


class _Server(web.Server):
    """Makes the connections, and looks after all of them with one timer while there are any."""

    send_timeout_seconds: Callable[[], float]
    partings: Turns
    _looks: asyncio.TimerHandle | None = None

    def __call__(self) -> RequestHandler:
        return ClientConnection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if self._looks is None:
            self.look_within(self.send_timeout_seconds())

    def look_within(self, timeout_seconds: float) -> None:
        """Look at the clients next in time for one that may be given up after so many seconds."""
        delay = timeout_seconds / _LOOKS
        if self._looks is not None:
            if self._looks.when() <= self._loop.time() + delay:
                return
            self._looks.cancel()
        # A context of its own: this may be a request's task, whose ids every line would then have.
        self._looks = self._loop.call_later(delay, self._look, context=contextvars.Context())

    def _look(self) -> None:
        self._looks = None
        shortest = usual = self.send_timeout_seconds()
        try:
            for connection, transport in tuple(self._connections.items()):
                assert isinstance(connection, ClientConnection)
                shortest = min(shortest, connection.look(transport, usual))
        finally:  # even after a mistake of ours, a stuck client must not be left alone for ever
            if self._connections:
                self.look_within(shortest)

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  # aiohttp's
        """Wait a little for slow readers, then end every connection."""
        for _ in range(int(_FAREWELL_SECONDS / _FAREWELL_LOOK_SECONDS)):
            if not any(each.get_write_buffer_size() for each in self._connections.values()):
                break
            await asyncio.sleep(_FAREWELL_LOOK_SECONDS)
        left = tuple(self._connections.values())
        await super().shutdown(timeout)
        for transport in left:
            if transport.get_write_buffer_size():
                transport.abort()
        if self._looks is not None:
            self._looks.cancel()


class ClientConnection(RequestHandler):
    """A client's connection; the `protocol` of its requests.

    Attributes:
        filler: what may be written into the response that has begun, at any moment between two
            writes, and says nothing; None: there is no such thing.
    """

    __slots__ = (
        "_about",
        "_has_asked_all",
        "_is_refused",
        "_parting",
        "_progress",
        "_send_timeout_seconds",
        "filler",
    )

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self.filler: bytes | None = None
        self._parting: Parting | None = None
        self._is_refused = False
        self._has_asked_all = False

    def data_received(self, data: bytes) -> None:
        if self._parting is None:
            super().data_received(data)
        else:
            self._parting.take(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's says None: close
        """Go on with what a client has asked for that asks nothing more, if it asked for it whole;
        and find out whether it is still there. True: keep the connection."""
        waiter, request, transport = self._waiter, self._current_request, self.transport
        is_idle = not self._request_count or (waiter is not None and not waiter.done())
        is_torn = request is not None and not request.content.is_eof()
        if self._parting or is_idle or is_torn or transport is None or not tells_of(transport):
            return False
        self._has_asked_all = True
        has_begun = request is not None and request.writer.output_size > 0
        delay = 0.0 if has_begun else PROBE_AFTER_SECONDS
        Probe(transport, self._nothing_to_say, delay, self._part)
        return True

    def _nothing_to_say(self) -> bytes | None:
        """What says nothing at this moment; see `Probe`."""
        request = self._current_request
        if request is None:
            return b""  # its answer is being written, and finds out by itself
        if not request.content.is_eof():
            return None  # it broke off within the body, just when the request was taken up
        if request.writer.output_size:
            return self.filler or b""
        # Not to HTTP/1.0, which knows no interim responses (RFC 9110, section 15.2).
        return _CONTINUE if request.version >= HttpVersion11 else None

    def connection_lost(self, exc: BaseException | None) -> None:
        self._part(partial(self._end, exc))

    def _part(self, work: Callable[[], None]) -> None:
        """Do what a client's leaving takes, in turn with that of others."""
        if isinstance(self._manager, _Server):
            self._manager.partings.give(work)
        else:
            work()

    def _end(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._parting is not None:
            self._parting.end()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send what is left of a response, and wait until all of it has left this process: its row,
        which was saved before, can't tell if the client was lost meanwhile. After one to a request
        that isn't wholly read, close such that its client can read it."""
        is_unread = not request.content.is_eof()
        self.filler = None
        if is_unread or (self._has_asked_all and not self._messages):
            resp.force_close()
        is_taken = False
        try:
            resp, is_lost = await super().finish_response(request, resp, start_time)
            transport = self.transport
            if transport is not None and transport.get_write_buffer_size():
                await self._empty(transport)
            is_taken = not is_lost and self.transport is not None
        finally:
            if not is_taken and self._about:
                log.info("answer not taken", **self._about)
        if (is_unread or self._is_refused) and self.transport is not None:
            self.close()  # nothing further is parsed, whatever was pipelined
            self._parting = Parting(self.transport)
            await self._parting.wait()
        return resp, is_lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._about: Mapping[str, str] = {}
        self._progress = Progress()
        self._send_timeout_seconds: float | None = None
        bound_unsent(transport)
        super().connection_made(transport)

    def limit_waiting(self, seconds: float, about: Mapping[str, str]) -> None:
        """Wait so long for a client that takes nothing. It holds for the connection's later requests
        too.

        Args:
            about: what is sent, for the log line if the client is given up.
        """
        self._about = about
        if seconds != self._send_timeout_seconds and isinstance(self._manager, _Server):
            self._send_timeout_seconds = seconds
            self._manager.look_within(seconds)

    def look(self, transport: asyncio.Transport, usual_seconds: float) -> float:
        """Cut the client off if it has taken nothing for too long; the seconds that are too long."""
        progress = self._progress
        limit = self._send_timeout_seconds or usual_seconds
        if progress.stuck_seconds(transport, self._loop.time()) >= limit:
            log.warning("client stalled", **self._about)
            transport.abort()  # whoever writes to it, or waits for it, is told
        elif not progress.owes and self._current_request is None:
            self._about = {}  # that answer has been taken
        return limit

    async def _empty(self, transport: asyncio.Transport) -> None:
        """aiohttp counts an answer as ended while there are up to 64 KB of it left here."""
        transport.set_write_buffer_limits(high=0)
        await self._drain_helper()
        transport.set_write_buffer_limits()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer invalid HTTP. aiohttp's own method would log the offending header, which may hold
        a key."""
        if not isinstance(exc, http_exceptions.HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        log.debug("not HTTP", reason=type(exc).__name__)
        self._is_refused = True
        long = isinstance(exc, http_exceptions.LineTooLong) or _TOO_MANY_HEADERS in exc.message
        response = error_response(_HEADERS_TOO_LARGE if long else _NOT_HTTP)
        response.headers["x-request-id"] = f"req_{random_hex(24)}"
        response.headers["x-trace-id"] = random_hex(32)
        response.force_close()
        return response


async def continue_later(_request: web.Request) -> None:
    """The `expect_handler` of routes that call `read_body`, which asks for the body itself.

    Some clients wait until they are asked (curl, over 1 MB). aiohttp's own handler would ask before
    the key is checked.
    """


async def read_body(request: web.Request, timeout_seconds: float) -> bytes:
    """Read the request's whole body; ask for it first if the client waits for that.

    Raises:
        ApiError: `request_timeout` (408) if it takes longer than `timeout_seconds`, however
            steadily it comes, and if its chunks make no sense; `invalid_request` (400) if it
            contradicts its headers in another way.
        web.HTTPRequestEntityTooLarge: it is over the application's `client_max_size`. If its
            length is announced, none of it is read.
    """
    length: int | None = request.content_length
    if length is not None and length > request.client_max_size:
        raise web.HTTPRequestEntityTooLarge(request.client_max_size, length)
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(_CONTINUE)
        request.writer.output_size = 0  # as in aiohttp's own: the answer hasn't begun
    try:
        if request.content.is_eof():
            return await _read_all(request)  # nearly always: it came with the headers
        async with asyncio.timeout(timeout_seconds):
            return await _read_all(request)
    except TimeoutError:
        message = f"The request's body took longer than {timeout_seconds:g} s to come."
        raise ApiError(Failure("request_timeout", message, type="timeout_error")) from None
    except web.RequestPayloadError:
        raise invalid_request("The request's body is not what its headers say.") from None


async def _read_all(request: web.Request) -> bytes:
    """The body, which a `request.read` would also keep, for as long as the answer takes."""
    pieces: list[bytes] = []
    size = 0
    while piece := await request.content.readany():
        pieces.append(piece)
        size += len(piece)
        if size > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(request.client_max_size, size)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
