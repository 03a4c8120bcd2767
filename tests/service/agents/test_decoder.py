"""An upstream's SSE body into chunks and a truthful ending, however the bytes were cut."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.agents.openai.decoder import SseDecoder
from statemachine import Failure, UpstreamFailed, UpstreamFinished
from tests.statemachine.conftest import chunk, finish_chunk, text_chunk

NO_LIMIT = 1 << 20
DONE = b"data: [DONE]\n\n"
BOM = b"\xef\xbb\xbf"
FINISHED = UpstreamFinished()
INCOMPLETE = UpstreamFailed(
    Failure("upstream_incomplete", "The model's answer broke off before its end.")
)

Read = tuple[list[Any], UpstreamFinished | UpstreamFailed | None]


def read(pieces: Iterable[bytes], max_event_bytes: int = NO_LIMIT) -> Read:
    """The chunks and the ending of a body that arrives in these pieces."""
    decoder = SseDecoder(max_event_bytes)
    payloads = [payload for piece in pieces for payload in decoder.feed(piece)]
    payloads += decoder.close()
    return payloads, decoder.ending


def failure(*pieces: bytes, max_event_bytes: int = NO_LIMIT) -> Failure:
    """The failure that a body without any chunk ends in."""
    payloads, ending = read(pieces, max_event_bytes)
    assert [] == payloads
    assert isinstance(ending, UpstreamFailed)
    return ending.failure


def event(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def one_byte_at_a_time(body: bytes) -> Iterator[bytes]:
    return (body[position : position + 1] for position in range(len(body)))


# --- any cut gives the same ---------------------------------------------------------------------

WORDS = [
    "",
    "a",
    "Grüße",
    "你好",
    "🙂👩‍👩‍👧",
    "\ud83d",
    "\x00",
    'data: "x"\n\n',
    "\u2028\u0085",
    "\\n\r",
]

FIXED_BODIES = {
    "everything": (
        BOM + b": hi\r\n\r\nretry: 1000\nid: 7\ndata:{\"choices\":[]}\n\n"
        b"event: message\r\ndata: {\"choices\":\r\ndata:  [{\"index\": 0, \"delta\": "
        b"{\"content\": \"\xf0\x9f\x99\x82\\ud83d\\u0000\"}}]}\r\n\r\n"
        b": a comment right before data\n"
        b'data: {"choices": [], "usage": {"total_tokens": 1}}\r\r'
        b"\n\n\n" + DONE + b'data: {"after": "the end"}\n\n'
    ),
    "without an end": event(text_chunk("a")) + b": ping\n\n" + event(finish_chunk())[:-2],
    "cut in an event": event(text_chunk("ä")) + event(text_chunk("ö"))[:-9],
    "an error": event(text_chunk("a")) + b'event: error\r\ndata: {"message": "No."}\r\n\r\n',
    "no JSON": event(text_chunk("a")) + b"data: {oops}\n\n" + event(text_chunk("b")),
    "a plain error": b'{"error":\n {"message": "No.", "code": 429}}\n',
    "a plain error and a blank line": b'{"error": {"message": "No."}}\r\n\r\n',
    "a page": b"<html>\n\n<p>Hello: you</p>\n</html>\n",
    "carriage returns": b'data: {"a": 1}\r\rdata: {"b": 2}\r\rdata: [DONE]\r\r',
    "half a byte order mark": BOM[:2],
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("body", FIXED_BODIES.values(), ids=list(FIXED_BODIES))
def test_a_body_cut_in_two_is_read_as_the_whole(body: bytes) -> None:
    """Wherever a body is cut in two, its chunks and its ending are those of the whole."""
    whole = read([body])
    for position in range(len(body) + 1):
        assert whole == read([body[:position], body[position:]])


@pytest.mark.parametrize("body", FIXED_BODIES.values(), ids=list(FIXED_BODIES))
def test_a_body_in_single_bytes_is_read_as_the_whole(body: bytes) -> None:
    """A body that arrives byte by byte gives what it gives in one piece."""
    assert read([body]) == read(one_byte_at_a_time(body))


def test_the_fixed_bodies_are_read_as_meant() -> None:
    """Cutting these bodies proves something only if they are read right in one piece."""
    endings = {name: read([body]) for name, body in FIXED_BODIES.items()}
    surrogates = {"index": 0, "delta": {"content": "🙂\ud83d\x00"}}
    assert endings["everything"] == (
        [
            {"choices": []},
            {"choices": [surrogates]},
            {"choices": [], "usage": {"total_tokens": 1}},
        ],
        FINISHED,
    )
    assert endings["without an end"] == ([text_chunk("a"), finish_chunk()], INCOMPLETE)
    assert endings["cut in an event"] == ([text_chunk("ä")], INCOMPLETE)
    assert endings["an error"] == (
        [text_chunk("a")],
        UpstreamFailed(Failure("upstream_error", "No.", type="upstream_error")),
    )
    assert ([{"a": 1}, {"b": 2}], FINISHED) == endings["carriage returns"]
    assert ([], INCOMPLETE) == endings["nothing"]


texts = st.text(st.characters(exclude_categories=()), max_size=8) | st.sampled_from(WORDS)
line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
field_lines = st.sampled_from(
    [b": comment", b":", b"id: 7", b"id", b"retry: 10", b"event: message", b"event:", b"other: x"]
)


@st.composite
def chunk_lines(draw: st.DrawFn) -> tuple[list[bytes], list[Any]]:
    """The lines of one event with a chunk in it, and that chunk."""
    extra = {"vendor": draw(texts)} if draw(st.booleans()) else {}
    payload = {**chunk({"content": draw(texts)}), **extra}
    text = json.dumps(payload, ensure_ascii=draw(st.booleans()))
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a lone surrogate can only travel as an escape
        data = json.dumps(payload).encode()
    prefix = draw(st.sampled_from([b"data:", b"data: "]))
    pieces = [data]
    if draw(st.booleans()):
        pieces = data.replace(b', "', b',\x00 "').split(b"\x00")  # JSON may break between tokens
    lines = [prefix + piece for piece in pieces]
    for line in draw(st.lists(field_lines, max_size=2)):
        lines.insert(draw(st.integers(0, len(lines))), line)
    return lines, [payload]


@st.composite
def silent_lines(draw: st.DrawFn) -> tuple[list[bytes], list[Any]]:
    """The lines of a block that says nothing: comments and fields without data, or empty data."""
    return draw(st.lists(field_lines | st.just(b"data:"), min_size=1, max_size=3)), []


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, list[Any], UpstreamFinished | UpstreamFailed]:
    """A well-formed body, the chunks in it, and how it ends."""
    blocks = draw(st.lists(chunk_lines() | silent_lines(), max_size=6))
    payloads = [payload for _, block_payloads in blocks for payload in block_payloads]
    is_done = draw(st.booleans())
    if is_done:
        blocks.append(([draw(st.sampled_from([b"data: [DONE]", b"data:[DONE]"]))], []))
    body = bytearray(BOM if draw(st.booleans()) else b"")
    for position, (lines, _) in enumerate(blocks):
        is_last = position == len(blocks) - 1
        blank_lines = draw(st.integers(0, 1) if is_last else st.integers(1, 3))
        for line in [*lines, *[b""] * blank_lines]:
            end = draw(line_ends)
            if line == b"" and end == b"\n" and body.endswith(b"\r"):
                end = b"\r\n"  # or the two would be one line end
            body += line + end
    if not draw(st.booleans()) and body.endswith((b"\n", b"\r")):
        del body[-1]  # a last line without its end
    if is_done and draw(st.booleans()):
        body += b"\n\n" + event(text_chunk("after the end"))
    return bytes(body), payloads, FINISHED if is_done else INCOMPLETE


@settings(max_examples=100, deadline=None)
@given(data=st.data(), body_and_meaning=bodies())
def test_random_bodies_in_random_pieces_are_read_as_meant(
    data: st.DataObject, body_and_meaning: Any
) -> None:
    """A well-formed body is read the same whole, in random pieces and byte by byte."""
    body, payloads, ending = body_and_meaning
    assert (payloads, ending) == read([body])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert (payloads, ending) == read(pieces)
    assert (payloads, ending) == read(one_byte_at_a_time(body))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                b"\n", b"\r", b"\r\n", b"\n\n", BOM, b"data", b":", b" ", b"event: error", b"{",
                b"}", b'{"error": "x"}', b'{"choices": []}', b"data: ", b"[DONE]", b"\xff", b"[]",
            ]
        ),
        max_size=25,
    ),
    st.integers(4, 30),
)  # fmt: skip
def test_rubbish_never_raises_and_always_has_an_ending(
    parts: list[bytes], max_event_bytes: int
) -> None:
    """Whatever comes, cutting it changes neither chunks nor ending."""
    whole = read([b"".join(parts)], max_event_bytes)
    assert whole[1] is not None
    assert whole == read(parts, max_event_bytes)
    assert whole == read(one_byte_at_a_time(b"".join(parts)), max_event_bytes)


def test_chunks_come_as_soon_as_they_are_whole() -> None:
    """A chunk is handed out by the call that brings its blank line, and `ending` stays open."""
    decoder = SseDecoder(NO_LIMIT)
    body = event(text_chunk("a"))
    assert [] == decoder.feed(body[:-1])
    assert decoder.feed(body[-1:] + event(text_chunk("b"))[:5]) == [text_chunk("a")]
    assert decoder.ending is None


# --- what counts as a chunk -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": [], "usage": {"total_tokens": 3}},
        {"usage": {"total_tokens": 3}},
        {"x_groq": {"usage": {"total_tokens": 3}}},
        {"choices": [], "prompt_filter_results": []},
        {"choices": [{}]},
        {"choices": [{"index": None, "delta": None}]},
        {"choices": [{"index": 0, "delta": {"anything": {"at": ["all"]}}, "more": 1}]},
        {"unknown": [1, "two", None]},
    ],
)
def test_every_chunk_passes_untouched(payload: Any) -> None:
    """Chunks without choices, usage frames anywhere and unknown fields come out as they went in."""
    body = event(payload) + event(text_chunk("a")) + event(payload) + DONE
    assert read([body]) == ([payload, text_chunk("a"), payload], FINISHED)


def test_event_names_other_than_error_mean_nothing() -> None:
    """A data event is a chunk whatever its `event:` field is, except for `error`."""
    body = b"event: completion.chunk\n" + event(text_chunk("a")) + DONE
    assert read([body]) == ([text_chunk("a")], FINISHED)


def test_data_without_a_value_is_a_heartbeat() -> None:
    """`data:` alone brings neither a chunk nor an ending."""
    assert ([], FINISHED) == read([b"data:\n\ndata: \n\ndata\n\n" + DONE])


# --- the size limit -------------------------------------------------------------------------------

SMALL = event({"a": "x" * 50})
LIMIT = len(SMALL) - 2
"""The limit is on the event's lines, without the blank line that ends it."""


@pytest.mark.parametrize("before", [b"", event({}), b"\n", b"data: {}\r\n\r\n\r\n"])
@pytest.mark.parametrize("after", [b"", event({})])
def test_the_size_limit_is_exact(before: bytes, after: bytes) -> None:
    """An event exactly at the limit passes, one byte more fails, however they are cut."""
    empty: dict[str, str] = {}
    large = {"a": "x" * 50}
    leading = [empty] if b"{" in before else []
    trailing = [empty] if after else []
    body = before + SMALL + after
    for cut in range(len(body) + 1):
        pieces = [body[:cut], body[cut:], DONE]
        expected = ([*leading, large, *trailing], FINISHED)
        assert expected == read(pieces, max_event_bytes=LIMIT)
        payloads, ending = read(pieces, max_event_bytes=LIMIT - 1)
        assert payloads == leading
        assert isinstance(ending, UpstreamFailed)
        assert "upstream_malformed" == ending.failure.code
        assert str(LIMIT - 1) in ending.failure.message


def test_an_oversized_event_fails_before_it_is_whole() -> None:
    """The limit holds while bytes come in, so an endless event can't fill the memory."""
    decoder = SseDecoder(1000)
    assert decoder.feed(event(text_chunk("a")) + b"data: " + b"x" * 900) == [text_chunk("a")]
    assert not decoder.ending
    decoder.feed(b"x" * 200)
    assert isinstance(decoder.ending, UpstreamFailed)
    assert [] == decoder.feed(b"\n\n" + event(text_chunk("b")))


def test_many_events_in_one_packet_may_exceed_the_limit_together() -> None:
    """The limit is each event's, not the packet's."""
    body = event(text_chunk("word")) * 100 + DONE
    payloads, ending = read([body], max_event_bytes=len(event(text_chunk("word"))))
    assert (100, FINISHED) == (len(payloads), ending)


@pytest.mark.timeout(20)
def test_a_large_event_costs_work_in_proportion_to_its_size() -> None:
    """The number of pieces doesn't count: quadratic work for these 65,536 would take minutes."""
    body = event({"a": "x" * (4 << 20)})
    pieces = [body[start : start + 64] for start in range(0, len(body), 64)]
    payloads, _ = read(pieces, max_event_bytes=8 << 20)
    assert [{"a": "x" * (4 << 20)}] == payloads
