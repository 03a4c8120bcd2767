"""Turns an answer's bytes into a session's events, one socket read at a time.

Chunks that repeat an earlier one are told in one event where they can be, all others in full. Which
way a chunk took makes no difference to clients, record and journal.
"""

from collections.abc import Iterator, Sequence

from service.agents.openai.decoder import INCOMPLETE, SseDecoder
from service.agents.openai.redacting import NOTHING_SECRET, Redactor
from statemachine import (
    ChunkReceived,
    ChunkRun,
    Event,
    Failure,
    ParsedChunk,
    RepeatedChunks,
    UpstreamFailed,
)

_LAST_EVENTS = 3
"""How many an answer ends with that hold no text: the finish reason, usage, `[DONE]`."""
_LARGE_READ_BYTES = 4096
_LESSON_BYTES = 2048
"""As much of a large read as teaches the decoder what the answer's chunks look like."""


class EventReader:
    """One answer's events. Give it bytes as they come, and `close` it when the body has ended.

    Args:
        max_event_bytes: a larger event is a failure.
        cut_off_reasons: finish reasons that mean "cut off", in lower case.
        redactor: what is secret in an upstream's errors.
        uses_shortcut: tell repeated chunks in one event.

    Attributes:
        take_event: the shortcut for one piece, which is mostly an event: the repeated chunks in it,
            or None; then nothing was taken, and `read` is to be given the bytes. Never raises.
    """

    __slots__ = ("_decoder", "_uses_shortcut", "take_event")

    def __init__(
        self,
        max_event_bytes: int,
        cut_off_reasons: frozenset[str] = frozenset(),
        redactor: Redactor = NOTHING_SECRET,
        *,
        uses_shortcut: bool = True,
    ) -> None:
        self._decoder = SseDecoder(max_event_bytes, cut_off_reasons, redactor)
        self._uses_shortcut = uses_shortcut
        self.take_event = self._decoder.take

    def read(self, data: bytes) -> list[Event]:
        """The events of one socket read, the answer's ending included; none if it completes none.
        Never raises."""
        return self._with_ending([*map(ChunkReceived, self._runs(data))])

    def read_alike(self, data: bytes) -> list[Event]:
        """The same if they are nothing but repeated chunks, however many; else none, and nothing was
        taken."""
        run = self._decoder.take(data) if self._uses_shortcut else None
        return [] if run is None else [ChunkReceived(run)]

    def close(self, broken: Failure | None = None) -> list[Event]:
        """The body has ended: the last events, the last of all the answer's ending.

        Args:
            broken: why the body could not be read to its end; None if it could.
        """
        decoder = self._decoder
        parsed = map(ParsedChunk, decoder.close(), decoder.sources)
        events = self._with_ending([*map(ChunkReceived, parsed)])
        if broken is not None and events[-1] == UpstreamFailed(INCOMPLETE):
            events[-1] = UpstreamFailed(broken)
        return events

    def take(self, pieces: Sequence[bytes]) -> tuple[RepeatedChunks | None, int]:
        """The same for pieces that were sent apart.

        Returns the repeated chunks in them and how many of the pieces those are: all, or all but the
        last few.
        """
        run = self._take(pieces)
        if run is None and len(pieces) > _LAST_EVENTS:
            pieces = pieces[:-_LAST_EVENTS]
            run = self._take(pieces)
        return run, 0 if run is None else len(pieces)

    def _with_ending(self, events: list[Event]) -> list[Event]:
        if self._decoder.ending is not None:
            events.append(self._decoder.ending)
        return events

    def _take(self, pieces: Sequence[bytes]) -> RepeatedChunks | None:
        return self._decoder.take_events(pieces) or self._decoder.take(b"".join(pieces))

    def _runs(self, data: bytes) -> Sequence[ChunkRun]:
        if not self._uses_shortcut:
            return self._parsed(data)
        take = self._decoder.take
        if (run := take(data)) is not None:
            return (run,)
        start = data.find(b"\n\n", _LESSON_BYTES) + 2 if len(data) > _LARGE_READ_BYTES else 0
        if start < 2:
            return self._parsed(data)
        runs: list[ChunkRun] = [*self._parsed(data[:start])]
        for end in _possible_ends(data, start):
            if (run := take(data[start:end])) is not None:
                runs.append(run)
                start = end
                break
        return [*runs, *self._parsed(data[start:])]

    def _parsed(self, data: bytes) -> list[ParsedChunk]:
        return list(map(ParsedChunk, self._decoder.feed(data), self._decoder.sources))


def _possible_ends(data: bytes, start: int) -> Iterator[int]:
    """Where the texts that begin at `start` may end: with the data, or before the last events."""
    end = len(data)
    yield end
    for _ in range(_LAST_EVENTS):
        end = data.rfind(b"\n\n", start, max(end - 2, start)) + 2
    if end > start:
        yield end
