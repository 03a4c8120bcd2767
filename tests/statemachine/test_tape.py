"""The tape: whatever came, in whatever pieces, can be read again from any position as it came."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine import (
    ChunkPattern,
    ChunkReceived,
    ChunkRun,
    ParsedChunk,
    RepeatedChunks,
    SendChunk,
    SessionPolicy,
    StreamSession,
)
from statemachine.chunks import PADDING
from statemachine.tape import Cursor, Expired, Stretch, Tape, Written, WrittenChunk
from tests.statemachine.conftest import asked, chunk, finish_chunk, made_up, text_chunk

BETWEEN = b'}}],"obfuscation":'
Shown = tuple[str, Any]


def written_oddly(text: str) -> str:
    """A literal as Go writes it."""
    return json.dumps(text, ensure_ascii=False).replace("<", "\\u003c").replace("/", "\\/")


WRITERS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: json.dumps(text, ensure_ascii=False),
    "in ASCII": json.dumps,
    "oddly": written_oddly,
}
PATTERNS = [
    ChunkPattern(text_chunk("x"), "content", b"{", b"}"),
    ChunkPattern(chunk({"reasoning_content": "x"}), "reasoning_content", b"{", b"}"),
    ChunkPattern(chunk({"content": "x"}, index=1), "content", b"{", b"}"),
    ChunkPattern({**text_chunk("x"), PADDING: "ab"}, "content", b"{", b"}", BETWEEN),
    ChunkPattern(chunk({"content": "x"}, index=2), "content", b"{", b"}"),
]

texts = st.lists(
    st.one_of(
        st.sampled_from(
            ("", "a", "word ", "é", "<b>", '"\n', "x" * 14, "x" * 15, "x" * 16, "漢" * 40)
        ),
        st.text("ab<é\n", max_size=20),
        st.just("long " * 80),
    ),
    min_size=1,
    max_size=6,
)


def run_of(pattern: ChunkPattern, words: Sequence[str], writer: str) -> RepeatedChunks:
    """A run of that pattern, with its literals written in one way."""
    write = WRITERS[writer]
    lines = [write(word).encode() for word in words]
    if pattern.between:
        lines = [line + pattern.between + b'"pad%d"' % number for number, line in enumerate(lines)]
    return RepeatedChunks(pattern, tuple(words), b"\n".join(lines))


runs = st.one_of(
    st.builds(run_of, st.sampled_from(PATTERNS), texts, st.sampled_from(sorted(WRITERS))),
    st.sampled_from(
        (
            ParsedChunk(chunk({"role": "assistant"})),
            ParsedChunk(text_chunk("parsed"), json.dumps(text_chunk("parsed")).encode()),
            ParsedChunk(chunk({"content": ["part"]}, index=2)),
            ParsedChunk({"choices": [], "system_fingerprint": "fp"}),
            ParsedChunk({"choices": [], "usage": {"completion_tokens": 1}}),
            ParsedChunk(chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]})),
        )
    ),
)


def shown(run: ChunkRun | Written) -> Iterator[Shown]:
    """What identifies each chunk of a run to the byte."""
    if isinstance(run, RepeatedChunks):
        for text, line in zip(run.texts, run.literals.split(b"\n"), strict=True):
            yield text, (run.pattern, line)
    elif isinstance(run, WrittenChunk):
        yield "", run.source
    else:
        yield "", run.source or json.dumps(run.payload, separators=(",", ":")).encode()


def read_all(cursor: Cursor, most: int = 256) -> list[Shown]:
    """Everything that a cursor reads now."""
    found: list[Shown] = []
    while block := cursor.read(most):
        found += [one for written in block for one in shown(written)]
    return found


@made_up(50)
@given(
    st.lists(runs, max_size=25),
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 40), st.integers(1, 9)), max_size=6),
)
def test_any_position_is_read_as_it_came(
    came: list[ChunkRun], readers: list[tuple[int, int, int]]
) -> None:
    """Readers that come at any moment, to any position, and read at any pace."""
    session = StreamSession(asked(), SessionPolicy())
    sent: list[Shown] = []
    cursors: list[tuple[Cursor, int, list[Shown], int]] = []
    for number, run in enumerate([*came, ParsedChunk(finish_chunk())]):
        for moment, back, pace in readers:
            if moment == number:
                start = max(0, len(sent) - back)
                cursors.append((Cursor(session.transcript.tape, start), start, [], pace))
        for effect in session.handle(ChunkReceived(run), 1.0):
            if isinstance(effect, SendChunk):
                sent += shown(effect.run)
        assert len(sent) == session.transcript.tape.count
        for cursor, _, found, pace in cursors:
            found += [one for written in cursor.read(pace) for one in shown(written)]
    session.transcript.choices()
    for cursor, start, found, pace in cursors:
        assert sent[start:] == found + read_all(cursor, pace)
    for position in range(0, len(sent) + 1, 7):
        assert sent[position:] == read_all(Cursor(session.transcript.tape, position))


def long_tape(count: int = 20_000) -> tuple[StreamSession, list[Shown]]:
    """An answer of many short texts, packed several times over."""
    session, sent = StreamSession(asked(), SessionPolicy()), list[Shown]()
    for number in range(count):
        run = run_of(PATTERNS[0], (f"word{number} " if number % 50 else "w" * 40,), "as it is")
        session.handle(ChunkReceived(run), 1.0)
        sent += shown(run)
    return session, sent


def test_a_long_answer_is_read_from_anywhere() -> None:
    """Positions between the marks, at them and around the joined text's end."""
    session, sent = long_tape()
    for position in (0, 1, 4095, 4096, 4097, 9_999, 19_000, 19_999, 20_000):
        assert sent[position:] == read_all(Cursor(session.transcript.tape, position))


def test_texts_are_kept_once() -> None:
    """Of repeated chunks the tape has a byte each, about; not their texts."""
    session, sent = long_tape()
    (stretch,) = session.transcript.tape.parts
    assert isinstance(stretch, Stretch)
    session.transcript.choices()
    assert len(sent) <= len(stretch.lengths) < 1.1 * len(sent)
    assert session.transcript.tape.size < 1.1 * len(sent) + 1_000
    (choice,) = session.transcript.choices()
    assert stretch.text.joined() is choice.message["content"]


def test_what_is_too_large_loses_its_beginning() -> None:
    """A reader of the end goes on; one of the beginning is told."""
    tape = Tape(10_000)
    late, early = Cursor(tape, 0), Cursor(tape, 0)
    seen = 0
    for number in range(300):
        tape.add(ParsedChunk({}, b"%099d" % number))
        seen += sum(1 for _ in late.read())
    assert 300 == seen == tape.count
    assert not tape.is_whole
    assert tape.size <= 10_000
    with pytest.raises(Expired):
        early.read()
    (first, *_) = Cursor(tape, tape.first).read()
    assert WrittenChunk(b"%099d" % tape.first) == first


def test_an_answer_of_empty_texts_is_bounded_too() -> None:
    """Chunks that say nothing grow no text, and all the same the tape."""
    session = StreamSession(asked(), SessionPolicy(max_tape_bytes=50_000))
    for _ in range(3_000):
        session.handle(ChunkReceived(run_of(PATTERNS[0], ("",) * 100, "as it is")), 1.0)
    tape = session.transcript.tape
    assert 300_000 == tape.count
    assert not tape.is_whole
    (stretch,) = tape.parts
    assert isinstance(stretch, Stretch)
    assert stretch.total < 300_000
    assert [""] * 10 == [text for text, _ in read_all(Cursor(tape, 299_990))]


def test_a_block_holds_no_more_than_it_may() -> None:
    """A reader takes many short chunks at once, and few long ones."""
    session = StreamSession(asked(), SessionPolicy())
    words = ("x" * 100_000,) * 10
    session.handle(ChunkReceived(run_of(PATTERNS[0], words, "as it is")), 1.0)
    cursor = Cursor(session.transcript.tape)
    sizes = []
    while block := cursor.read():
        sizes.append(sum(len(text) for one in block for text, _ in shown(one)))
    assert 1_000_000 == sum(sizes)
    assert 256 * 1024 >= max(sizes)
    assert [*range(2, 11, 2)] == [*accumulate(size // 100_000 for size in sizes)]
