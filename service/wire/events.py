"""What an upstream sent, as events for the session: runs of text the short way, all else in full.

Called by `service.stream.attempts` for each socket read. Clients, record and journal are told the same
either way.
"""

from collections.abc import Iterator, Sequence

from service.wire.decoder import SseDecoder
from statemachine import ChunkReceived, Event, TextReceived

_LAST_EVENTS = 3
"""How many an answer ends with that are no text: the finish reason, usage, `[DONE]`."""
_LARGE_READ_BYTES = 4096
_LESSON_BYTES = 2048
"""As much of a large read as teaches the decoder what the answer's texts look like."""


def events_of(decoder: SseDecoder, data: bytes) -> list[Event]:
    """The events of one socket read."""
    text = decoder.take(data)
    if text is not None:
        return [text]
    start = data.find(b"\n\n", _LESSON_BYTES) + 2
    if len(data) <= _LARGE_READ_BYTES or start < 2:
        return _in_full(decoder, data)
    events = _in_full(decoder, data[:start])
    for end in _possible_ends(data, start):
        text = decoder.take(data[start:end])
        if text is not None:
            events.append(text)
            start = end
            break
    return events + _in_full(decoder, data[start:])


def last_events(decoder: SseDecoder) -> list[Event]:
    """The body has ended: the events of what was left, which sets `decoder.ending`."""
    return list(map(ChunkReceived, decoder.close(), decoder.texts))


def text_of(decoder: SseDecoder, pieces: Sequence[bytes]) -> tuple[TextReceived | None, int]:
    """The text in pieces that were sent apart, and how many of them it is: all, or all but the last
    few. None and 0 if there is anything else; then nothing was taken."""
    text = _take(decoder, pieces)
    if text is None and len(pieces) > _LAST_EVENTS:
        pieces = pieces[:-_LAST_EVENTS]
        text = _take(decoder, pieces)
    return text, 0 if text is None else len(pieces)


def _take(decoder: SseDecoder, pieces: Sequence[bytes]) -> TextReceived | None:
    return decoder.take_events(pieces) or decoder.take(b"".join(pieces))


def _in_full(decoder: SseDecoder, data: bytes) -> list[Event]:
    return list(map(ChunkReceived, decoder.feed(data), decoder.texts))


def _possible_ends(data: bytes, start: int) -> Iterator[int]:
    """Where the texts that begin at `start` may end: with the data, or before the last events."""
    end = len(data)
    yield end
    for _ in range(_LAST_EVENTS):
        end = data.rfind(b"\n\n", start, max(end - 2, start)) + 2
    if end > start:
        yield end
