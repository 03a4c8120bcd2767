"""A read of many events brings what a read for each would bring, in fewer events."""

from collections.abc import Iterable, Sequence
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.agents.openai import reads
from service.agents.openai.reads import EventReader
from statemachine import ChunkReceived, Event, RepeatedChunks, UpstreamFailed, UpstreamFinished
from tests.service.agents.test_decoder import (
    DONE,
    FINISHED,
    FIXED_BODIES,
    NO_LIMIT,
    Read,
    event,
    read,
)
from tests.service.agents.test_pattern import expanded, in_pieces, streams
from tests.service.stream.conftest import HANG, ROLE, FakeAgent, attempts_of
from tests.statemachine.conftest import finish_chunk, text_chunk

USAGE: Any = {"choices": [], "usage": {"total_tokens": 5}}
WORDS = [f"word {number}, and more" for number in range(60)]
RUN = b"".join(event(text_chunk(word)) for word in WORDS)  # 10 KB
ENDING = [finish_chunk(), USAGE]
ENDS = b"".join(map(event, ENDING)) + DONE


def payloads_of(event: Event) -> list[Any]:
    """The chunks of an event."""
    assert isinstance(event, ChunkReceived)
    run = event.run
    return expanded(run) if isinstance(run, RepeatedChunks) else [run.payload]


def told(pieces: Iterable[bytes], max_event_bytes: int = NO_LIMIT) -> Read:
    """The chunks and the ending of a body that arrives in these pieces."""
    reader = EventReader(max_event_bytes)
    found: list[Event] = []
    for piece in pieces:
        found += reader.read(piece)
        if found and isinstance(found[-1], (UpstreamFinished, UpstreamFailed)):
            break
    else:
        found += reader.close()
    *chunks, ending = found
    assert isinstance(ending, (UpstreamFinished, UpstreamFailed))
    return [payload for one in chunks for payload in payloads_of(one)], ending


def kinds(found: Sequence[Event]) -> list[str]:
    """Of which make each event's run is; an ending has none."""
    return [type(one.run if isinstance(one, ChunkReceived) else one).__name__ for one in found]


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    stream=streams(),
    limit=st.sampled_from([NO_LIMIT, NO_LIMIT, 200, 300]),
    large=st.sampled_from([0, 150, 400]),
    lesson=st.sampled_from([0, 1, 200, 500]),
)
def test_large_reads_bring_what_small_ones_bring(
    data: st.DataObject, stream: tuple[bytes, list[int]], limit: int, large: int, lesson: int
) -> None:
    """Whatever comes, however it is cut, and from whatever size on a read is large, the chunks and
    the ending are the same."""
    body, ends = stream
    anywhere = st.lists(st.integers(0, len(body)), max_size=6)
    pieces = in_pieces(body, data.draw(anywhere | st.lists(st.sampled_from(ends), max_size=3)))
    with patch.multiple(reads, _LARGE_READ_BYTES=large, _LESSON_BYTES=lesson):
        assert told(pieces, limit) == read(pieces, limit)


@pytest.mark.parametrize("body", FIXED_BODIES.values(), ids=list(FIXED_BODIES))
def test_what_follows_a_long_run_is_read_as_it_would_be_alone(body: bytes) -> None:
    """In the same read or cut anywhere within the two, chunks and ending are the decoder's."""
    for position in range(len(body) + 1):
        pieces = [RUN + body[:position], body[position:]]
        assert told(pieces) == read(pieces), position


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_a_whole_answer_may_come_in_one_read(line_end: bytes) -> None:
    """One read may bring everything from the role to `[DONE]`, with any of SSE's line ends."""
    body = (event(ROLE) + RUN + ENDS).replace(b"\n", line_end)
    expected = [ROLE, *map(text_chunk, WORDS), *ENDING]
    assert (expected, FINISHED) == told([body])


def test_a_long_run_becomes_one_event_after_its_first_chunks() -> None:
    """Repeats become one event alone, before an answer's last events, and where the read ends
    within an event."""
    for rest, after in (
        (b"", []),
        (ENDS, ["ParsedChunk"] * 2 + ["UpstreamFinished"]),
        (RUN[:77], []),
    ):
        found = kinds(EventReader(NO_LIMIT).read(RUN + rest))
        start = found.index("RepeatedChunks")
        assert found[:start] == ["ParsedChunk"] * start
        assert start < 20
        assert found[start + 1 :] == after


def test_repeats_are_taken_from_pieces_up_to_the_answers_end() -> None:
    """All pieces are taken, or all but an answer's last three, or none if anything else is among
    them."""
    run = [event(text_chunk(word)) for word in WORDS]
    ending = [*map(event, ENDING), DONE]
    for pieces, taken in (
        (run, len(run)),
        ([*run, *ending], len(run)),
        ([*run, b": comment\n\n", *ending], 0),
        (ending, 0),
        (run[:2], 2),
        ([run[0][:9], run[0][9:], *run[1:]], len(run) + 1),
    ):
        reader = EventReader(NO_LIMIT)
        reader.read(event(text_chunk("first")) + event(text_chunk("second")))
        found, count = reader.take(pieces)
        assert count == taken
        assert (found is None) == (taken == 0)
        if found is not None:
            assert expanded(found) == list(map(text_chunk, WORDS[: len(found.texts)]))
        rest = [
            payload
            for piece in pieces[count:]
            for one in reader.read(piece)
            if isinstance(one, ChunkReceived)
            for payload in payloads_of(one)
        ]
        assert len(rest) + (len(found.texts) if found else 0) == sum(
            b'"choices"' in p for p in pieces
        )


async def test_a_token_behind_many_empty_texts_is_the_first() -> None:
    """One text of a run that isn't empty ends the wait for the first token."""
    silent = event(text_chunk("")) * 100
    agent = FakeAgent("a", [silent + event(text_chunk("Hi")), HANG], first_token_seconds=5)
    upstream = attempts_of(agent)
    found = await upstream.read()
    assert "RepeatedChunks" == kinds(found)[-1]
    payloads = [payload for one in found for payload in payloads_of(one)]
    assert payloads == [text_chunk("")] * 100 + [text_chunk("Hi")]
    await upstream.close()


async def test_empty_texts_are_no_token_however_many() -> None:
    """Empty texts are held back, and handed out with the first token."""
    silent = event(text_chunk("")) * 100
    agent = FakeAgent("a", [silent, event(text_chunk("Hi")), HANG], first_token_seconds=5)
    upstream = attempts_of(agent)
    found = await upstream.read()
    payloads = [payload for one in found for payload in payloads_of(one)]
    assert payloads == [text_chunk("")] * 100 + [text_chunk("Hi")]
    await upstream.close()


def test_without_the_shortcut_every_chunk_is_parsed() -> None:
    """A long run is the same chunks, one by one, and so is what comes after it alone."""
    reader = EventReader(NO_LIMIT, uses_shortcut=False)
    found = [*reader.read(RUN), *reader.read(event(text_chunk("last"))), *reader.read(ENDS)]
    chunks = [*map(text_chunk, [*WORDS, "last"]), *ENDING]
    assert [*map(ChunkReceived, chunks), UpstreamFinished()] == found
