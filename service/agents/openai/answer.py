"""One request to a backend and its answer, read as events."""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from typing import Protocol

import aiohttp
from attrs import evolve

from service.agents.openai.body import Undecodable, body_of
from service.agents.openai.decoder import NO_STREAM
from service.agents.openai.direct import Posted
from service.agents.openai.failures import ABOUT_WAITING, with_headers
from service.agents.openai.lane import LaneProtocol
from service.agents.openai.reads import EventReader
from service.agents.openai.response import Response
from service.agents.protocol import AgentCall, Sink
from statemachine import ChunkReceived, Event, Failure, UpstreamFailed

_PIECE_BYTES, _MOST_LINES = 8192, 1000
"""A read with more bytes and more lines is taken in pieces, unless its chunks repeat each other: each line
may be an event."""


class Backend(Protocol):
    """Who is asked."""

    async def ask(self, call: AgentCall) -> tuple[Response, str]:
        """Send one request; return the response and its body's encoding (`encoding_of`). Raises
        AgentError, also for any status but 2xx, and for a body in an encoding that isn't read."""

    def body_failure(self, error: Exception) -> Failure:
        """What became of a body that was being read."""


class OpenAIAnswer:
    """Asks when it is entered, closes its connection when it is left; see `Answer`.

    Args:
        reader: for this answer alone.
        most_silent_bytes: a compressed body that unpacks to more without an event in it has failed.
    """

    __slots__ = (
        "_about_waiting",
        "_backend",
        "_body",
        "_call",
        "_has_spoken",
        "_is_packed",
        "_most_silent_bytes",
        "_reader",
        "_response",
        "_rest",
        "_silent_bytes",
        "_sink",
    )

    def __init__(
        self, backend: Backend, call: AgentCall, reader: EventReader, most_silent_bytes: int
    ) -> None:
        self._backend = backend
        self._call: AgentCall | None = call
        self._reader = reader
        self._most_silent_bytes = most_silent_bytes
        self._silent_bytes = 0
        self._has_spoken = False
        self._rest = b""
        self._sink: Sink | None = None

    async def __aenter__(self) -> "OpenAIAnswer":
        call, self._call = self._call, None  # it may be large, and the answer long
        assert call is not None  # it is entered once
        response, encoding = await self._backend.ask(call)
        self._response, headers = response, response.headers
        self._about_waiting = {name: headers[name] for name in ABOUT_WAITING if name in headers}
        if isinstance(response, Posted):
            response.drop_headers()
        self._is_packed = bool(encoding)
        self._body = body_of(self._response, encoding)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._response.close()

    async def read(self, sink: Sink | None = None) -> Sequence[Event]:
        """See `Answer.read`."""
        self._sink = sink
        listener = self._offer
        while True:
            lane = self._lane()
            if lane is not None:
                lane.listener = listener
            try:
                data = await (self._next() if self._rest else self._body.readany())
            except (aiohttp.ClientError, OSError, Undecodable) as error:
                error.__traceback__ = None  # aiohttp keeps the error, which would keep this frame
                return self._reader.close(self._backend.body_failure(error))
            finally:
                if lane is not None and lane.listener is listener:
                    lane.listener = None  # else the connection is another answer's by now
            events = self._read(data) if data else self._end()
            if events:  # else the read completed none
                self._has_spoken = True
                self._silent_bytes = 0
                return self._with_headers(events) if type(events[-1]) is UpstreamFailed else events
            if self._is_packed and self._is_too_silent(data):
                return self._reader.close(NO_STREAM)

    def _read(self, data: bytes) -> list[Event]:
        """The events of these bytes, or of as many of them as are taken at a time."""
        if len(data) > _PIECE_BYTES and (size := _piece_of(data)) < len(data):
            if events := self._reader.read_alike(data):
                return events
            data, self._rest = data[:size], data[size:]
        return self._reader.read(data)

    async def _next(self) -> bytes:
        """What is left of a read of very many lines; others have their turn first."""
        await asyncio.sleep(0)
        data, self._rest = self._rest, b""
        return data

    def _end(self) -> list[Event]:
        """The body has ended. Without a stream in it, any success but a 200 will be the same again."""
        is_odd = self._response.status != HTTPStatus.OK and not self._has_spoken
        events = self._reader.close(NO_STREAM if is_odd else None)
        if is_odd and events[-1] == UpstreamFailed(NO_STREAM):
            events[-1] = UpstreamFailed(evolve(NO_STREAM, should_retry=False))
        return events

    def _is_too_silent(self, data: bytes) -> bool:
        self._silent_bytes += len(data)
        return self._silent_bytes > self._most_silent_bytes

    def _with_headers(self, events: list[Event]) -> list[Event]:
        """The events, of which the last is a failure; one with a status of its own may have the
        headers that go with that."""
        *others, last = events
        assert isinstance(last, UpstreamFailed)
        if last.failure.status is None:
            return events
        return [*others, UpstreamFailed(with_headers(last.failure, self._about_waiting))]

    def _offer(self, pieces: Sequence[bytes]) -> int:
        """Hand repeated chunks to the sink past the waiting `read`; see `Listener`."""
        sink = self._sink
        if sink is None or not sink.is_clear():
            return 0
        if len(pieces) == 1:  # nearly always
            run, count = self._reader.take_event(pieces[0]), 1
        else:
            run, count = self._reader.take(pieces)
        if run is None:
            return 0
        sink.take(ChunkReceived(run))
        return count

    def _lane(self) -> LaneProtocol | None:
        """The connection's lane, while a sink listens to a plain body and the connection is this
        answer's: after the body's end it may be somebody else's."""
        listens = self._sink is not None and not self._is_packed and not self._rest
        connection = self._response.connection if listens else None
        protocol = None if connection is None else connection.protocol
        return protocol if isinstance(protocol, LaneProtocol) else None


def _piece_of(data: bytes) -> int:
    """How many of these bytes to take at a time. As many as can be: each piece costs as much as a read."""
    size = len(data)
    while size > _PIECE_BYTES and (
        data.count(b"\n", 0, size) + data.count(b"\r", 0, size) > _MOST_LINES
    ):
        size //= 2
    return size
