"""The lane: nothing is lost, doubled or late, and errors stay aiohttp's."""

import asyncio
from collections.abc import Sequence
from itertools import combinations

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.agents.test_pattern import in_pieces
from tests.service.stage.line import ALL, EVENT, HEAD, LAST, NONE, Line, answer, http_chunk

# --- what comes -----------------------------------------------------------------------------------

PARTS = [EVENT, EVENT, b"data: ", b"a", b"x" * 17, b"\n\n", b"\n", b"\r", b"0", b"5"]
ODD_PARTS = [b"\r\n", b"\r\n\r\n", b"5\r\n", b"data: {}\r\n\r\n", LAST, http_chunk(b"hello")]
SIZES = [b"%x"]
ODD_SIZES = [b"%x", b"%X", b"0%x", b"00000000%x", b"%x;a", b"%x;a=b", b'%x;a="b"', b"%x ", b"%x\t"]
BAD_SIZES = [b"", b"%x 5", b"5 %x", b"-%x", b"+%x", b"0x%x", b"%x_", b"%xg", b" %x", b"%x\n", b"%x"]
ENDS = [
    LAST,
    LAST,
    b"000\r\n\r\n",
    b"0;a=b\r\n\r\n",
    b"0\r\nX: y\r\n\r\n",
    b"0\r\nX: y\r\nZ:\r\n\r\n",
]
DAMAGE = [b"", b" ", b"\n", b"\r", b"\r\n", b"0", b"5", b";"]

bits = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map(b"".join)
odd_bits = st.tuples(bits, st.sampled_from(ODD_PARTS), bits).map(b"".join)


def chunks(sizes: Sequence[bytes]) -> st.SearchStrategy[tuple[bytes, bytes]]:
    """The data of a frame, and how it is sent, its size written in one of these ways."""

    def sent(data: bytes, size: bytes) -> tuple[bytes, bytes]:
        for number in (b"%x", b"%X"):
            size = size.replace(number, number % len(data))
        return data, size + b"\r\n" + data + b"\r\n"

    said = bits if sizes is SIZES else bits | odd_bits
    return st.builds(sent, said, st.sampled_from(sizes))


takings = st.sampled_from([ALL, NONE]) | st.lists(st.integers(0, 4), min_size=1, max_size=4)
turnings = st.sampled_from([[4], [0]]) | st.lists(st.integers(0, 3), min_size=1, max_size=4)


@st.composite
def chunked_bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body, and how it is sent in frames."""
    is_odd = draw(st.integers(0, 3)) == 0
    drawn = draw(st.lists(chunks(ODD_SIZES if is_odd else SIZES), max_size=8))
    sent = b"".join(raw for _, raw in drawn) + draw(st.sampled_from(ENDS))
    return b"".join(data for data, _ in drawn), sent


@st.composite
def pieces_of(draw: st.DrawFn, sent: bytes) -> list[bytes]:
    """Cut anywhere, or into single bytes."""
    cuts = st.lists(st.integers(0, len(sent)), max_size=20) | st.just([*range(len(sent))])
    return in_pieces(sent, draw(cuts))


# --- nothing is lost, doubled or held back --------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(data=st.data(), body=chunked_bodies(), takes=takings, turns=turnings)
async def test_every_byte_comes_once_and_in_order(
    data: st.DataObject, body: tuple[bytes, bytes], takes: list[int], turns: list[int]
) -> None:
    """However a body is chunked and cut, and whatever a listener takes of it, both together get
    the body and one end; then the connection is as good as new."""
    said, sent = body
    line = Line(takes)
    first, *rest = data.draw(pieces_of(sent))
    await line.receive([HEAD + first, *rest] if len(sent) % 2 else [HEAD, first, *rest], turns)
    await asyncio.wait_for(line.reading, 1)
    assert line.body == said
    assert not line.protocol.should_close
    assert takes is not NONE or [] == line.listened


@settings(max_examples=75, deadline=None)
@given(data=st.data(), body=chunked_bodies(), takes=takings)
async def test_a_body_that_breaks_off_is_kept_and_reported(
    data: st.DataObject, body: tuple[bytes, bytes], takes: list[int]
) -> None:
    """Cut short anywhere, a body gives the bytes that it gives without the lane, and the same
    error."""
    sent = body[1][: data.draw(st.integers(0, len(body[1]) - 1))]
    pieces = [HEAD, *data.draw(pieces_of(sent))]
    expected, plain_ending, _ = await answer(pieces, kind=ResponseHandler)
    found, ending, _ = await answer(pieces, takes)
    assert (expected, plain_ending) == (found, ending)
    assert ending == aiohttp.ClientPayloadError.__name__


@settings(max_examples=75, deadline=None)
@given(data=st.data(), drawn=st.lists(chunks(SIZES) | chunks(BAD_SIZES), max_size=5), takes=takings)
async def test_damaged_bodies_are_left_to_aiohttp(
    data: st.DataObject, drawn: list[tuple[bytes, bytes]], takes: list[int]
) -> None:
    """Where a body breaks HTTP's rules, nothing is raised towards the event loop, and what came
    before is what aiohttp reads."""
    sent = b"".join(raw for _, raw in drawn) + LAST
    for _ in range(data.draw(st.integers(0, 2))):
        start = data.draw(st.integers(0, len(sent)))
        sent = sent[:start] + data.draw(st.sampled_from(DAMAGE)) + sent[start + 1 :]
    pieces = [HEAD, *data.draw(pieces_of(sent))]
    expected, _, _ = await answer(pieces, kind=ResponseHandler)
    assert expected == (await answer(pieces, takes))[0]


@pytest.mark.parametrize("before", [b"", http_chunk(EVENT)[:-2]])
async def test_what_looks_like_a_frame_within_a_frame_is_data(before: bytes) -> None:
    """A frame's data may hold the bytes of other frames, wherever the body is cut."""
    said = EVENT + b"a" + b"\r\n5\r\nhello" * 2 + b"\r\n"
    sent = (b"\r\n" if before else b"") + http_chunk(said) + LAST
    for cuts in combinations(range(len(sent) - len(LAST)), 2):
        pieces = [HEAD, before, *in_pieces(sent, cuts)]
        body, ending, _ = await answer([piece for piece in pieces if piece])
        assert (body, ending) == ((EVENT if before else b"") + said, "well"), pieces


@pytest.mark.parametrize("takes", [ALL, NONE])
@pytest.mark.parametrize("event", [EVENT, b"data: {}\r\n\r\n", b"data: {}\r\r", b"data: {}\n\r"])
async def test_a_whole_event_in_half_a_frame_is_not_held_back(
    event: bytes, takes: list[int]
) -> None:
    """Of a frame that has come in part, what could already be read is given at once."""
    size, data = b"%x\r\n" % 99, event + b"data: and more of it"
    for length in range(len(event), len(data) + 1):
        line = Line(takes)
        await line.receive([HEAD, http_chunk(EVENT), size + data[:length]])
        assert line.body.startswith(EVENT + event), data[:length]
        await line.lose()


@pytest.mark.parametrize("takes", [ALL, NONE])
async def test_the_second_half_of_a_blank_line_is_not_held_back(takes: list[int]) -> None:
    """An event may end with the first byte of the next frame."""
    line = Line(takes)
    await line.receive([HEAD, http_chunk(EVENT[:-1]), b"%x\r\n" % 99 + EVENT[-1:] + b"data: more"])
    assert line.body.startswith(EVENT)
    await line.lose()


@pytest.mark.parametrize("takes", [ALL, NONE])
@pytest.mark.parametrize("missing", [1, 2])
async def test_a_frame_that_lacks_its_line_end_is_not_held_back(
    takes: list[int], missing: int
) -> None:
    """Some servers send the line end after a frame along with the next one."""
    line = Line(takes)
    sent = http_chunk(EVENT) * 3
    await line.receive([HEAD, sent[:-missing]])
    assert EVENT * 3 == line.body
    await line.receive([sent[-missing:] + http_chunk(EVENT) + LAST])
    assert EVENT * 4 == line.body
    assert line.reading.done()


async def test_a_frame_without_a_blank_line_is_held_up_to_a_limit() -> None:
    """A frame that is longer than any event may be is handed on as it comes."""
    line = Line(ALL)
    await line.receive([HEAD, b"%x\r\n" % (1 << 20)] + [b"x" * (1 << 16)] * 5)
    assert 5 << 16 == len(line.body)
    await line.lose()
