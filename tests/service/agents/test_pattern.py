"""The shortcut for chunks that differ in one text reads what the parser reads."""

import json
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.agents.openai.decoder import SseDecoder
from service.agents.openai.mending import ChunkMender
from service.wire import decode_json, encode_json
from statemachine import RepeatedChunks
from statemachine.chunks import PADDING
from tests.service.agents.test_decoder import (
    DONE,
    FIXED_BODIES,
    NO_LIMIT,
    Read,
    bodies,
    event,
    read,
)
from tests.statemachine.conftest import chunk, finish_chunk, text_chunk


def ascii_compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def ascii_spaced(value: Any) -> bytes:
    return json.dumps(value).encode()


def unicode_spaced(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate can only travel as an escape
        return json.dumps(value).encode()


Write = Callable[[Any], bytes]
WRITERS: list[Write] = [encode_json, ascii_compact, ascii_spaced, unicode_spaced]


def expanded(received: RepeatedChunks) -> list[dict[str, Any]]:
    """The chunks that it stands for, after checking that whoever writes them from its bytes writes
    the same, and a line each. Mended as they are, what was said before isn't said again."""
    pattern = received.pattern
    literals = received.literals.split(b"\n")
    chunks = [dict(pattern.chunk(text)) for text in received.texts]
    written = [pattern.before + literal + pattern.after for literal in literals]
    if pattern.between:  # and a padding of its own each
        for chunk, text in zip(chunks, written, strict=True):
            chunk[PADDING] = decode_json(text)[PADDING]
            assert type(chunk[PADDING]) is str
    said = [decode_json(text) for text in written]
    mender = ChunkMender()
    mender.mend(said[0])
    assert chunks == [mender.mend(chunk) for chunk in said]
    assert {str} == set(map(type, received.texts))
    assert not any(b"\n" in text or b"\r" in text for text in written)
    return chunks


def read_quickly(pieces: Iterable[bytes], max_event_bytes: int = NO_LIMIT) -> Read:
    """The chunks and the ending of a body, as `take` and `feed` together read them."""
    decoder = SseDecoder(max_event_bytes)
    payloads: list[Any] = []
    for piece in pieces:
        received = decoder.take(piece)
        payloads += decoder.feed(piece) if received is None else expanded(received)
    payloads += decoder.close()
    return payloads, decoder.ending


def read_together(pieces: Sequence[bytes], max_event_bytes: int = NO_LIMIT) -> Read:
    """The same where three pieces at a time were sent apart and came together."""
    decoder = SseDecoder(max_event_bytes)
    payloads: list[Any] = []
    for start in range(0, len(pieces), 3):
        group = pieces[start : start + 3]
        received = decoder.take_events(group)
        if received is not None:
            payloads += expanded(received)
        else:
            payloads += [payload for piece in group for payload in decoder.feed(piece)]
    payloads += decoder.close()
    return payloads, decoder.ending


def in_pieces(body: bytes, cuts: Iterable[int]) -> list[bytes]:
    ends = sorted(cuts)
    return [body[start:end] for start, end in zip([0, *ends], [*ends, len(body)], strict=True)]


def one_byte_at_a_time(body: bytes) -> list[bytes]:
    return in_pieces(body, range(1, len(body)))


# --- what comes -----------------------------------------------------------------------------------

PLACE = "where the text stands"
PADDED = "where the padding stands"
ODD_LITERALS = [
    b"", b" ", b"5", b"null", b"true", b"NaN", b"'a'", b'"', b'"\\"', b'"a" ', b' "a"', b'\t"a"',
    b'"a"\r', b'\r"a"', b'"a"\n', b'\n"a"', b'"a"\n\n', b'\n\n"a"', b'"a\n"', b'"a\r"', b'"a\nb"',
    b'"a","b"', b'"a" "b"', b'"a"\n"b"', b'"a",\n"b"', b'"a"\n,"b"', b'"a"\n"b"\n"c"', b",", b",\n",
    b'"b"],"c"', b'"a', b'b","c"',
    b"[]", b'["a"]', b'["a","b"]', b'["a"', b'"b"]', b'"a"],["b"', b'{"a":"b"}', b'"a":"b"',
    b'"\\ud83d"', b'"\\ud83d\\ude42"', b'"\\u0000"', b'"\\/"', b'"\xff"', b'"\xf0\x9f"', b'"\x01"',
    b'"\x7f"', b'"a"\xe2\x80\xa8', b'"a","content":"b"', b'"a","role":"b"', b'"[DONE]"', b'"data: "',
    b'"a"}}]}\n\ndata: {"choices":[{"index":0,"delta":{"content":"b"', b'"\\n\\ndata: {}\\n\\n"',
]  # fmt: skip
FRAMES = [
    (b"data:", b"\n\n"), (b"data:  ", b"\n\n"), (b"id: 7\ndata: ", b"\n\n"), (b"data: ", b"\nid\n\n"),
    (b"event: message\ndata: ", b"\n\n"), (b"event: error\ndata: ", b"\n\n"), (b"data: ", b"\n\r\n"),
    (b": comment\ndata: ", b"\n\n"), (b": comment\rdata: ", b"\n\n"), (b"data: ", b"\n\n\n"),
    (b"data: ", b"\r\n\r\n"), (b"data: ", b"\r\r"), (b"data: ", b"\n\r"), (b"data: ", b"\r\n\n"),
    (b": comment\n\ndata: ", b"\n\n"), (b"data: ", b"\ndata: \n\n"), (b"data: ", b"\n"),
]  # fmt: skip
USUAL = (b"data: ", b"\n\n")
OTHER_EVENTS = [
    DONE, b": comment\n\n", b"\n", b"\r", event({"choices": []}), event(finish_chunk()),
    event({"choices": [], "usage": {"total_tokens": 1}}), event({"error": {"message": "No."}}),
    b"data: {oops}\n\n", b"data: 5\n\n", b"data:\n\n", event(text_chunk("another")),
]  # fmt: skip

texts = st.text(st.characters(exclude_categories=()), max_size=6)
deltas: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {}, {"role": "assistant"}, {"content": None}, {"tool_calls": []}]
)
keys = st.sampled_from(["content", "content", "content", "reasoning_content", "id"])
members = st.sampled_from(
    [
        {"usage": None},
        {"usage": {"total_tokens": 5}},
        {"choices": []},  # there twice then, and the last one counts
        {"content": PLACE[::-1]},
        {"delta": {"content": PLACE[::-1]}},
        {"error": None},
        {PADDING: "constant"},
        {PADDING: None},
        {"vendor": {PADDING: PADDED[::-1]}},
    ]
)


@st.composite
def chunks_around_a_text(draw: st.DrawFn) -> tuple[Write, bytes, bytes, bytes]:
    """A writer of JSON, and what it writes in a chunk before a text, between that and a padding, and
    after both; without a padding, nothing is between them."""
    write = draw(st.sampled_from(WRITERS))
    payload = chunk({**draw(deltas), draw(keys): PLACE}, index=draw(st.integers(0, 1)))
    text = write(payload)
    for member in draw(st.lists(members | st.builds(dict, vendor=texts), max_size=2)):
        text = draw(with_member(text, write(member)[1:-1]))
    before, after = text.split(write(PLACE))
    if not draw(st.booleans()):
        return write, before, b"", after
    after = after[:-1] + b",%b}" % write({PADDING: PADDED})[1:-1]
    if draw(st.booleans()):
        after = after[:-1] + b",%b}" % write(draw(members))[1:-1]
    between, after = after.split(write(PADDED))
    return write, before, between, after


def with_member(text: bytes, member: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from([b"{%b,%b" % (member, text[1:]), text[:-1] + b",%b}" % member])


@st.composite
def runs(draw: st.DrawFn) -> list[bytes]:
    """Events that are like one another, but for a few."""
    write, before, between, after = draw(chunks_around_a_text())
    oddity = draw(st.sampled_from([0, 0, 1, 3]))
    line_end = draw(st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"]))
    events: list[bytes] = []
    for text in draw(st.lists(texts, min_size=1, max_size=8)):
        odd = draw(st.integers(1, 8)) <= oddity
        literal = draw(st.sampled_from(ODD_LITERALS)) if odd else write(text)
        padding = draw(odd_paddings(between) if odd else texts.map(write)) if between else b""
        start, end = draw(st.sampled_from(FRAMES)) if oddity == 3 else USUAL
        events.append(start + before + literal + between + padding + after + end)
        if odd and draw(st.booleans()):
            events.append(draw(st.sampled_from(OTHER_EVENTS)))
    return [piece.replace(b"\n", line_end) for piece in events]


def odd_paddings(between: bytes) -> st.SearchStrategy[bytes]:
    """What might be taken for a padding, or for two."""
    return st.sampled_from(ODD_LITERALS) | st.sampled_from(ODD_LITERALS).map(
        lambda literal: b'"a"' + between + literal
    )


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """A body and where its events end."""
    events = [piece for run in draw(st.lists(runs(), min_size=1, max_size=3)) for piece in run]
    return b"".join(events), [len(b"".join(events[:count])) for count in range(1, len(events) + 1)]


# --- both ways read the same ----------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(data=st.data(), stream=streams(), limit=st.sampled_from([NO_LIMIT, NO_LIMIT, 170, 200, 300]))
def test_the_shortcut_reads_what_the_parser_reads(
    data: st.DataObject, stream: tuple[bytes, list[int]], limit: int
) -> None:
    """Whatever comes, however it is cut, `take` and `feed` give the chunks and the ending of
    `feed` alone."""
    body, ends = stream
    anywhere = st.integers(0, len(body))
    cuts = data.draw(
        st.sampled_from([ends, ends[::3]])
        | st.lists(st.sampled_from(ends), max_size=8)
        | st.lists(anywhere, max_size=12)
        | st.builds(list.__add__, st.just(ends), st.lists(anywhere, max_size=4))
    )
    pieces = in_pieces(body, cuts)
    assert read(pieces, limit) == read_quickly(pieces, limit) == read_together(pieces, limit)
    pieces = one_byte_at_a_time(body)
    assert read(pieces, limit) == read_quickly(pieces, limit)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), body_and_meaning=bodies())
def test_well_formed_bodies_are_read_as_meant(data: st.DataObject, body_and_meaning: Any) -> None:
    """The shortcut changes nothing of a body that is like no run of chunks."""
    body, *meaning = body_and_meaning
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=12))
    assert tuple(meaning) == read_quickly(in_pieces(body, cuts))


@pytest.mark.parametrize("body", FIXED_BODIES.values(), ids=list(FIXED_BODIES))
def test_what_follows_a_run_is_read_as_without_the_shortcut(body: bytes) -> None:
    """The body behind the run may be cut anywhere."""
    run = [event(text_chunk(text)) for text in "abc"]
    whole = b"".join([event(text_chunk("d")), body])
    for position in range(len(whole) + 1):
        pieces = [*run, whole[:position], whole[position:]]
        assert read(pieces) == read_quickly(pieces), pieces[3:]


def event_of(literal: bytes) -> bytes:
    """The event of a run in which any literal can stand."""
    before, after = ascii_compact(text_chunk(PLACE)).split(ascii_compact(PLACE))
    return b"data: " + before + literal + after + b"\n\n"


RUN = [event_of(b'"a"'), event_of(b'"b"'), event_of(b'"c"')]


def padded_event_of(literal: bytes, padding: bytes = b'"x"') -> bytes:
    """The same with a padding, in which anything can stand too."""
    return event_of(literal)[:-3] + b',"obfuscation":' + padding + b"}\n\n"


PADDED_RUN = [padded_event_of(b'"a"'), padded_event_of(b'"b"', b'"xy"'), padded_event_of(b'"c"')]
BETWEEN = PADDED_RUN[0].partition(b'"a"')[2].rpartition(b'"x"')[0]


def test_padded_chunks_take_the_shortcut_from_the_second_on() -> None:
    """Alone and together, whatever stands in text and padding is read right."""
    decoder = SseDecoder(NO_LIMIT)
    for piece in PADDED_RUN[:2]:
        assert decoder.take(piece) is None
        decoder.feed(piece)
    for said, padding in (("d", ""), ('"\\', 'x"'), (BETWEEN.decode(), BETWEEN.decode())):
        piece = padded_event_of(encode_json(said), encode_json(padding))
        for count in (1, 3):
            received = decoder.take(piece * count)
            assert received is not None
            assert [said] * count == list(received.texts)
            assert [decode_json(piece[6:-2])] * count == expanded(received)
            together = decoder.take_events([piece] * count)
            assert together is not None
            assert expanded(together) == expanded(received)


@pytest.mark.parametrize("literal", ODD_LITERALS)
def test_what_is_no_padding_is_not_read_as_one(literal: bytes) -> None:
    """Anything but one text and one padding is read as without the shortcut: alone, between events
    that came with it, and side by side with what would make up for it."""
    good = padded_event_of(b'"d"')
    odd = [padded_event_of(b'"d"', literal), padded_event_of(literal)]
    odd += [padded_event_of(b'"d"' + BETWEEN + literal), padded_event_of(literal, b'"x"' + BETWEEN)]
    less = [event_of(b'"d"'), good.replace(BETWEEN, b","), good.replace(BETWEEN, b"],[")]
    # Brackets within a text that runs on in the next event.
    odd += [padded_event_of(b'"d"', b'"x'), padded_event_of(b'"d')]
    less += [padded_event_of(b'y"],["d"'), padded_event_of(b'"d"', b'x"],["d","x"')]
    for one in odd:
        pieces = [one, good + one, one + good, good + one + good, one + one]
        pieces += [one + other for other in less] + [other + one for other in less]
        for piece in pieces:
            assert read([*PADDED_RUN, piece]) == read_quickly([*PADDED_RUN, piece]), piece
        for other in (*less, *odd, good):
            pieces = [*PADDED_RUN, one, other, good]
            assert read(pieces) == read_together(pieces), pieces[3:]


@pytest.mark.parametrize("literal", ODD_LITERALS)
def test_what_is_no_literal_is_not_read_as_one(literal: bytes) -> None:
    """Where a text stands, anything else is read as without the shortcut: alone, between events
    that came with it, and side by side with whatever else is no literal."""
    good, odd = event_of(b'"d"'), event_of(literal)
    pieces = [odd, good + odd, odd + good, good + odd + good]
    pieces += [odd + event_of(other) for other in ODD_LITERALS]
    for piece in pieces:
        assert read([*RUN, piece]) == read_quickly([*RUN, piece]), piece
    for other in (good, *map(event_of, ODD_LITERALS)):
        pieces = [*RUN, odd, other, good]
        assert read(pieces) == read_together(pieces), pieces[3:]


@pytest.mark.parametrize("run", [RUN, PADDED_RUN])
def test_a_literal_without_its_chunk_is_not_read_as_one(run: list[bytes]) -> None:
    """A literal by itself, or with half of what belongs around it, is parsed, also between events
    of the pattern."""
    before, after = run[0].split(b'"a"')
    for odd in (b'"a"\n\n', before + b'"a"\n\n', b'"a"' + after, b'data: "a"' + after):
        pieces = [*run, run[0], odd, run[0]]
        assert read(pieces) == read_quickly([*run, run[0] + odd + run[0]]), odd
        assert read(pieces) == read_together(pieces), odd


@pytest.mark.parametrize(("start", "end"), FRAMES)
def test_lines_around_the_chunk_are_not_overlooked(start: bytes, end: bytes) -> None:
    """Other fields, comments and line ends than the usual are read as without the shortcut,
    also where they were cut."""
    good = event_of(b'"d"')
    framed = good + start + good[6:-2] + end + good
    for position in range(len(good) - 2, len(framed) + 1):
        pieces = [*RUN, framed[:position], framed[position:]]
        assert read(pieces) == read_quickly(pieces), pieces[3:]


@pytest.mark.parametrize("frame", [b"", b"\n", b"\n\n"])
def test_line_ends_where_a_text_should_be_do_not_fill_the_memory(frame: bytes) -> None:
    """Line ends are found to be no text before anything is put between them."""
    odd = event_of(b'"a"' + b"\n" * 100_000 + b'"b"') + frame * 50_000 + event_of(b'"c"')
    for pieces in ([odd], odd.split(b"\n")[:2] + [b"\n"] * 100_000):
        decoder = SseDecoder(NO_LIMIT)
        for good in RUN:
            decoder.feed(good)
        tracemalloc.start()
        try:
            assert decoder.take(b"".join(pieces)) is None
            assert decoder.take_events(pieces) is None
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # 80 bytes a piece are `join`'s; with a chunk around each it would be 37 MB and more.
        assert peak < 14_000_000


def test_a_line_end_cut_in_two_takes_nothing_from_what_follows() -> None:
    """A carriage return at a piece's end waits for its line feed, and for no later one."""
    good, other = event_of(b'"d"'), event(text_chunk("other"))
    pieces = [*RUN, good[:-2] + b"\r\r", good + other[:-1], b"\n" + good, good]
    assert read(pieces) == read_quickly(pieces)
    assert len(read_quickly(pieces)[0]) == len(RUN) + 5


@pytest.mark.parametrize("count", [1, 3])
def test_the_size_limit_holds_on_the_shortcut(count: int) -> None:
    """An event past the limit fails, whole or in two pieces, and one that just fits doesn't."""
    good = event_of(b'"d"')
    big = event_of(b'"%b"' % (b"d" * 50))
    for limit in range(len(good) - 2, len(big) + 4):
        for pieces in ([big], [big[:-9], big[-9:]], [good * count + big], [good, big[:-1]]):
            assert read([*RUN, *pieces], limit) == read_quickly([*RUN, *pieces], limit), limit
        assert read([*RUN, big, good], limit) == read_together([*RUN, big, good], limit), limit
