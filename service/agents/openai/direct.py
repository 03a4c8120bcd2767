"""Posts requests over aiohttp's connections, below its session.

A session makes a dozen objects and two tasks for each request, for cookies, redirects, traces and
uploads that we don't have: 7 % of a short answer's instructions (`make instructions`), and 2 KiB for as
long as it runs (`benchmarks.questions.silence`).
Here the head, which differs in two headers from request to request, is written with the body in one
go. All else is aiohttp's: the connector (addresses, TLS, connections that stay open and the races at
their ends), the parser of what comes back, and its reader. The rules:

1. Only with an aiohttp that this was tested with (`is_tested`), and without a proxy; otherwise a
   session sends the same.
2. The connection goes back to the others once the body has ended, if all of the request has left by
   then; else it is closed.
3. Errors are those that a session raises. But where a connection that was used before turns out to be
   closed, and nothing has come, the request is sent on another one, if requests may be repeated at all:
   a backend closes those that nobody uses, and under load many are found so in a row.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import aiohttp
from aiohttp import hdrs
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from aiohttp.streams import StreamReader
from attrs import define

from service.agents.openai.lane import LaneProtocol
from service.agents.openai.response import Fields

_OWN = frozenset((hdrs.CONTENT_LENGTH, hdrs.TRANSFER_ENCODING))
_INFORMATIONAL = range(100, 200)
_SWITCHING = 101


class _NoFields(dict[str, str]):
    """What `Posted.headers` are once they were let go of."""

    def getall(self, name: str) -> list[str]:
        raise KeyError(name)


_NONE = _NoFields()


@define
class Posted:
    """The response to a `Direct.post`; see `Response`."""

    status: int
    headers: Fields
    content: StreamReader
    _connection: Connection

    def drop_headers(self) -> None:
        """Hold them no longer: they take 2 KB, and an answer may take minutes."""
        self.headers = _NONE

    @property
    def connection(self) -> Connection | None:
        return self._connection if self._connection.protocol is not None else None

    def close(self) -> None:
        self._connection.close()


class Direct:
    """Posts to one URL. Made within the event loop.

    Args:
        connector: whose connections are used.
        request: a POST without a body, which says where to connect, and whose headers are sent. It isn't
            itself sent; no proxy is on its way.
        timeout: of which connecting's counts.
        may_repeat: a request on a connection that turns out to be closed is sent on another one.
        limits: of a response's head and what is read ahead, as `aiohttp.ClientSession` names them.
    """

    def __init__(
        self,
        connector: aiohttp.BaseConnector,
        request: ClientRequest,
        timeout: aiohttp.ClientTimeout,
        may_repeat: bool,
        **limits: Any,
    ) -> None:
        self._connector = connector
        self._may_repeat = may_repeat
        self._request = request
        self._timeout = timeout
        self._limits = limits
        fields = request.headers.items()
        lines = [f"{name}: {value}" for name, value in fields if name.title() not in _OWN]
        if any("\r" in line or "\n" in line or "\0" in line for line in lines):
            raise ValueError("a header holds a line end")
        head = "\r\n".join((f"POST {request.url.raw_path_qs} HTTP/1.1", *lines, "Content-Length: "))
        self._head = head.encode("utf-8")

    async def post(self, body: bytes, headers: Mapping[str, str]) -> Posted:
        """Send one request; returns once the response's head is there, whatever its status.

        The caller closes the response. Cancelled, it leaves no connection behind.

        Args:
            headers: further ones, which are ours: nothing in them is looked at.

        Raises:
            aiohttp.ClientError, OSError: no response could be had; `aiohttp.ServerTimeoutError` if
                connecting took too long.
        """
        while True:
            try:
                connection = await self._connector.connect(self._request, [], self._timeout)
            except TimeoutError as error:
                where = self._request.url
                raise aiohttp.ConnectionTimeoutError(
                    f"Connection timeout to host {where}"
                ) from error
            protocol = connection.protocol
            try:
                return await self._exchange(connection, body, headers)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # Each such connection is gone then, so this ends with a new one at the latest.
                connection.close()
                is_stale = isinstance(protocol, LaneProtocol) and protocol.went_stale
                if not (self._may_repeat and is_stale):
                    raise
            except BaseException:
                connection.close()
                raise

    async def _exchange(
        self, connection: Connection, body: bytes, headers: Mapping[str, str]
    ) -> Posted:
        protocol, transport = connection.protocol, connection.transport
        assert protocol is not None
        if transport is None:
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
        protocol.set_response_params(read_until_eof=True, **self._limits)
        further = "".join([f"\r\n{name}: {value}" for name, value in headers.items()])
        head = b"%b%d%b\r\n\r\n" % (self._head, len(body), further.encode("ascii"))
        transport.writelines((head, body))
        try:
            while True:
                message, content = await protocol.read()
                if message.code not in _INFORMATIONAL or message.code == _SWITCHING:
                    break
        except HttpProcessingError as error:
            raise aiohttp.ClientResponseError(
                self._request.request_info,
                (),
                status=error.code,
                message=error.message,
                headers=error.headers,
            ) from error
        content.on_eof(partial(_give_back, connection))
        return Posted(message.code, message.headers, content, connection)


def _give_back(connection: Connection) -> None:
    transport = connection.transport
    if transport is not None and transport.get_write_buffer_size():
        connection.close()  # the backend has answered without reading all
    else:
        connection.release()
