"""One reader of an answer: first what has come, then what comes, then its end.

The rules:

1. What it is sent is what the first client was sent from its position on, chunk by chunk.
2. It is opened at once if anything has been sent of the answer; otherwise with the first chunk or
   ping, so that a failure before that is an HTTP status.
3. It never holds anybody up: what it can't take waits on the tape.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web

from service.edge.errors import ApiError
from service.stream.answers import Answer, Ending
from service.stream.audience import Audience, CutOff, Form
from service.stream.writers import ClientConnectionLost, SseWriter
from service.wire import ChunkEncoder, error_event
from service.wire.encoder import numbered_events
from statemachine import Failure
from statemachine.tape import Cursor, Expired

EXPIRED = Failure(
    "position_expired",
    "What stood at this position isn't kept any more; the whole answer can be read from 0.",
    type="invalid_request_error",
    param="starting_after",
)
_BROKEN = Failure("internal_error", "The service made a mistake and could not go on.")


class Follower:
    """A reader. `run` it in its request's task.

    Args:
        answer: what it reads; an `Audience` while it runs.
        writer: its connection.
        position: how many chunks its client has had.
        form: what its chunks are like.
        keep_alive_seconds: the silence after which it is pinged.
        clock: seconds that never run backwards.
        pinged: called after each ping.
    """

    def __init__(
        self,
        answer: Answer,
        writer: SseWriter,
        position: int,
        form: Form,
        keep_alive_seconds: float,
        clock: Callable[[], float],
        pinged: Callable[[], None] = lambda: None,
    ) -> None:
        self._form = form
        self._answer = answer
        self._writer = writer
        self._cursor = Cursor(answer.tape, position)
        self._interval = keep_alive_seconds
        self._clock = clock
        self._pinged = pinged
        self._sent_at = clock()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def position(self) -> int:
        """How many chunks its client has had."""
        return self._cursor.position

    @property
    def form(self) -> Form:
        """What its chunks are like."""
        return self._form

    async def run(self) -> web.StreamResponse:
        """Write the answer to its end; the response for the handler to return, whose body aiohttp
        then ends. A client that is lost ends it too. Cancelling it leaves nothing behind.

        Raises:
            ApiError: the failure before anything was sent.
        """
        try:
            if self._answer.tape.count:
                await self._writer.open_at_once()
            await self._read_on()
            await self._end()
        except ClientConnectionLost:
            pass
        except Expired:
            await self._fail(EXPIRED)
        finally:
            self._stop_waiting()
        return self._writer.response()

    async def _read_on(self) -> None:
        answer = self._answer
        audience = answer if isinstance(answer, Audience) else None
        encoder = self._encoder()
        while True:
            start = self._cursor.position
            if block := self._cursor.read():
                data = encoder.encode_written(block)
                if audience is not None and audience.settle is not None:
                    try:
                        await audience.settle()
                    except CutOff:
                        self._cursor.position = start
                        await audience.wait_for_end()
                        return
                await self._send(self._numbered(data, start))
                await asyncio.sleep(0)  # a long tape isn't to hold up others
            elif audience is None or audience.is_over:
                return
            elif not await self._is_told(audience):
                await self._ping()

    def _encoder(self) -> ChunkEncoder:
        answer, include_usage = self._answer, self._form[0]
        if isinstance(answer, Audience):
            return answer.encoder(include_usage)
        encoder = ChunkEncoder(answer.completion_id, answer.model, answer.created, include_usage)
        if answer.tape.count:
            encoder.go_on_after(answer.tape.created)
        return encoder

    async def _send(self, data: bytes) -> None:
        if not self._writer.is_open:
            await self._writer.open()
        await self._writer.send(data)
        self._sent_at = self._clock()

    # --- waiting for more -------------------------------------------------------------------

    async def _is_told(self, audience: Audience) -> bool:
        """Wait for more, and be written to meanwhile. False if a ping is due first."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        self._set_timer(loop)
        audience.await_more(self)
        try:
            await self._waiter
        finally:
            self._waiter = None
            audience.forget(self)
            self._stop_waiting()
        return self._clock() < self._sent_at + self._interval

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        delay = max(self._sent_at + self._interval - self._clock(), 0.001)
        self._timer = loop.call_later(delay, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer looks whether a ping is due; it isn't set anew for each chunk."""
        if self._clock() >= self._sent_at + self._interval:
            self.wake()
        else:
            self._set_timer(loop)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _ping(self) -> None:
        if not self._writer.is_open:
            await self._writer.open()
        await self._writer.ping()
        self._pinged()
        self._sent_at = self._clock()

    # --- what an audience calls while it waits ----------------------------------------------

    def is_clear(self) -> bool:
        """See `LiveReader`."""
        return self._waiter is not None and self._writer.is_clear()

    def send_now(self, frame: bytes, position: int) -> None:
        """See `LiveReader`."""
        self._writer.send_frame_now(frame)
        self._cursor.position = position
        self._sent_at = self._clock()

    def wake(self) -> None:
        """See `LiveReader`."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the end ----------------------------------------------------------------------------

    async def _end(self) -> None:
        self._writer.stop_waiting()
        ending = self._answer.ending
        if ending is None:
            await self._fail(_BROKEN)
        elif ending.failure is None:
            await self._finish(ending)
        elif not (ending.is_silent and self._writer.is_open):
            await self._fail(ending.failure)

    async def _finish(self, ending: Ending) -> None:
        if not self._writer.is_open:
            await self._writer.open()
        include_usage, position, tail = self._form[0], self.position, b""
        encoder = self._encoder()
        if include_usage and position == self._answer.tape.count:
            tail = self._numbered(encoder.usage(ending.usage_frame, ending.usage), position)
            position += 1
        self._writer.end_with(tail + self._marked(encoder.done(), position))

    def _numbered(self, chunks: bytes, position: int) -> bytes:
        """The chunks from a position on, with ids if the client wants them."""
        return numbered_events(chunks, position + 1) if self._form[1] else chunks

    def _marked(self, event: bytes, position: int) -> bytes:
        """An event that is no chunk, with the position that it leaves its client at."""
        return b"id: %d\n%b" % (position, event) if self._form[1] else event

    async def _fail(self, failure: Failure) -> None:
        if not self._writer.is_open:
            raise ApiError(failure)
        await self._writer.send(self._marked(error_event(failure), self.position))
