"""Holds back what comes before the first token, in bounded memory. Pure.

Some models send empty chunks for minutes before they say a word: that is no fault, and must neither
end the attempt nor fill the memory.
"""

from collections.abc import Sequence

from statemachine import ChunkReceived, Event, JsonObject, RepeatedChunks
from statemachine.chunks import PADDING
from statemachine.folding import weight_of

MOST_HELD = 100
"""Chunks that are held back, each of which says something that the one before didn't."""
MOST_HELD_BYTES = 1024 * 1024
_NEW_EACH_TIME = frozenset(("id", "created", PADDING))


class HeldBack:
    """The events of one attempt up to its first token.

    None of their chunks bears a token. One that says what the one before said is left out, and so is
    any past the limits: nothing of the answer is in it.
    """

    __slots__ = ("_bytes", "_last", "events")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._bytes = 0
        self._last: JsonObject | None = None

    def add(self, events: Sequence[Event]) -> None:
        """Hold these back too."""
        for event in events:
            if not isinstance(event, ChunkReceived) or self._is_worth_holding(event):
                self.events.append(event)

    def _is_worth_holding(self, event: ChunkReceived) -> bool:
        run = event.run
        if isinstance(run, RepeatedChunks):
            return False  # empty texts, and the chunk that they repeat was here
        said = {key: value for key, value in run.payload.items() if key not in _NEW_EACH_TIME}
        if said == self._last or len(self.events) >= MOST_HELD or self._bytes >= MOST_HELD_BYTES:
            return False
        self._last = said
        self._bytes += weight_of(run.payload) if run.source is None else len(run.source)
        return True
