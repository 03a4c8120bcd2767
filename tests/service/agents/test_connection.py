"""What becomes of an answer whatever its connection does."""

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
from aiohttp import web

from service.settings.config import Timeouts
from statemachine import (
    ChunkReceived,
    Failure,
    UpstreamFailed,
    UpstreamFinished,
)
from tests.service.agents.conftest import (
    EVENT,
    Backend,
    MakeAgent,
    call,
    collect,
    folded,
    refusal,
    unused_port,
)


@asynccontextmanager
async def raw_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A backend that does with each connection, once its request came, what no server should."""
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


BROKE = UpstreamFailed(
    Failure("upstream_incomplete", "The connection to the model's backend broke.")
)
UNREACHABLE = Failure("upstream_unreachable", "The model's backend could not be reached.")


async def test_a_backend_that_isnt_there_may_be_asked_again(make_agent: MakeAgent) -> None:
    """A refused connection is `upstream_unreachable`, which is retryable and not final."""
    error = await refusal(make_agent(base_url=f"http://127.0.0.1:{unused_port()}/v1"))
    assert UNREACHABLE == error.failure
    assert (True, False) == (error.is_retryable, error.is_final)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\nContent-"])
async def test_a_connection_that_closes_within_the_head_is_as_good_as_none(
    make_agent: MakeAgent, data: bytes
) -> None:
    """Whether the head has begun or not, the backend is unreachable and may be asked again."""

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    async with raw_server(hang_up) as url:
        error = await refusal(make_agent(base_url=url))
    assert UNREACHABLE == error.failure
    assert error.is_retryable


async def test_a_server_that_speaks_no_http_is_a_failure_like_others(make_agent: MakeAgent) -> None:
    """Something else that listens there is the upstream's failure, not a fault of ours."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-server\r\n")

    async with raw_server(greet) as url:
        error = await refusal(make_agent(base_url=url))
    assert error.failure.code.startswith("upstream_")
    assert error.is_retryable


async def test_a_connection_that_takes_too_long_has_its_own_code(make_agent: MakeAgent) -> None:
    """A backend that can't be connected to in time may be asked again."""
    # On Linux, a listener whose queue of connections is full answers no more.
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for client in waiting:
                client.setblocking(False)
                client.connect_ex(listener.getsockname())
            await asyncio.sleep(0.05)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            started = time.monotonic()
            error = await refusal(make_agent(base_url=url, timeouts=Timeouts(connect_seconds=0.2)))
        finally:
            for client in waiting:
                client.close()
    message = "Connecting to the model's backend took over 0.2 s."
    assert error.failure == Failure("connect_timeout", message, type="timeout_error")
    assert error.is_retryable
    assert 0.15 <= time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (HEAD + chunked(EVENT), b""),  # no last chunk
        (HEAD + chunked(EVENT), b"ff\r\ndata:"),  # within a chunk
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + EVENT, b"data:"),
    ],
)
async def test_a_body_that_ends_against_http_is_a_broken_connection(
    make_agent: MakeAgent, head: bytes, rest: bytes
) -> None:
    """What came before such an end is kept."""
    go_on = asyncio.Event()

    async def break_off(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await go_on.wait()
        writer.write(rest)

    async with raw_server(break_off) as url:
        async with make_agent(base_url=url).open(call()) as answer:
            assert [ChunkReceived({"choices": []})] == await answer.read()
            go_on.set()
            assert [BROKE] == await answer.read()


async def test_a_reset_within_the_body_is_a_broken_connection(make_agent: MakeAgent) -> None:
    """A reset is reported like a body that ends against HTTP's rules."""
    go_on = asyncio.Event()

    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunked(EVENT))
        await go_on.wait()
        writer.transport.abort()

    async with raw_server(reset) as url:
        async with make_agent(base_url=url).open(call()) as answer:
            await answer.read()
            go_on.set()
            assert [BROKE] == await answer.read()


async def test_a_body_compressed_unasked_is_understood(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """A backend that compresses unasked is read, and one that does so wrongly is malformed."""
    backend.answers(200, gzip.compress(EVENT), content_encoding="gzip")
    first, *_ = await collect(make_agent())
    assert [ChunkReceived({"choices": []})] == first
    backend.answers(200, b"not gzip", content_encoding="gzip")
    ((ending,),) = await collect(make_agent())
    message = "The model's backend sent a body that cannot be decoded."
    assert UpstreamFailed(Failure("upstream_malformed", message)) == ending


@pytest.mark.parametrize("data", [b"", HEAD, HEAD + chunked(EVENT)])
async def test_leaving_an_answer_hangs_up_at_once(make_agent: MakeAgent, data: bytes) -> None:
    """Cancelled in whatever phase, or left between two reads, the connection closes, so that the
    backend stops working."""
    hung_up = asyncio.Event()
    reached = asyncio.Event()

    async def wait_for_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        reached.set()
        assert b"" == await reader.read()
        hung_up.set()

    async with raw_server(wait_for_the_end) as url:
        agent = make_agent(base_url=url)
        asking = asyncio.create_task(collect(agent))
        await reached.wait()
        await asyncio.sleep(0.02)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(2):
            await hung_up.wait()
        if data.endswith(chunked(EVENT)):
            hung_up.clear()
            async with agent.open(call()) as answer:
                await answer.read()
            async with asyncio.timeout(2):
                await hung_up.wait()


async def test_more_than_100_connections_may_be_open_at_once(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """The HTTP client's usual limit of 100 connections is lifted."""
    count = 120
    all_here = asyncio.Event()

    async def wait_for_the_others(request: web.Request) -> web.StreamResponse:
        if len(backend.requests) == count:
            all_here.set()
        await all_here.wait()
        return await backend.stream(request)

    backend.answer = wait_for_the_others
    agent = make_agent()
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*[collect(agent) for _ in range(count)])
    assert [folded(reads)[1] for reads in answers] == [UpstreamFinished()] * count
