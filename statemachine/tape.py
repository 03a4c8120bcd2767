"""The tape: an answer's chunks in their order, compact, such that any of them can be sent again.

What is on it are the chunks for clients, and a *position* counts them. Text isn't kept twice: of
chunks that repeat an earlier one (`statemachine.chunks`) only the lengths of their texts are here,
and the texts are read from the answer. The rules:

1. A chunk that came whole is kept as its JSON, as it came.
2. A *stretch* is a row of chunks that repeat one pattern. A text's literal is taken to be written as
   JSON writers do, with all characters as they are; or, if the stretch is `ascii`, in ASCII. One that
   came otherwise (`"\\u003c"` for `"<"`) is kept as it came.
3. Past `limit` bytes what is oldest is let go; `first` says where the rest begins. A tape that isn't
   whole is no use to anybody who comes later, and isn't stored.

Never here: what a chunk looks like to a client, and how a tape is stored.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from json.encoder import encode_basestring as _as_it_is
from json.encoder import encode_basestring_ascii as _in_ascii
from typing import Any

from attrs import frozen

from statemachine.chunks import ChunkPattern, ParsedChunk, RepeatedChunks
from statemachine.folding import Text

DEFAULT_LIMIT = 16 * 1024 * 1024
"""Bytes of a tape, about."""
BACKSLASH = 92
"""See NEW_LINE."""
_BLOCK = 256
"""Chunks that are read at once: 60 KB, as most chunks are."""
_BLOCK_BYTES = 256 * 1024
_STRETCH_BYTES = 400
_CHUNK_BYTES = 40
"""What a stretch, and a chunk, counts for besides what is in it."""
_MARK_EVERY = 4096
_DIGITS = b"0123456789abcde"
_TO_DIGITS = _DIGITS + b"?" * (256 - len(_DIGITS))
_TO_NUMBERS = bytes(max(0, b"0123456789abcdef".find(bytes((code,)))) for code in range(256))
_LENGTH = re.compile(rb"f*[0-9a-e]")


class Expired(Exception):
    """What stood at this position isn't kept any more."""


@frozen
class WrittenChunk:
    """A chunk that came whole: its JSON on one line."""

    source: bytes


Written = WrittenChunk | RepeatedChunks
"""One or more chunks as they are read from a tape."""


class Chunks:
    """A row of chunks that came whole.

    Attributes:
        begins: the position before the first.
        sources: the JSON of each.
    """

    __slots__ = ("begins", "sources")

    def __init__(self, begins: int, sources: list[bytes]) -> None:
        self.begins = begins
        self.sources = sources

    @property
    def total(self) -> int:
        return len(self.sources)


class Stretch:
    """A row of chunks that repeat one pattern.

    Attributes:
        begins: the position before the first.
        pattern: theirs. Of its JSON only `between` is used, and only whether there is any.
        text: the text that theirs went into.
        start: how many characters it held before.
        lengths: how many characters each text has, in hexadecimal digits: `0` to `e`; `f` is fifteen
            and more, the next digit counting on. Those of pieces that are joined in `text` already.
        count: how many those are.
        characters: how many they have together.
        ascii: literals are in ASCII.
        odd: those that aren't written like that, by number within the stretch.
        paddings: each chunk's padding, a literal, a line each; empty if the pattern has none.
    """

    __slots__ = (
        "_marks",
        "ascii",
        "begins",
        "characters",
        "count",
        "lengths",
        "odd",
        "paddings",
        "pattern",
        "start",
        "text",
    )

    def __init__(self, begins: int, pattern: ChunkPattern, text: Text, start: int) -> None:
        self.begins = begins
        self.pattern = pattern
        self.text = text
        self.start = start
        self.lengths = bytearray()
        self.count = 0
        self.ascii = False
        self.odd: dict[int, bytes] | None = None
        self.paddings: bytearray | None = bytearray() if pattern.between else None
        self.characters = 0
        self._marks: list[tuple[int, int, int]] | None = None

    @classmethod
    def restored(
        cls,
        begins: int,
        pattern: ChunkPattern,
        text: Text,
        start: int,
        digits: memoryview,
        count: int,
    ) -> "Stretch":
        """One of which all has come.

        Args:
            digits: where its `lengths` are the first so many.

        Raises:
            ValueError: they are fewer.
        """
        stretch = cls(begins, pattern, text, start)
        at = 0
        while stretch.count < count:
            wanted = min(_MARK_EVERY, count - stretch.count)
            lengths, end = read_lengths(digits, at, wanted)
            if len(lengths) < wanted:
                raise ValueError("lengths are missing")
            stretch.note_lengths(digits[at:end], wanted, sum(lengths))
            at = end
        return stretch

    @property
    def total(self) -> int:
        """How many chunks it has."""
        return self.count + (self.text.unjoined if self.text.follower is self else 0)

    def note(self, pieces: Sequence[str]) -> None:
        """These texts, the next ones, are joined to what came before."""
        self.note_lengths(_digits_of(pieces), len(pieces), sum(map(len, pieces)))

    def note_lengths(self, digits: bytes | memoryview, count: int, characters: int) -> None:
        """Do the same for texts of which only the lengths are here."""
        if self.count // _MARK_EVERY < (self.count + count) // _MARK_EVERY:
            if self._marks is None:
                self._marks = []
            self._marks.append((self.count, len(self.lengths), self.characters))
        self.lengths += digits
        self.count += count
        self.characters += characters

    def write(self, texts: Sequence[str], literals: Sequence[bytes]) -> int:
        """Note which of the next texts' literals are odd; about how many bytes that takes."""
        size = 0
        for number, (text, literal) in enumerate(zip(texts, literals, strict=True), self.total):
            may_be_odd = BACKSLASH in literal or (self.ascii and not text.isascii())
            if may_be_odd and literal != literal_of(text, ascii_only=self.ascii):
                if self.odd is None:
                    self.odd = {}
                self.odd[number] = literal
                size += len(literal) + _CHUNK_BYTES
        return size

    def locate(self, number: int) -> tuple[int, int]:
        """Where the length of a text, of those that are noted, stands in `lengths`, and how many
        characters of the stretch come before it."""
        at, digit, characters = 0, 0, 0
        if self._marks:
            found = bisect_right(self._marks, number, key=lambda mark: mark[0])
            if found:
                at, digit, characters = self._marks[found - 1]
        while at < number:
            step = min(number - at, _MARK_EVERY)
            numbers, digit = read_lengths(self.lengths, digit, step)
            characters += sum(numbers)
            at += step
        return digit, characters


Part = Chunks | Stretch


class Tape:
    """An answer's chunks, in their order. Made by a `Transcript`, or from what is stored.

    Attributes:
        parts: what is on it.
        first: the position from which on it is kept; 0: all of it.
        size: its bytes, about.
        created: what the first chunk names so.
        notes_all: `note` wants to know of every run.
    """

    __slots__ = ("_limit", "_open", "_sources", "created", "first", "notes_all", "parts", "size")

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.parts: list[Part] = []
        self.first = 0
        self.size = 0
        self.created: Any = None
        self.notes_all = False
        self._limit = limit
        self._open: Stretch | None = None
        self._sources: list[bytes] | None = None

    @property
    def count(self) -> int:
        """How many chunks have come: the position after the last."""
        if not self.parts:
            return self.first
        last = self.parts[-1]
        return last.begins + last.total

    @property
    def is_whole(self) -> bool:
        """True if every chunk is on it."""
        return self.first == 0

    @property
    def is_in_ascii(self) -> bool:
        """True if what comes next goes on with a stretch that is in ASCII."""
        return self._open is not None and self._open.ascii

    # --- writing ----------------------------------------------------------------------------

    def add(self, chunk: ParsedChunk) -> None:
        """A chunk came whole."""
        source = chunk.source
        if source is None:
            source = json_source(chunk.payload)
        if self._sources is None:
            self._begin_chunks(chunk)
        self._sources.append(source)  # type: ignore[union-attr]  # just begun
        self.size += len(source) + _CHUNK_BYTES
        if self.size > self._limit:
            self._shrink()

    def _begin_chunks(self, chunk: ParsedChunk) -> None:
        self.close()
        if not self.parts:
            self.created = chunk.payload.get("created")
        self._sources = []
        self.parts.append(Chunks(self.count, self._sources))

    def begin(self, run: RepeatedChunks, text: Text) -> None:
        """Chunks of this run's pattern come, whose texts are about to be added to `text`; and so may
        be those of further runs of it, until something else comes."""
        if self._open is not None:
            self.close()
        if not self.parts:
            self.created = run.pattern.payload.get("created")
        self._go_on(run.pattern, text)
        if self.notes_all or BACKSLASH in run.literals:
            self.note(run)

    def begin_apart(self, run: RepeatedChunks) -> None:
        """The chunks of this run came, whose texts go into no text of the answer as they are."""
        apart = Text()
        self.begin(run, apart)
        apart.extend(run.texts)
        self.size += len(run.literals)
        self.close()

    def note(self, run: RepeatedChunks) -> None:
        """To be told of a run before its texts are added, if there is a backslash in its literals, or
        `notes_all`. So it learns of everything that isn't written as usual."""
        stretch = self._open
        if stretch is None:
            return
        literals = run.literals.split(b"\n")
        if stretch.paddings is not None:
            pairs = [line.partition(run.pattern.between) for line in literals]
            literals = [literal for literal, _, _ in pairs]
            stretch.paddings += b"".join([padding + b"\n" for _, _, padding in pairs])
            self.size += len(run.literals)
        if not stretch.ascii and any(map(_is_in_ascii, run.texts, literals)):
            if stretch.total:
                self.close()
                paddings = stretch.paddings
                stretch = self._go_on(stretch.pattern, stretch.text)
                if paddings is not None:
                    stretch.paddings = _last_lines(paddings, len(literals))
            stretch.ascii = self.notes_all = True
        self.size += stretch.write(run.texts, literals)

    def _go_on(self, pattern: ChunkPattern, text: Text) -> Stretch:
        stretch = Stretch(self.count, pattern, text, text.be_followed())
        text.follower = self._open = stretch
        self._sources = None
        self.parts.append(stretch)
        self.notes_all = bool(pattern.between)
        self.size += _STRETCH_BYTES
        return stretch

    def close(self) -> None:
        """What comes next goes on with no earlier stretch."""
        stretch, self._open = self._open, None
        if stretch is not None:
            stretch.text.end_following()
            self.size += len(stretch.lengths)

    def check_size(self) -> None:
        """Let go of what is oldest, if it has grown too large. To be called now and then."""
        stretch = self._open
        if self.size + (0 if stretch is None else len(stretch.lengths)) > self._limit:
            self._shrink()

    def _shrink(self) -> None:
        """Let go of what is oldest, until half of what it may hold is left."""
        if (stretch := self._open) is not None:
            self.close()
            self._go_on(stretch.pattern, stretch.text).ascii = stretch.ascii
            self.notes_all = self.notes_all or stretch.ascii
        while len(self.parts) > 1 and self.size > self._limit // 2:
            gone = self.parts.pop(0)
            self.size -= _size_of(gone)
        last = self.parts[0]
        if self.size > self._limit // 2 and type(last) is Chunks:
            half = len(last.sources) // 2
            self.size -= sum(map(len, last.sources[:half])) + half * _CHUNK_BYTES
            del last.sources[:half]
            last.begins += half
        elif self.size > self._limit // 2:
            self.parts = [Chunks(last.begins + last.total, [])]
            self.size = 0
        self.first = self.parts[0].begins

    def put(self, part: Part) -> None:
        """Put a part of a tape that was stored behind the others."""
        self.parts.append(part)
        self.size += _size_of(part)

    # --- reading ----------------------------------------------------------------------------

    def part_at(self, position: int) -> int:
        """The number of the part that holds the chunk after this position.

        Raises:
            Expired: it isn't kept any more.
        """
        if position < self.first:
            raise Expired(position)
        return max(0, bisect_right(self.parts, position, key=lambda part: part.begins) - 1)


class Cursor:
    """Reads a tape from a position on, a block at a time, also while it grows.

    Attributes:
        position: how many chunks have been read, or passed over.
    """

    __slots__ = ("_at", "_tape", "position")

    def __init__(self, tape: Tape, position: int = 0) -> None:
        self._tape = tape
        self._at: tuple[Stretch, int, int, int] | None = None
        self.position = position

    def read(self, most: int = _BLOCK) -> list[Written]:
        """The next chunks, at most so many, as far as they have come; none if none has.

        Raises:
            Expired: they aren't kept any more.
        """
        tape, read = self._tape, list[Written]()
        left, room = most, _BLOCK_BYTES
        if self.position >= tape.count:
            return read
        for part in tape.parts[tape.part_at(self.position) :]:
            if isinstance(part, Chunks):
                size = self._read_chunks(part, left, room, read)
            else:
                size = self._read_stretch(part, left, room, read)
            left, room = most - _count(read), room - size
            if left <= 0 or room <= 0 or self.position < part.begins + part.total:
                break
        return read

    def _read_chunks(self, part: Chunks, most: int, room: int, read: list[Written]) -> int:
        start = self.position - part.begins
        sources = part.sources[start : start + most]
        sizes = accumulate(map(len, sources))
        fitting = max(1, sum(size <= room for size in sizes))
        read.extend(map(WrittenChunk, sources[:fitting]))
        self.position += len(sources[:fitting])
        return sum(map(len, sources[:fitting]))

    def _read_stretch(self, part: Stretch, most: int, room: int, read: list[Written]) -> int:
        number = self.position - part.begins
        if number < part.count:
            texts = self._joined_texts(part, number, min(most, part.count - number), room)
        elif number < part.total:
            texts = part.text.pieces(number - part.count, most)
            sizes = accumulate(map(len, texts))
            texts = texts[: max(1, sum(size <= room for size in sizes))]
        else:
            return 0
        self.position += len(texts)
        read.append(_run(part, number, texts))
        return sum(map(len, texts))

    def _joined_texts(self, part: Stretch, number: int, most: int, room: int) -> list[str]:
        known = self._at
        if known is not None and known[0] is part and known[1] == number:
            _, _, digit, characters = known
        else:
            digit, characters = part.locate(number)
        lengths, end = read_lengths(part.lengths, digit, most)
        ends = [*accumulate(lengths, initial=0)]
        if ends[-1] > room:
            fitting = max(1, bisect_right(ends, room) - 1)
            _, end = read_lengths(part.lengths, digit, fitting)
            del ends[fitting + 1 :]
        start = part.start + characters
        whole = part.text.cut(start, start + ends[-1])
        self._at = part, number + len(ends) - 1, end, characters + ends[-1]
        return [whole[a:b] for a, b in pairwise(ends)]


def json_source(value: Any) -> bytes:
    """A value's JSON, in ASCII. What JSON has no number for (NaN, the infinities) is null."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        text = json.dumps(finite, separators=(",", ":"))
    return text.encode("ascii")


def literal_of(text: str, *, ascii_only: bool) -> bytes | None:
    """The usual JSON literal of a text; None if it has none, as half a character hasn't but in ASCII."""
    if ascii_only:
        return _in_ascii(text).encode()
    try:
        return _as_it_is(text).encode()
    except UnicodeEncodeError:
        return None


def _is_in_ascii(text: str, literal: bytes) -> bool:
    """True of a literal that is written in ASCII, where as it is it would not be."""
    return not text.isascii() and BACKSLASH in literal and literal == _in_ascii(text).encode()


def _last_lines(lines: bytearray, count: int) -> bytearray:
    """Take so many lines from the end of these; each ends with a newline."""
    end = len(lines)
    start = end
    for _ in range(count):
        start = lines.rfind(b"\n", 0, start - 1) + 1
    taken = lines[start:]
    del lines[start:]
    return taken


def _run(part: Stretch, number: int, texts: list[str]) -> RepeatedChunks:
    """These texts of a stretch, the first of them with this number, as the run that they came in."""
    if part.odd:
        literals = _literals(part, number, texts)
    elif part.ascii:
        literals = "\n".join(map(_in_ascii, texts)).encode()
    else:
        try:
            literals = "\n".join(map(_as_it_is, texts)).encode()
        except UnicodeEncodeError:
            literals = _literals(part, number, texts)
    if part.paddings is not None:
        paddings = part.paddings.split(b"\n")[number : number + len(texts)]
        between = part.pattern.between
        lines = zip(literals.split(b"\n"), paddings, strict=True)
        literals = b"\n".join([literal + between + bytes(padding) for literal, padding in lines])
    return RepeatedChunks(part.pattern, texts, literals)


def _literals(part: Stretch, number: int, texts: Iterable[str]) -> bytes:
    odd: dict[int, bytes] = part.odd or {}
    return b"\n".join(
        [
            odd.get(place) or literal_of(text, ascii_only=part.ascii) or _in_ascii(text).encode()
            for place, text in enumerate(texts, number)
        ]
    )


def _digits_of(pieces: Sequence[str]) -> bytes:
    try:
        digits = bytes(map(len, pieces)).translate(_TO_DIGITS)
    except ValueError:  # over 255
        digits = b"?"
    return b"".join([_long_digits(len(piece)) for piece in pieces]) if b"?" in digits else digits


def _long_digits(length: int) -> bytes:
    return b"f" * (length // 15) + _DIGITS[length % 15 : length % 15 + 1]


def read_lengths(
    digits: bytes | bytearray | memoryview, start: int, count: int
) -> tuple[Sequence[int], int]:
    """Read `Stretch.lengths`: so many from a place in the digits on, and where the next one stands."""
    block = bytes(digits[start : start + count])
    if b"f" not in block and len(block) == count:
        return block.translate(_TO_NUMBERS), start + count
    lengths, position = list[int](), start
    for found in _LENGTH.finditer(digits, start):
        if len(lengths) == count:
            break
        position = found.end()
        lengths.append(15 * (position - found.start() - 1) + _TO_NUMBERS[digits[position - 1]])
    return lengths, position


def _count(read: Sequence[Written]) -> int:
    return sum(len(one.texts) if type(one) is RepeatedChunks else 1 for one in read)


def _size_of(part: Part) -> int:
    if isinstance(part, Chunks):
        return sum(map(len, part.sources)) + _CHUNK_BYTES * len(part.sources)
    return _STRETCH_BYTES + len(part.lengths)
