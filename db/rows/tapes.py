"""Makes a tape's two columns, and the tape of what they hold. Pure, no SQL.

`docs/tape.md` shows both to whoever reads them with `psql` and `jq`. The rules:

1. `tape` is JSON: the chunks that came whole, as they came; and of each stretch its pattern and where
   its texts are, which is mostly a message of the answer.
2. `tape_lengths` has the lengths of all stretches' texts, as in `Stretch.lengths`, two digits a byte. An
   odd number of them is filled up with an `f`.
3. No tape is kept that isn't whole.
4. What JSON has no number for (NaN, the infinities) is null, as in the other columns.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
from attrs import frozen

from db.store import KeptTape
from statemachine import Choice, ChunkPattern, SessionRecord
from statemachine.folding import Text
from statemachine.tape import BACKSLASH, Chunks, Stretch, Tape, json_source

_BETWEEN = b"\t"
"""Stands between a text's literal and its padding's, in none of which it can be."""


class TapeDamaged(ValueError):
    """The columns make no tape: somebody edited them, or the messages that they belong to."""


@frozen
class TapeColumns:
    """What is stored of a tape.

    Attributes:
        tape: JSON.
        lengths: hexadecimal digits, an even number.
    """

    tape: bytes
    lengths: str


def columns_of(record: SessionRecord) -> TapeColumns | None:
    """The columns of a record's tape; None if it has none that is whole."""
    tape = record.tape
    if tape is None or not tape.is_whole:
        return None
    numbers: dict[int, int] = {}
    patterns: list[bytes] = []
    pieces = [b'"parts":[']
    digits = b""
    for part in tape.parts:
        if type(part) is Chunks:
            pieces += (b'{"chunks":[', b",".join(part.sources), b"]}", b",")
        elif isinstance(part, Stretch) and part.count:
            number = numbers.setdefault(id(part.pattern), len(patterns))
            if number == len(patterns):
                patterns.append(_pattern(part.pattern))
            stretch = b'{"pattern":%d,%b}' % (number, _stretch(part, record.choices))
            pieces += (stretch, b",")
            digits += part.lengths
    if len(pieces) > 1:
        del pieces[-1]
    pieces += (b"]", _end(record), b"}")
    pieces[:0] = (b'{"patterns":[', b",".join(patterns), b"],") if patterns else (b"{",)
    return TapeColumns(b"".join(pieces), (digits + b"f" * (len(digits) % 2)).decode())


def _end(record: SessionRecord) -> bytes:
    """The members that tell of an answer's end."""
    members, frame, failure = b"", record.usage_frame, record.failure
    if frame is not None:
        places = {key: 0 if key in _REPLACED else value for key, value in frame.items()}
        members += b',"usage":' + _dump(places)
    if failure is not None and failure.status is not None:
        members += b',"status":%d' % failure.status
    return members


_REPLACED = frozenset(("id", "object", "created", "model", "choices", "usage"))
"""Of a usage chunk all that is ours by the time it is sent; only their places count."""


def _stretch(part: Stretch, choices: Sequence[Choice]) -> bytes:
    members = [b'"count":%d' % part.count, _place_of(part, choices)]
    if part.ascii:
        members.append(b'"ascii":true')
    if part.odd:
        odd = {str(number): literal.decode() for number, literal in part.odd.items()}
        members.append(b'"odd":' + _dump(odd))
    if part.paddings is not None:
        if BACKSLASH in part.paddings:
            members.append(b'"paddings":' + _dump(part.paddings.decode()))
        else:
            members.append(b'"paddings":[%b]' % bytes(part.paddings[:-1]).replace(b"\n", b","))
    return b",".join(members)


def _place_of(part: Stretch, choices: Sequence[Choice]) -> bytes:
    """Where a stretch's texts are: in the message of a choice, or, where no message has them, here."""
    key, text = part.pattern.key, part.text.joined()
    for position, choice in enumerate(choices):
        if type(said := choice.message.get(key)) is str and said == text:
            return b'"choice":%d,"start":%d' % (position, part.start)
    return b'"text":' + _dump(text[part.start : part.start + part.characters])


def _pattern(pattern: ChunkPattern) -> bytes:
    chunk = _dump(pattern.chunk(""))
    padded = b',"padded":true' if pattern.between else b""
    return b'{"key":%b,"chunk":%b%b}' % (_dump(pattern.key), chunk, padded)


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # lone surrogates
        return json_source(value)


def tape_of(tape: str, lengths: bytes, choices: Sequence[Choice]) -> KeptTape:
    """The tape that these columns hold.

    Args:
        choices: the answer that it belongs to.

    Raises:
        TapeDamaged: they hold none.
    """
    try:
        kept = _load(tape)
        made = Tape()
        for part in _parts(kept, memoryview(lengths.hex().encode()), choices):
            made.put(part)
        made.created = _created(kept)
        usage, status = kept.get("usage"), kept.get("status")
        if not (isinstance(usage, dict | None) and isinstance(status, int | None)):
            raise ValueError("odd usage or status")
    except _NOT_OURS as error:
        raise TapeDamaged(f"{type(error).__name__}: {error}"[:200]) from error
    return KeptTape(made, usage, status)


_NOT_OURS = (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError)


def _parts(
    kept: Mapping[str, Any], digits: memoryview, choices: Sequence[Choice]
) -> Iterator[Chunks | Stretch]:
    patterns = [*map(_pattern_of, kept.get("patterns", ()))]
    texts: dict[tuple[int, str], Text] = {}
    position = at = 0
    for part in kept["parts"]:
        if "chunks" in part:
            if {*map(type, part["chunks"])} - {dict}:
                raise ValueError("a chunk is no object")
            chunks = Chunks(position, list(map(_dump, part["chunks"])))
            position += chunks.total
            yield chunks
            continue
        pattern = patterns[part["pattern"]]
        if "text" in part:
            text, start = Text((part["text"],)), 0
        else:
            place, start = (part["choice"], pattern.key), part["start"]
            text = texts.setdefault(place, Text((choices[place[0]].message[place[1]],)))
        stretch = Stretch.restored(position, pattern, text, start, digits[at:], part["count"])
        if not 0 <= start <= len(text.joined()) - stretch.characters:
            raise ValueError("a text is shorter than its lengths")
        _add_writing(stretch, part)
        at += len(stretch.lengths)
        position += stretch.total
        yield stretch


def _pattern_of(kept: Mapping[str, Any]) -> ChunkPattern:
    between = _BETWEEN if kept.get("padded") else b""
    pattern = ChunkPattern(kept["chunk"], kept["key"], b"", b"", between)
    pattern.chunk("")  # raises if it is none
    return pattern


def _add_writing(stretch: Stretch, part: Mapping[str, Any]) -> None:
    stretch.ascii = bool(part.get("ascii"))
    if odd := part.get("odd"):
        stretch.odd = {int(number): literal.encode() for number, literal in odd.items()}
    paddings = part.get("paddings")
    if isinstance(paddings, str):
        stretch.paddings = bytearray(paddings.encode())
    elif paddings is not None:
        stretch.paddings = bytearray(b"".join([_dump(padding) + b"\n" for padding in paddings]))
    lines = 0 if stretch.paddings is None else stretch.paddings.count(b"\n")
    if lines != (stretch.count if stretch.pattern.between else 0):
        raise ValueError("there is not a padding for each text")


def _created(kept: Mapping[str, Any]) -> Any:
    for part in kept["parts"]:
        first = (
            part["chunks"][0] if "chunks" in part else kept["patterns"][part["pattern"]]["chunk"]
        )
        return first.get("created")
    return None


def _load(source: str) -> Any:
    try:
        return orjson.loads(source)
    except orjson.JSONDecodeError:  # lone surrogates
        return json.loads(source)
