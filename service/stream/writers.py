"""Writes effects as bytes: `SseWriter` for a stream, `JsonWriter` for a plain request.

The only file that sees aiohttp-sse. Both writers end with a response for the handler to return.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter
from aiohttp_sse import EventSourceResponse

from service.edge.connections import ClientConnection
from service.edge.errors import error_response
from service.wire import PING, ChunkEncoder, completion_object, encode_json
from statemachine import ChunkRun, Failure, SessionRecord

_EVENT_STREAM = "text/event-stream; charset=utf-8"
"""SSE is always UTF-8, but clients that go by media types alone read a `text/` type without a
charset as Latin-1."""
_PING_CHUNK = b"%x\r\n%b\r\n" % (len(PING), PING)
_LITTLE_BYTES = 16 * 1024
"""Left over from earlier writes; asyncio's low-water mark, below which aiohttp makes nobody wait."""


class ClientConnectionLost(Exception):
    """The client can't be written to any more."""


class Writer(Protocol):
    """Where a session's effects go. Every method may raise `ClientConnectionLost`; cancelling
    one leaves the bytes already taken in order, so a later write still makes sense."""

    async def open(self) -> None:
        """Commit the 200."""

    async def send_chunks(self, runs: Sequence[ChunkRun]) -> None:
        """Write chunks that came together, together. Returns when the client has room for more."""

    def is_clear(self) -> bool:
        """True if nothing that is written now has to wait for the client. Never raises."""

    def send_chunks_now(self, runs: Sequence[ChunkRun]) -> None:
        """Do what `send_chunks` does, right after `is_clear` was true. Raises only ValueError, for
        a chunk that can't be encoded."""

    async def ping(self) -> None:
        """Write one keep-alive comment."""

    async def send_error(self, failure: Failure) -> None:
        """Tell the client what went wrong, in the way that is still open."""

    async def send_done(self, record: SessionRecord) -> None:
        """Write the end of a whole answer, or have it written with the body's end."""

    def stop_waiting(self) -> None:
        """From now on return at once, whether the client has room or not."""

    def response(self) -> web.StreamResponse:
        """The response for the handler to return. aiohttp ends its body, at the client's pace. The
        last call; never raises."""

    def abort(self) -> None:
        """Cut the connection now; a write that is waiting raises `ClientConnectionLost`."""


class _Stream(EventSourceResponse):
    """aiohttp-sse's response, for its headers.

    Its task for pings would be a second writer (pings are `SseWriter.ping`), and its socket option
    is the connection's, so `prepare` leaves both out.
    """

    _send_headers_immediately = False
    """aiohttp then puts them before the first thing that is written; that comes at once."""

    tail = b""
    """What is written with the body's end, in one packet."""

    def __init__(self) -> None:
        super().__init__()
        self.headers[hdrs.CONTENT_TYPE] = _EVENT_STREAM

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return await web.StreamResponse.prepare(self, request)

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(self.tail)


class SseWriter:
    """A `text/event-stream` response.

    Args:
        request: whose client is written to.
        encoder: makes chunks ours.
    """

    def __init__(self, request: web.Request, encoder: ChunkEncoder) -> None:
        self._request = request
        self._encoder = encoder
        self._stream: _Stream | None = None
        self._sink: StreamWriter | None = None
        self._transport: asyncio.Transport | None = None
        self._refusal: web.Response | None = None
        self._waits = True

    async def open(self) -> None:
        stream = _Stream()
        try:
            sink = await stream.prepare(self._request)
        except (ConnectionError, RuntimeError, AssertionError) as error:
            # aiohttp asserts on a transport that went away just before.
            raise ClientConnectionLost from error
        assert isinstance(sink, StreamWriter)
        self._stream = stream
        self._sink = sink
        connection = self._request.protocol
        if isinstance(connection, ClientConnection):
            connection.filler = _PING_CHUNK if sink.chunked else PING

    async def send_chunks(self, runs: Sequence[ChunkRun]) -> None:
        await self.send(self._encoder.encode_all(runs))

    async def send(self, data: bytes) -> None:
        """Write events. Returns when the client has room for more. Raises ClientConnectionLost."""
        await self._write(data)
        # What went before has left aiohttp's hands, so the socket may be written to directly.
        if self._sink is not None and self._sink.chunked:
            self._transport = self._request.transport

    def is_clear(self) -> bool:
        # aiohttp's own way costs three coroutines and four joins a chunk. With little of earlier
        # writes left in the transport there is nothing to wait for; and nothing to overtake, since
        # aiohttp keeps no bytes of its own.
        transport = self._transport
        return (
            transport is not None
            and transport.get_write_buffer_size() < _LITTLE_BYTES
            and not transport.is_closing()
        )

    def send_chunks_now(self, runs: Sequence[ChunkRun]) -> None:
        assert self._transport is not None
        data = self._encoder.encode_all(runs)
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def send_frame_now(self, frame: bytes) -> None:
        """Do the same with `frame_of` events, right after `is_clear` was true."""
        assert self._transport is not None
        self._transport.write(frame)

    async def ping(self) -> None:
        await self._write(PING)

    async def send_error(self, failure: Failure) -> None:
        if self._stream is None:
            self._refusal = error_response(failure)
        else:
            await self._write(self._encoder.error(failure))

    async def send_done(self, record: SessionRecord) -> None:
        self.end_with(self._encoder.done())

    def end_with(self, tail: bytes) -> None:
        """Have these events written with the body's end. Raises ClientConnectionLost."""
        if self._stream is None:
            raise ClientConnectionLost
        self._stream.tail = tail

    async def open_at_once(self) -> None:
        """Commit the 200 and send its headers, although nothing follows yet. Raises
        ClientConnectionLost."""
        await self.open()
        assert self._sink is not None
        try:
            self._sink.send_headers()
        except (ConnectionError, RuntimeError) as error:  # the second is uvloop's
            raise ClientConnectionLost from error

    @property
    def is_open(self) -> bool:
        """True once the 200 is committed."""
        return self._stream is not None

    def stop_waiting(self) -> None:
        self._waits = False

    def response(self) -> web.StreamResponse:
        return self._stream or self._refusal or web.Response(status=499)

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _write(self, data: bytes) -> None:
        if self._sink is None:  # its opening was broken off
            raise ClientConnectionLost
        try:
            await self._sink.write(data, drain=self._waits)
        except (ConnectionError, RuntimeError) as error:
            raise ClientConnectionLost from error
        if self._request.transport is None:
            # Lost while this waited for room, which aiohttp tells only if it was by an error.
            raise ClientConnectionLost


def frame_of(data: bytes) -> bytes:
    """Events as a frame of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class JsonWriter:
    """One `chat.completion` object at the end, for a client that didn't ask for a stream."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response: web.Response | None = None

    async def open(self) -> None:
        raise AssertionError("a plain request has no stream")

    async def send_chunks(self, runs: Sequence[ChunkRun]) -> None:
        raise AssertionError("a plain request has no stream")

    def is_clear(self) -> bool:
        return False

    def send_chunks_now(self, runs: Sequence[ChunkRun]) -> None:
        raise AssertionError("a plain request has no stream")

    async def ping(self) -> None:
        raise AssertionError("a plain request has no stream")

    async def send_error(self, failure: Failure) -> None:
        self._response = error_response(failure)

    async def send_done(self, record: SessionRecord) -> None:
        self._response = web.Response(
            body=encode_json(completion_object(record)), content_type="application/json"
        )

    def stop_waiting(self) -> None:
        pass  # nothing is written before the end

    def response(self) -> web.StreamResponse:
        return self._response or web.Response(status=499)

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()
