"""Holds back what comes before the first token, in bounded memory. Pure.

Some models send empty chunks for minutes before they say a word: that is no fault, and must neither
end the attempt nor fill the memory.
"""

from collections.abc import Sequence

from statemachine import ChunkReceived, Event, JsonObject, RepeatedChunks
from statemachine.chunks import PADDING
from statemachine.folding import weight_of

HELD_AS_THEY_COME = 100
"""Chunks that are held back even if they say what the one before said."""
MOST_HELD = 1000
MOST_HELD_BYTES = 1024 * 1024
_NEW_EACH_TIME = frozenset(("id", "created", PADDING))


class HeldBack:
    """The events of one attempt up to its first token.

    None of their chunks bears a token. If there are many, one that says what the one before said is
    left out, and so is any past the limits: nothing of the answer is in it.

    Attributes:
        events: those that are held.
        has_begun: a choice has come, be it with a role alone.
    """

    __slots__ = ("_bytes", "_last", "events", "has_begun")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.has_begun = False
        self._bytes = 0
        self._last: JsonObject = {}

    def add(self, events: Sequence[Event]) -> None:
        """Hold these back too."""
        for event in events:
            if not isinstance(event, ChunkReceived) or self._is_worth_holding(event):
                self.events.append(event)

    def _is_worth_holding(self, event: ChunkReceived) -> bool:
        run = event.run
        if isinstance(run, RepeatedChunks):  # empty texts; the chunk that they repeat was here
            self._bytes += len(run.literals)
            return len(self.events) < HELD_AS_THEY_COME and self._bytes < MOST_HELD_BYTES
        self.has_begun = self.has_begun or bool(run.payload.get("choices"))
        count = len(self.events)
        if count >= HELD_AS_THEY_COME and _said(run.payload) == _said(self._last):
            return False
        if count >= MOST_HELD or self._bytes >= MOST_HELD_BYTES:
            return False
        self._last = run.payload
        self._bytes += weight_of(run.payload) if run.source is None else len(run.source)
        return True


def _said(payload: JsonObject) -> JsonObject:
    """What a chunk says besides its name and time."""
    return {key: value for key, value in payload.items() if key not in _NEW_EACH_TIME}
