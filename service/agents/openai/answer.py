"""One request to a backend and its answer, read as events."""

from collections.abc import Sequence
from typing import Protocol

import aiohttp

from service.agents.openai.lane import LaneProtocol
from service.agents.openai.reads import EventReader
from service.agents.protocol import AgentCall, Sink
from statemachine import ChunkReceived, Event, Failure


class Backend(Protocol):
    """Who is asked."""

    async def ask(self, call: AgentCall) -> aiohttp.ClientResponse:
        """Send one request. Raises AgentError, also for any status but 200."""

    def body_failure(self, error: Exception) -> Failure:
        """What became of a body that was being read."""


class OpenAIAnswer:
    """Asks when it is entered, closes its connection when it is left; see `Answer`.

    Args:
        reader: for this answer alone.
    """

    __slots__ = ("_backend", "_call", "_reader", "_response", "_sink")

    def __init__(self, backend: Backend, call: AgentCall, reader: EventReader) -> None:
        self._backend = backend
        self._call = call
        self._reader = reader
        self._sink: Sink | None = None

    async def __aenter__(self) -> "OpenAIAnswer":
        self._response = await self._backend.ask(self._call)
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
                data = await self._response.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                error.__traceback__ = None  # aiohttp keeps the error, which would keep this frame
                return self._reader.close(self._backend.body_failure(error))
            finally:
                if lane is not None and lane.listener is listener:
                    lane.listener = None  # else the connection is another answer's by now
            events = self._reader.read(data) if data else self._reader.close()
            if events:  # else the read completed none
                return events

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
        """The connection's lane, while a sink listens and the connection is this answer's: after the
        body's end it may be somebody else's."""
        connection = self._response.connection if self._sink is not None else None
        protocol = None if connection is None else connection.protocol
        return protocol if isinstance(protocol, LaneProtocol) else None
