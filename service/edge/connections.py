"""Accepts connections: deadlines for headers, bodies and idling, and errors for invalid HTTP.

`Runner` serves the application and answers invalid HTTP in OpenAI's shape; `read_body` applies the
body's deadline. Who the client is, and how much it may ask, is decided elsewhere.
"""

import asyncio
import socket
from contextlib import suppress

import structlog
from aiohttp import hdrs, http_exceptions, web
from aiohttp.web_protocol import RequestHandler

from service.edge.errors import ApiError, error_response, invalid_request
from service.ids import random_hex
from statemachine import Failure

log = structlog.get_logger(__name__)

_HEADERS_TOO_LARGE = Failure(
    "headers_too_large",
    "A header or the address is longer than 8,190 bytes, or there are more than 128 headers.",
    type="invalid_request_error",
)
_NOT_HTTP = invalid_request("The request is not valid HTTP.").failure
_TCP_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
_MOST_MILLISECONDS = 2**31 - 1
"""The largest value of a socket option, a C int; some 25 days."""
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_TOO_MANY_HEADERS = "Too many headers"
"""aiohttp 3.14's message for it; there is no class to tell it by."""


class Runner(web.AppRunner):
    """An `AppRunner` whose handlers are cancelled when their client leaves, without access log.

    Args:
        app: the application.
        idle_timeout_seconds: how long a connection may go without a complete request, whether it
            is idle or its headers come byte by byte. Then it is closed.
        shutdown_timeout: how long handlers may take to end, in seconds.
    """

    def __init__(
        self, app: web.Application, idle_timeout_seconds: float, shutdown_timeout: float
    ) -> None:
        super().__init__(
            app,
            handler_cancellation=True,
            access_log=None,  # the canonical line is the log of a completion
            shutdown_timeout=shutdown_timeout,
            keepalive_timeout=idle_timeout_seconds,
        )

    async def _make_server(self) -> web.Server:
        # aiohttp offers no other place to choose the class of its connections;
        # test_connections.py fails if this one goes.
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,
        )


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return ClientConnection(self, loop=self._loop, **self._kwargs)


class ClientConnection(RequestHandler):
    """A client's connection; the `protocol` of its requests."""

    __slots__ = ("_unacknowledged_seconds",)

    def limit_unacknowledged(self, seconds: float) -> None:
        """Have the kernel give up a client that acknowledges nothing for so long (Linux). It holds
        for the connection's later requests too."""
        if seconds == getattr(self, "_unacknowledged_seconds", None) or self.transport is None:
            return  # asked for already: one system call for a connection, not for each request
        self._unacknowledged_seconds = seconds
        sock = self.transport.get_extra_info("socket")
        if _TCP_USER_TIMEOUT is None or sock is None or sock.family not in _INTERNET:
            return
        with suppress(OSError):  # already closed
            milliseconds = min(int(seconds * 1000), _MOST_MILLISECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, milliseconds)

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
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # as in aiohttp's own: the answer hasn't begun
    try:
        if request.content.is_eof():
            return await request.read()  # nearly always: it came with the headers
        async with asyncio.timeout(timeout_seconds):
            return await request.read()
    except TimeoutError:
        message = f"The request's body took longer than {timeout_seconds:g} s to come."
        raise ApiError(Failure("request_timeout", message, type="timeout_error")) from None
    except web.RequestPayloadError:
        raise invalid_request("The request's body is not what its headers say.") from None
