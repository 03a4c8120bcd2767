"""Reads lines of further texts past JSON, and puts the texts aside: the shortcut of a replay.

Nearly every line of a journal is of one shape: further chunks of a known pattern (`db.journal.repeats`)
in a completion that is being played already. One regular expression reads such a line, and its texts
wait beside its session until a line of another shape comes, or the end; then one event tells of all
that wait. The records are the same as without it, tapes included, and to be so it takes only what it
knows to be alike:

1. Length, checksum and number are looked at as in any line. What a JSON reader might not take, such
   as bytes that aren't UTF-8, is left to one.
2. The session's first token is played by itself: its moment is kept.
3. So is whatever would have the answer measured (`Transcript.room_for`), for it may end there.
4. So is a text that would begin a stretch of the tape in ASCII.

Never reads a line of another shape, and never decides what a gap means.
"""

import re
import zlib
from collections.abc import Collection
from typing import Protocol

from db.journal.format import load_json
from db.journal.repeats import BEFORE_PADDING, BETWEEN_CHUNKS, separator_of, start_of_text
from statemachine import ChunkPattern, ChunkReceived, RepeatedChunks, StreamSession
from statemachine.tape import BACKSLASH

_PLAIN = rb'[^"\\\x00-\x1f]*+'
_LITERAL = rb'"%b(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})%b)*+"' % (_PLAIN, _PLAIN)
_PADDING = rb'\}\}\],"obfuscation":"[ !#-\[\]-~]*+"'
_START = rb'\{"chunk":\{"choices":\[\{"index":[0-9]++,"delta":\{"[^"\\]*+":'
# What is repeated is never given back: no shorter match would fit either. The last alternative is for
# no line: a search ends where it is, and never looks further.
_LINE = re.compile(
    rb"([0-9a-f]{8}) ([0-9]{1,9}+) ("
    rb'\{"id":"([ !#-\[\]-~]++)","n":([1-9][0-9]{0,14}+),'
    rb'"at":((?:0|[1-9][0-9]{0,14}+)\.[0-9]{1,20}+)'
    rb'(,"like":[0-9]++,"events":\[%b)'
    rb"(%b(%b)?((?:(?:\}\}\])?\}\},%b%b(?:%b)?)+)?)"
    rb"(?(9)|\}\}\])\}\}\]\})\n|" % (_START, _LITERAL, _PADDING, _START, _LITERAL, _PADDING)
)
_BLOCK_BYTES = 32 * 1024
"""As much is read in one go, about two hundred lines: a millisecond's worth at most."""


class Texts:
    """The texts of one session that wait.

    Attributes:
        start: what stands before the first text in a line that may be put aside; empty: none may.
        separator: what stands between two of its texts.
        is_padded: each has a padding.
        is_ascii: one may have characters in ASCII.
        room: as many bytes may still be put aside.
        literals: those that wait, by line.
    """

    __slots__ = (
        "_number",
        "_pattern",
        "is_ascii",
        "is_padded",
        "literals",
        "room",
        "separator",
        "start",
    )

    def __init__(self) -> None:
        self._pattern: ChunkPattern | None = None
        self._number = -1
        self.start = self.separator = b""
        self.is_padded = self.is_ascii = False
        self.room = 0.0
        self.literals: list[bytes] = []

    def follow(self, pattern: ChunkPattern, number: int) -> None:
        """A line of this pattern was read; it was made known by the line with this number."""
        self._pattern, self._number = pattern, number

    def look_at(self, session: StreamSession) -> None:
        """See what may be put aside now that the session was told all that came before."""
        pattern = self._pattern
        if pattern is None or session.first_token_at is None:
            return
        self.room = session.transcript.room_for(pattern)
        if self.room > 0:
            self.start = start_of_text(pattern, self._number)
            self.separator = separator_of(pattern)
            self.is_padded = bool(pattern.between)
            self.is_ascii = session.transcript.tape.is_in_ascii

    def tell(self, session: StreamSession, now: float) -> None:
        """Tell the session of all that wait, as of one run; none may be put aside from now on."""
        pattern, literals = self._pattern, self.literals
        self._pattern, self.start = None, b""
        if not literals or pattern is None:
            return
        self.literals = []
        joined = b"\n".join(literals)
        if self.is_padded:
            texts = [line.partition(pattern.between)[0] for line in joined.split(b"\n")]
        else:
            texts = [joined.replace(b"\n", b",")]
        run = RepeatedChunks(pattern, load_json(b"[%b]" % b",".join(texts)), joined)
        session.handle(ChunkReceived(run), now)
        # Apart they would have had no newlines between them, which count.
        newlines = len(literals) - 1
        session.transcript.text_size -= newlines
        if self.is_padded:
            session.transcript.tape.size -= newlines


class Life(Protocol):
    """As much of a session that is being played as is needed here.

    Attributes:
        expected: the number that its next line should have.
        last_at: the latest moment of its lines.
        is_damaged: one is missing.
        texts: those of it that wait.
    """

    expected: int
    last_at: float
    is_damaged: bool
    texts: Texts


class TextReader:
    """Puts the texts of some lives aside.

    Args:
        only: pass over the lines of other completions than these; None: of none.

    Attributes:
        lives: those that are being played, by their names as JSON has them, without quotes.
    """

    def __init__(self, only: Collection[bytes] | None = None) -> None:
        self._only = only
        self.lives: dict[bytes, Life] = {}

    def read(self, data: bytes, start: int) -> int:
        """Put aside, or pass over, what can be from the line on that starts here, for a moment;
        where the next line starts, the same one if none can."""
        position = start
        for found in _LINE.finditer(data, start, start + _BLOCK_BYTES):
            checksum, size, source, name, number, at, before, *texts = found.groups()
            if source is None or len(source) != int(size):
                break
            life = self.lives.get(name)
            if life is None:
                if self._only is None or name in self._only:
                    break
            elif not (
                before == life.texts.start
                and zlib.crc32(source) == int(checksum, 16)
                and _put(life.texts, *texts)
            ):
                break
            else:
                if (expected := int(number)) != life.expected:
                    life.is_damaged = True
                life.expected = expected + 1
                if (moment := float(at)) > life.last_at:
                    life.last_at = moment
            position = found.end()
        return position


def _put(texts: Texts, literals: bytes, padding: bytes | None, further: bytes | None) -> bool:
    """Put the texts of a line aside. False if it has to be played by itself.

    Args:
        literals: from its first text on to the end of the last text, or its padding.
        padding: that of the first.
        further: those of it that follow the first.
    """
    if (padding is not None) != texts.is_padded:
        return False
    if further is not None:
        literals = literals.replace(texts.separator, b"\n")
        paddings = literals.count(b"\n") + 1 if texts.is_padded else 0
        if BETWEEN_CHUNKS in literals or literals.count(BEFORE_PADDING) != paddings:
            return False
    if BACKSLASH in literals and not texts.is_ascii and literals.find(b"\\u") >= 0:
        return False
    if not literals.isascii() and not _is_utf8(literals):
        return False
    texts.room -= len(literals) + 1
    if texts.room <= 0:
        return False
    texts.literals.append(literals)
    return True


def _is_utf8(literal: bytes) -> bool:
    try:
        literal.decode()
    except UnicodeDecodeError:
        return False
    return True
