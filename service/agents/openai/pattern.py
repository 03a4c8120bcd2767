"""Recognises chunks that repeat an earlier one except for their text (and OpenAI's `obfuscation`),
and parses only that text.

Nearly every chunk of an answer is, byte for byte, the chunk before with another text in it. One
such chunk is parsed and becomes a pattern (`learn`): the bytes before its text's literal and those
after. A later chunk that begins and ends with the same bytes is the same JSON with another literal
in that place, if the bytes between are the literal of a string and nothing else (`PatternReader`).
Where each chunk has a padding, there is a second such place, behind the text's. The decoder parses
every chunk that doesn't fit.

Why that is safe: JSON's grammar doesn't look into strings, so where one literal stands, any other
can, and only that value changes. The place is not guessed but tried: the bytes are parsed once with
a text that occurs nowhere else, and must give that chunk with that text.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

import orjson
from attrs import evolve

from statemachine import ChunkPattern, JsonObject, RepeatedChunks
from statemachine.chunks import NEW_LINE, PADDING, text_field

_CR = 13  # see NEW_LINE
_LESSONS_AT_ONCE = 4
_MOST_CHUNKS_BETWEEN_LESSONS = 64
"""An upstream whose chunks differ in more than a text each time isn't worth learning from."""
_MARKS = (b":", b": ")
"""What stands between a key and its value, as JSON writers have it."""


class PatternReader:
    """Learns one pattern after the other from an answer's chunks, and reads events that fit the
    latest one."""

    __slots__ = (
        "_chunks",
        "_head",
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

    def learn_from(self, text: bytes, payload: JsonObject, mended: JsonObject) -> None:
        """Note a chunk that was parsed: it didn't fit, or came together with one that didn't.

        Args:
            text: its JSON as it came, on one line.
            payload: what that is.
            mended: what became of it, mostly itself. A pattern's other chunks are mended alike: what
                was left out for being said before, or for being empty, is so in them as well.
        """
        self._chunks += 1
        if self._chunks < self._next_lesson or self.read(b"data: %b\n\n" % text) is not None:
            return
        key = text_field(mended)
        if key is None or (mended is not payload and not _is_said_alike(key, payload, mended)):
            return
        self._lessons += 1
        pause = 1 << max(0, self._lessons - _LESSONS_AT_ONCE)
        self._next_lesson = self._chunks + min(pause, _MOST_CHUNKS_BETWEEN_LESSONS)
        pattern = learn(text, payload, key)
        if pattern is not None:
            self._pattern = pattern if mended is payload else evolve(pattern, payload=mended)
            self._head = b"data: " + pattern.before
            self._tail = pattern.after + b"\n\n"
            self._skipped_before, self._skipped_after = len(self._head), -len(self._tail)

    def read(self, data: bytes) -> RepeatedChunks | None:
        """Read one or more whole events; None if one of them is not, or might not be, of the pattern.

        They hold no carriage return, which is white space to JSON and a line's end to SSE.
        """
        pattern = self._pattern
        if pattern is None or not (data.startswith(self._head) and data.endswith(self._tail)):
            return None
        literals = data[self._skipped_before : self._skipped_after]
        if NEW_LINE in literals:
            return self._read_all(pattern, data[:-2].split(b"\n\n"), self._tail[:-2])
        try:
            if pattern.between:
                literal, between, padding = literals.partition(pattern.between)
                if not between or type(orjson.loads(padding)) is not str:
                    return None
                text = orjson.loads(literal)
            else:
                text = orjson.loads(literals)
        except orjson.JSONDecodeError:
            return None
        if type(text) is not str:
            return None
        self._lessons = 0
        return RepeatedChunks(pattern, (text,), literals)

    def read_events(self, events: Sequence[bytes]) -> RepeatedChunks | None:
        """Read events that are apart already, each with its blank line; else the same. One with a
        carriage return isn't of the pattern."""
        pattern = self._pattern
        return None if pattern is None else self._read_all(pattern, events, self._tail)

    def _read_all(
        self, pattern: ChunkPattern, events: Sequence[bytes], tail: bytes
    ) -> RepeatedChunks | None:
        # Cutting where texts should be, and looking afterwards whether all the rest was as expected,
        # is quicker than a look at each event, and than a search for what stands between two texts.
        head, cut = self._head, itemgetter(slice(self._skipped_before, -len(tail)))
        literals, count = b"\n".join(map(cut, events)), len(events)
        received = b"".join(events)
        length = count * (len(head) + len(tail)) + len(literals) - (count - 1)
        # A line too many, or all missing, would make what is expected far longer than what came.
        if len(received) != length or literals.count(b"\n") != count - 1 or _CR in literals:
            return None
        if received != b"".join((head, literals.replace(b"\n", tail + head), tail)):
            return None
        texts = _texts(literals, count, pattern.between)
        if texts is None:
            return None
        self._lessons = 0
        return RepeatedChunks(pattern, texts, literals)


def _texts(literals: bytes, count: int, between: bytes) -> list[str] | None:
    """Return the texts of so many lines; None if one of them isn't what it should be.

    A literal holds no newline, so with one after each none can run into the next; and a newline too
    many is a text too many.
    """
    try:
        if not between:
            texts = orjson.loads(b"[%b]" % literals.replace(b"\n", b",\n"))
            return texts if len(texts) == count and set(map(type, texts)) == {str} else None
        # Nor does it hold `between`, which has quotes that aren't escaped.
        if literals.count(between) != count:
            return None
        lines = literals.replace(b"\n", b"],\n[").replace(between, b",\n")
        pairs = orjson.loads(b"[[%b]]" % lines)
    except orjson.JSONDecodeError:
        return None
    if len(pairs) != count or set(map(len, pairs)) != {2}:
        return None
    if {type(literal) for pair in pairs for literal in pair} != {str}:
        return None
    return [text for text, _ in pairs]


def _is_said_alike(key: str, payload: JsonObject, mended: JsonObject) -> bool:
    """True if the text of a mended chunk came in this very field."""
    delta, said = payload["choices"][0].get("delta"), mended["choices"][0]["delta"][key]
    return isinstance(delta, Mapping) and delta.get(key) is said


def learn(text: bytes, payload: JsonObject, key: str) -> ChunkPattern | None:
    """Make the pattern of a chunk; None if its text's place can't be found.

    Args:
        text: its JSON as it came, on one line.
        payload: what that is.
        key: its `text_field`.
    """
    said = payload["choices"][0]["delta"][key]
    # Most writers put the choices last, and within them the delta.
    for start, end in _places(text, key, said):
        pattern = ChunkPattern(payload, key, text[:start], text[end:])
        if _is_right(pattern):
            return _with_padding(pattern)
    return None


def _with_padding(pattern: ChunkPattern) -> ChunkPattern:
    """The pattern of chunks whose padding differs too, if there is one, and behind the text."""
    members = [*pattern.payload]
    padding = pattern.payload.get(PADDING)
    if type(padding) is str and members.index(PADDING) > members.index("choices"):
        after = pattern.after
        for start, end in _places(after, PADDING, padding):
            padded = evolve(pattern, between=after[:start], after=after[end:])
            if _is_right(padded):
                return padded
    return pattern


def _places(text: bytes, key: str, value: str) -> Iterator[tuple[int, int]]:
    """Where in a JSON text this member's value may stand: the last such place for each way in which
    it may have been written."""
    for literal in _literals(value):
        for mark in _MARKS:
            member = orjson.dumps(key) + mark + literal
            found = text.rfind(member)
            if found >= 0:
                yield found + len(member) - len(literal), found + len(member)


def _literals(text: str) -> tuple[bytes, ...]:
    """How JSON writers may have written a text: as it is, or in ASCII."""
    ascii_only = json.dumps(text).encode("ascii")
    try:
        return orjson.dumps(text), ascii_only
    except TypeError:  # a lone surrogate
        return (ascii_only,)


def _is_right(pattern: ChunkPattern) -> bool:
    """True if literals put in their places change that text, and that padding, and nothing else."""
    (choice,) = pattern.payload["choices"]
    probe = choice["delta"][pattern.key] + "\0"  # any text but its own
    literal = orjson.dumps
    try:
        if pattern.between:
            padding = pattern.payload[PADDING] + "\0"
            text = pattern.before + literal(probe) + pattern.between + literal(padding)
            right: JsonObject = {**pattern.chunk(probe), PADDING: padding}
        else:
            text, right = pattern.before + literal(probe), pattern.chunk(probe)
        return bool(orjson.loads(text + pattern.after) == right)
    except (orjson.JSONDecodeError, TypeError):
        return False
