"""Everybody who reads a running answer besides its first client.

Each reader has a cursor into the tape and a pace of its own; none waits for another, and the first
client waits for none. The rules:

1. What has come is told once a turn of the loop, however many chunks that are.
2. Readers that have had everything before, and have room, are written to at once: all that are at the
   same position get the same bytes, encoded once. Any other is woken, and goes on by itself.
3. The end is told after the record is saved, or as good as (`Ending`).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from service.stream.answers import Ending
from service.stream.writers import frame_of
from service.wire import ChunkEncoder
from service.wire.encoder import numbered_events
from statemachine import SessionRequest
from statemachine.tape import Cursor, Expired, Tape


class CutOff(Exception):
    """Nothing more of the answer is to be shown here, whatever is on its tape; its end comes."""


Form = tuple[bool, bool]
"""What readers' chunks may differ in: a key for usage, an id for each event."""


class LiveReader(Protocol):
    """A reader that has had everything, and waits for more."""

    @property
    def position(self) -> int:
        """How many chunks it has had."""

    @property
    def form(self) -> Form:
        """What its chunks are like."""

    def is_clear(self) -> bool:
        """True if it may be written to at once."""

    def send_now(self, frame: bytes, position: int) -> None:
        """Write events, after which it is at this position."""

    def wake(self) -> None:
        """There is something to read, or the end."""


class Audience:
    """The readers of one running answer; see `service.stream.answers.Answer`.

    Args:
        request: what was asked.
        tape: its chunks.
        settle: waits until the journal is as safe as configured; raises CutOff. None: it is at once.
    """

    def __init__(
        self,
        request: SessionRequest,
        tape: Tape,
        settle: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self.completion_id = request.completion_id
        self.model = request.model
        self.created = int(request.created_at)
        self.tape = tape
        self.ending: Ending | None = None
        self.settle = settle
        self._waiting: set[LiveReader] = set()
        self._over = asyncio.Event()
        self._encoders: dict[bool, ChunkEncoder] = {}
        self._is_due = False

    def encoder(self, include_usage: bool) -> ChunkEncoder:
        """The encoder for everybody who wants chunks like that."""
        encoder = self._encoders.get(include_usage)
        if encoder is None:
            encoder = ChunkEncoder(self.completion_id, self.model, self.created, include_usage)
            if self.tape.count:
                encoder.go_on_after(self.tape.created)
                self._encoders[include_usage] = encoder
        return encoder

    def await_more(self, reader: LiveReader) -> None:
        """Have a reader told what comes next."""
        self._waiting.add(reader)

    def forget(self, reader: LiveReader) -> None:
        """It isn't to be told any more. Does nothing for one that waits for nothing."""
        self._waiting.discard(reader)

    @property
    def is_over(self) -> bool:
        """True once nothing more comes."""
        return self._over.is_set()

    async def wait_for_end(self) -> None:
        """Return once the answer is over."""
        await self._over.wait()

    def note_more(self) -> None:
        """Something has come; readers are told in the next turn of the loop."""
        if not self._is_due and self._waiting:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._tell)

    def end(self, ending: Ending | None) -> None:
        """The answer is over. None: something broke, and nobody knows how."""
        self.ending = ending
        self._over.set()
        for reader in tuple(self._waiting):
            reader.wake()

    def _tell(self) -> None:
        self._is_due = False
        count = self.tape.count
        blocks: dict[tuple[int, Form], tuple[bytes, int]] = {}
        for reader in tuple(self._waiting):
            if reader.position >= count:
                continue
            if self.settle is not None or not reader.is_clear():
                reader.wake()
                continue
            key = reader.position, reader.form
            try:
                block = blocks.get(key)
                if block is None:
                    block = blocks[key] = self._block(*key)
            except (Expired, ValueError):
                reader.wake()  # it finds out by itself
                continue
            reader.send_now(*block)

    def _block(self, position: int, form: Form) -> tuple[bytes, int]:
        """All that has come since a position, framed, and the position after it."""
        include_usage, has_ids = form
        cursor, count, data = Cursor(self.tape, position), self.tape.count, b""
        encoder = self.encoder(include_usage)
        while cursor.position < count:
            data += encoder.encode_written(cursor.read())
        return frame_of(numbered_events(data, position + 1) if has_ids else data), cursor.position
