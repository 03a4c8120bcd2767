"""Makes the journal's lines for chunks that repeat an earlier one, and reads them back. Pure.

A line holds of such chunks only what is new, their texts. The first also has what they have in common,
their pattern; the others have the first one's number:

    {"id": "chatcmpl-…", "n": 3, "at": …, "events": [{"chunk": {"choices": [
        {"index": 0, "delta": {"content": "Paris"}}]}}],
        "pattern": {"key": "content", "chunk": {…}, "padded": false}}
    {"id": "chatcmpl-…", "n": 4, "at": …, "like": 3, "events": [{"chunk": {"choices": [
        {"index": 0, "delta": {"content": " is"}}]}}]}

Read by whoever knows nothing of patterns, a line says the same words. Literals are written as they
came, and read as they stand, so that recovery knows the chunks to the byte.
"""

from collections.abc import Mapping
from typing import Any
from zlib import crc32

from orjson import dumps

from db.journal.format import dump_json, line_of
from statemachine import ChunkPattern, RepeatedChunks
from statemachine.chunks import NEW_LINE

BEFORE_PADDING = b'}}],"obfuscation":'
BETWEEN_CHUNKS = b'},{"chunk":'
_EVENTS = b',"events":[{"chunk":'
_PATTERN = b'}],"pattern":'


def start_of_text(pattern: ChunkPattern, number: int) -> bytes:
    """What stands in a line between its time and its first text.

    Args:
        number: of the line that made the pattern known.
    """
    return b',"like":%d%b%b' % (number, _EVENTS, _start_of_chunk(pattern))


def _start_of_chunk(pattern: ChunkPattern) -> bytes:
    index = pattern.payload["choices"][0].get("index") or 0
    return b'{"choices":[{"index":%b,"delta":{%b:' % (dump_json(index), dump_json(pattern.key))


def first_record(name: bytes, number: int, run: RepeatedChunks, now: float) -> bytes:
    """The line that makes a pattern known, by its first chunks; `name` is the completion's id as JSON."""
    pattern = run.pattern
    told = {"key": pattern.key, "chunk": pattern.chunk(""), "padded": bool(pattern.between)}
    start = _EVENTS + _start_of_chunk(pattern)
    return _record(name, number, start, run, now, b"%b%b}" % (_PATTERN, dump_json(told)))


def text_record(name: bytes, number: int, start: bytes, run: RepeatedChunks, now: float) -> bytes:
    """The line for chunks of a pattern that is known.

    Args:
        name: the completion's id as JSON.
        start: `start_of_text` of the pattern.
    """
    literals = run.literals
    if run.pattern.between or NEW_LINE in literals:
        return _record(name, number, start, run, now, b"}]}")
    # Nearly always, so what `_record` and `line_of` do is done here at once.
    source = b'{"id":%b,"n":%d,"at":%b%b%b}}]}}]}' % (name, number, dumps(now), start, literals)
    return b"%08x %d %b\n" % (crc32(source), len(source), source)


def _record(
    name: bytes, number: int, start: bytes, run: RepeatedChunks, now: float, tail: bytes
) -> bytes:
    literals, end = run.literals, b"}}]}"
    if run.pattern.between:
        literals, end = literals.replace(run.pattern.between, BEFORE_PADDING), b"}"
    if NEW_LINE in literals:
        literals = literals.replace(b"\n", _separator(run.pattern, end))
    fields = (name, number, dumps(now), start, literals, end, tail)
    return line_of(b'{"id":%b,"n":%d,"at":%b%b%b%b%b' % fields)


def _separator(pattern: ChunkPattern, end: bytes) -> bytes:
    return end + BETWEEN_CHUNKS + _start_of_chunk(pattern)


def separator_of(pattern: ChunkPattern) -> bytes:
    """What stands in a line between two texts, or between a padding and the next text."""
    return _separator(pattern, b"}" if pattern.between else b"}}]}")


def pattern_of(line: Mapping[str, Any]) -> ChunkPattern:
    """The pattern that a line makes known, as far as one needs it to send chunks again. Raises what
    odd lines make Python raise."""
    told = line["pattern"]
    between = BEFORE_PADDING if told["padded"] else b""
    return ChunkPattern(told["chunk"], told["key"], b"", b"", between)


def run_of(line: Mapping[str, Any], source: bytes, pattern: ChunkPattern) -> RepeatedChunks:
    """The chunks in a line.

    Args:
        source: its JSON.

    Raises:
        ValueError: it isn't written as it is written here.
    """
    start, end = _EVENTS + _start_of_chunk(pattern), b"}" if pattern.between else b"}}]}"
    position = source.find(start)
    # No literal holds a quote that isn't escaped.
    stop = source.find(end + _PATTERN, position) if "pattern" in line else -len(end + b"}]}")
    deltas = [event["chunk"]["choices"][0]["delta"] for event in line["events"]]
    if position < 0 or not deltas:
        raise ValueError("no texts")
    literals = source[position + len(start) : stop].replace(_separator(pattern, end), b"\n")
    run = RepeatedChunks(pattern, [delta[pattern.key] for delta in deltas], literals)
    if literals.count(b"\n") != len(deltas) - 1:
        raise ValueError("texts that aren't written as they should be")
    return run
