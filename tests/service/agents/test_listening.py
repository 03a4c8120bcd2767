"""Who listens to an answer: to which bodies, to what of them, and for how long."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler

from service.agents.openai.lane import LaneConnector, LaneProtocol
from tests.service.stage.line import (
    ALL,
    CHUNKED,
    EVENT,
    HEAD,
    LAST,
    STATUS,
    Line,
    answer,
    http_chunk,
)

# --- what a listener gets -------------------------------------------------------------------------


async def test_whole_frames_go_to_the_listener() -> None:
    """Whether frames come alone, together, in parts or with the last one, the listener gets each
    by itself."""
    said = [b"one", b"two, which is longer", b"three"]
    one, two, three = map(http_chunk, said)
    for pieces in (
        [one, two, three, LAST],
        [one + two + three + LAST],
        [one + two[:1], two[1:6], two[6:] + three[:3], three[3:], LAST[:1], LAST[1:]],
    ):
        body, ending, line = await answer([HEAD, *pieces])
        assert (body, ending) == (b"".join(said), "well")
        assert line.listened == said


async def test_what_the_listener_leaves_goes_to_the_reader() -> None:
    """The listener takes from the first on, and once it left some it is asked no more until
    somebody waits."""
    line = Line([1, *ALL])
    a, b, c, d, e = map(http_chunk, (b"a", b"b", b"c", b"d", b"e"))
    await line.receive([HEAD, a + b + c, d, e], [4, 0, 4])
    assert [b"a", b"bcd", b"e"] == line.log
    assert [b"a", b"e"] == line.listened
    await line.lose()


async def test_frames_behind_a_late_line_end_go_to_the_listener_again() -> None:
    """The frame that came without its line end is the reader's."""
    a, b, c, d = map(http_chunk, (EVENT, b"b", b"c", b"d"))
    for late in (
        [a[:-2], a[-2:] + b, c],
        [a[:-2], a[-2:], b, c],
        [a[:-2], a[-2:] + b[:2], b[2:] + c],
    ):
        body, ending, line = await answer([HEAD, *late, d + LAST])
        assert (EVENT + b"bcd", "well") == (body, ending)
        assert EVENT == line.log[0]
        assert [b"c", b"d"] == line.listened[-2:]


async def test_an_old_listener_hears_nothing_of_the_next_response() -> None:
    """Over a connection that is used again, the next body is read right, whatever its kind."""
    line = Line(ALL)
    await line.receive([HEAD, http_chunk(b"first") + LAST])
    assert line.reading.done()
    old: list[Sequence[bytes]] = []

    def listen(pieces: Sequence[bytes]) -> int:
        old.append(pieces)
        return len(pieces)

    for head, sent in (
        (STATUS + b"Content-Length: 11\r\n\r\n", http_chunk(b"second")),
        (HEAD, http_chunk(b"third") + LAST),
        (HEAD + http_chunk(b"th"), http_chunk(b"ird") + LAST),
    ):
        line.log.clear()
        line.listened.clear()
        line.protocol.listener = listen
        line.ask()
        await line.receive([head, sent[:4], sent[4:]])
        assert line.reading.done()
        assert line.body == (b"third" if head.startswith(HEAD) else sent)
        assert bool(line.listened) is head.startswith(HEAD)
    assert [] == old
    assert not line.protocol.should_close


def body_of(head: bytes) -> bytes:
    return http_chunk(gzip.compress(EVENT, mtime=0) if b"gzip" in head else EVENT) + LAST


OTHER_HEADS: dict[str, bytes] = {
    "a length": STATUS + b"Content-Length: %d\r\n" % len(body_of(b"")),
    "no length": STATUS,
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + CHUNKED,
    "a 1xx before": b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" + STATUS + CHUNKED,
    "another status": b"HTTP/1.1 201 Created\r\n" + CHUNKED,
    "an error": b"HTTP/1.1 503 Unavailable\r\n" + CHUNKED,
    "gzip": STATUS + CHUNKED + b"Content-Encoding: gzip\r\n",
    "gzip before": STATUS + b"content-encoding:gzip\r\n" + CHUNKED,
    "gzip after a bare line feed": STATUS + CHUNKED + b"X: y\nContent-Encoding: gzip\r\n",
    "not chunked in the end": STATUS + CHUNKED + b"Transfer-Encoding: identity\r\n",
    "a folded line": STATUS + CHUNKED + b" identity\r\n",
    "a header that ends like it": STATUS + b"X-" + CHUNKED,
    "a value like it": STATUS + b"X: Transfer-Encoding: chunked\r\n",
}


@pytest.mark.parametrize("head", OTHER_HEADS.values(), ids=list(OTHER_HEADS))
async def test_only_chunked_bodies_of_a_200_are_listened_to(head: bytes) -> None:
    """Any other response, and a compressed one, is aiohttp's from its first byte on."""
    pieces = [head + b"\r\n", body_of(head)[:-5], LAST]
    expected, plain_ending, _ = await answer(pieces, kind=ResponseHandler)
    body, ending, line = await answer(pieces)
    assert (expected, plain_ending) == (body, ending)
    assert [] == line.listened


async def test_a_head_that_ends_in_bare_line_feeds_is_left_to_aiohttp() -> None:
    """Where such a head ends, what looks like its end may be within the body."""
    said = b"ab\r\n\r\n" + http_chunk(b"hello")
    sent = http_chunk(said) + LAST
    pieces = [STATUS + CHUNKED + b"X: y\n\n" + sent[:10], sent[10:20], sent[20:]]
    body, ending, line = await answer(pieces)
    assert (body, ending, line.listened) == (said, "well", [])


async def test_a_body_that_looks_like_a_response_is_a_body() -> None:
    """Of a response, only the first bytes are looked at for a head."""
    said = HEAD + http_chunk(EVENT) + LAST
    head = STATUS + b"Content-Length: %d\r\n\r\n" % len(said)
    body, ending, line = await answer([head, HEAD, said[len(HEAD) :]])
    assert (body, ending, line.listened) == (said, "well", [])


# --- over real sockets ----------------------------------------------------------------------------


@asynccontextmanager
async def server(*responses: Sequence[bytes]) -> AsyncIterator[tuple[str, list[object]]]:
    """Answers each request, on whatever connection, with the next response in these pieces. Its
    address, and the connections so far."""
    tasks: list[object] = []
    rest = iter(responses)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                for piece in next(rest):
                    writer.write(piece)
                    await asyncio.sleep(0.005)
        writer.close()

    running = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}/", tasks
    finally:
        running.close()
        await asyncio.gather(*tasks)  # type: ignore[call-overload]  # they are tasks


async def read_and_listen(response: aiohttp.ClientResponse, heard: list[bytes]) -> bytes:
    """What the reader gets of a body to its end, while a listener takes all it can."""

    def listen(pieces: Sequence[bytes]) -> int:
        heard.extend(pieces)
        return len(pieces)

    read = b""
    while True:
        if (connection := response.connection) is not None:
            assert isinstance(connection.protocol, LaneProtocol)
            connection.protocol.listener = listen
        data = await response.content.readany()
        if not data:
            return read
        read += data


async def test_a_connection_that_was_listened_to_is_used_again() -> None:
    """The connector's connections have the lane, and go back to the pool after every body,
    listened to or not."""
    responses: list[tuple[list[bytes], bytes, list[bytes]]] = [
        (
            [HEAD, http_chunk(b"a"), http_chunk(b"b") + http_chunk(b"c"), LAST],
            b"",
            [b"a", b"b", b"c"],
        ),
        ([STATUS + b"Content-Length: 2\r\n\r\n", b"d", b"e"], b"de", []),
        ([HEAD + http_chunk(b"f") + http_chunk(b"g") + LAST], b"fg", []),
        ([HEAD + http_chunk(b"h"), http_chunk(b"i"), LAST], b"h", [b"i"]),
    ]
    async with (
        server(*[pieces for pieces, _, _ in responses]) as (url, connections),
        aiohttp.ClientSession(connector=LaneConnector()) as session,
    ):
        for _, expected, expected_heard in responses:
            heard: list[bytes] = []
            async with session.get(url) as response:
                assert expected == await read_and_listen(response, heard)
            assert expected_heard == heard
        assert 1 == len(connections)
