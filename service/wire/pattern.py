"""Chunks that differ in one text alone, told without parsing the rest of them.

Nearly every chunk of an answer is, byte for byte, the chunk before with another text in it. One
such chunk is parsed and becomes a pattern (`learn`): the bytes before its text's literal and those
after. A later chunk that begins and ends with the same bytes is the same JSON with another literal
in that place, if what is between them is the literal of a string and nothing else (`PatternReader`).
Whatever isn't, the decoder reads as it reads everything.

Why that is safe: JSON's grammar doesn't look into strings, so where one literal stands, any other
can, and nothing but that value changes. That the place is the right one is not guessed but tried:
the bytes are parsed once with a text that stands nowhere else, and must give that chunk with that
text. Called by `service.wire.decoder`; pure.
"""

import json

import orjson

from statemachine import ChunkPattern, TextReceived
from statemachine.messages import JsonObject
from statemachine.patterns import text_field

_LESSONS_AT_ONCE = 4
_MOST_CHUNKS_BETWEEN_LESSONS = 64
"""An upstream whose chunks differ in more than a text each time isn't worth learning from."""
_MARKS = (b":", b": ")
"""What stands between a key and its value, as JSON writers have it."""


class PatternReader:
    """Learns one pattern after the other from an answer's chunks, and reads events that fit the
    latest."""

    __slots__ = (
        "_chunks",
        "_head",
        "_joint",
        "_lessons",
        "_next_lesson",
        "_pattern",
        "_skipped_after",
        "_skipped_before",
        "_tail",
    )

    def __init__(self) -> None:
        self._pattern: ChunkPattern | None = None
        self._chunks = 0
        self._lessons = 0
        self._next_lesson = 2  # the first chunk is hardly ever like the others

    def learn_from(self, text: bytes, payload: JsonObject) -> None:
        """A chunk came that didn't fit.

        Args:
            text: its JSON as it came, on one line.
            payload: what that is.
        """
        self._chunks += 1
        if self._chunks < self._next_lesson:
            return
        key = text_field(payload)
        if key is None:
            return
        self._lessons += 1
        pause = 1 << max(0, self._lessons - _LESSONS_AT_ONCE)
        self._next_lesson = self._chunks + min(pause, _MOST_CHUNKS_BETWEEN_LESSONS)
        pattern = learn(text, payload, key)
        if pattern is not None:
            self._pattern = pattern
            self._head = b"data: " + pattern.before
            self._tail = pattern.after + b"\n\n"
            self._joint = self._tail + self._head
            self._skipped_before, self._skipped_after = len(self._head), -len(self._tail)

    def read(self, data: bytes) -> TextReceived | None:
        """One or more whole events without any carriage return, which is white space to JSON and a
        line's end to SSE; None if one of them is not, or might not be, of the pattern."""
        pattern = self._pattern
        if pattern is None or not (data.startswith(self._head) and data.endswith(self._tail)):
            return None
        literals = data[self._skipped_before : self._skipped_after]
        try:
            if b"\n" in literals:
                return self._read_several(pattern, literals, data.count(b"\n"))
            text = orjson.loads(literals)
        except orjson.JSONDecodeError:
            return None
        if type(text) is not str:
            return None
        self._lessons = 0
        return TextReceived(pattern, (text,), literals)

    def _read_several(
        self, pattern: ChunkPattern, literals: bytes, newlines: int
    ) -> TextReceived | None:
        literals = literals.replace(self._joint, b"\n")
        # A literal holds no newline, so with one between them none can run into the next.
        texts = orjson.loads(b"[" + literals.replace(b"\n", b",\n") + b"]")
        if not newlines == 2 * len(texts) == 2 * literals.count(b"\n") + 2:
            return None  # there was another newline somewhere
        if set(map(type, texts)) != {str}:
            return None
        self._lessons = 0
        return TextReceived(pattern, texts, literals)


def learn(text: bytes, payload: JsonObject, key: str) -> ChunkPattern | None:
    """The pattern of a chunk; None if its text's place can't be found.

    Args:
        text: its JSON as it came, on one line.
        payload: what that is.
        key: its `text_field`.
    """
    said = payload["choices"][0]["delta"][key]
    for literal in _literals(said):
        for mark in _MARKS:
            # Most writers put the choices last, and within them the delta.
            found = text.rfind(orjson.dumps(key) + mark + literal)
            end = found + len(orjson.dumps(key) + mark + literal)
            pattern = ChunkPattern(payload, key, text[: end - len(literal)], text[end:])
            if found >= 0 and _is_right(pattern):
                return pattern
    return None


def _literals(text: str) -> tuple[bytes, ...]:
    """How JSON writers may have written a text: as it is, or in ASCII."""
    ascii_only = json.dumps(text).encode("ascii")
    try:
        return orjson.dumps(text), ascii_only
    except TypeError:  # a lone surrogate
        return (ascii_only,)


def _is_right(pattern: ChunkPattern) -> bool:
    """True if a literal put in its place changes that text and nothing else."""
    (choice,) = pattern.payload["choices"]
    probe = choice["delta"][pattern.key] + "\0"  # any text but its own
    try:
        text = pattern.before + orjson.dumps(probe) + pattern.after
        return bool(orjson.loads(text) == pattern.chunk(probe))
    except (orjson.JSONDecodeError, TypeError):
        return False
