"""Bodies that are compressed though that wasn't asked for, endless, slow, or of an odd status."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from service.agents.openai import agent as agent_module
from statemachine import Failure, UpstreamFailed, UpstreamFinished
from tests.holdup import measured_loop
from tests.service.agents.conftest import (
    Backend,
    MakeAgent,
    call,
    collect,
    error_json,
    folded,
    refusal,
)
from tests.service.stage.backend import event_bytes
from tests.statemachine.conftest import finish_chunk, text_chunk

BODY = (
    b"".join(map(event_bytes, [*map(text_chunk, "abcdefgh"), finish_chunk()])) + b"data: [DONE]\n\n"
)


@asynccontextmanager
async def nobody_waits() -> AsyncIterator[None]:
    """The event loop isn't held."""
    async with measured_loop() as loop_time:
        yield
    assert loop_time.longest_ms < loop_time.bound_ms


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKED = [
    ("gzip", gzip.compress(BODY)),
    ("x-gzip", gzip.compress(BODY)),
    ("GZip", gzip.compress(BODY)),
    ("identity, gzip", gzip.compress(BODY)),
    ("gzip", gzip.compress(BODY[:700]) + gzip.compress(BODY[700:])),
    ("gzip", gzip.compress(BODY) + b"\0" * 512),
    ("gzip", gzip.compress(BODY)[:-8]),  # without its checksum
    ("deflate", zlib.compress(BODY)),
    ("deflate", raw_deflate(BODY)),
    ("identity", BODY),
    ("", BODY),
]


@pytest.mark.parametrize(("encoding", "packed"), PACKED)
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
async def test_a_packed_stream_is_read(
    backend: Backend, make_agent: MakeAgent, encoding: str, packed: bytes, size: int
) -> None:
    """However it is cut, and whatever comes behind it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Encoding": encoding})
        await response.prepare(request)
        for start in range(0, len(packed), size):
            await response.write(packed[start : start + size])
            await asyncio.sleep(0)
        return response

    backend.answer = answer
    transcript, ending = folded(await collect(make_agent()))
    assert (UpstreamFinished(), "abcdefgh") == (ending, transcript.choices()[0].message["content"])
    assert 1 == len(backend.requests)


async def test_packed_events_come_as_soon_as_they_are_here(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """A flushed event doesn't wait for what comes after it."""
    go_on = asyncio.Event()
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Encoding": "gzip"})
        await response.prepare(request)
        await response.write(
            packer.compress(event_bytes(text_chunk("a"))) + packer.flush(zlib.Z_SYNC_FLUSH)
        )
        await go_on.wait()
        await response.write(packer.compress(b"data: [DONE]\n\n") + packer.flush())
        return response

    backend.answer = answer
    async with make_agent().open(call()) as opened, asyncio.timeout(5):
        await opened.read()
        go_on.set()
        assert [UpstreamFinished()] == await opened.read()


@pytest.mark.parametrize("status", [200, 201, 400, 503])
@pytest.mark.parametrize(
    "encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "aes128gcm"]
)
async def test_any_other_encoding_is_refused_and_asked_for_once(
    backend: Backend, make_agent: MakeAgent, encoding: str, status: int
) -> None:
    """The failure names it; an error keeps its status."""
    backend.answers(status, b"\x1b\x00\xf8", content_encoding=encoding)
    error = await refusal(make_agent())
    if status < 300:
        message = f"sent its answer compressed as {encoding}, which wasn't asked for."
        assert error.failure == Failure("upstream_malformed", f"The model's backend {message}")
        assert not error.is_retryable
    else:
        message = f"The model's backend answered {status}."
        assert (status, message) == (error.failure.status, error.failure.message)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"not gzip"),
        ("gzip", gzip.compress(BODY)[:10] + b"\xff" * 99),
        ("deflate", b"\xff" * 9),
    ],
)
async def test_what_cannot_be_unpacked_is_malformed(
    backend: Backend, make_agent: MakeAgent, encoding: str, body: bytes
) -> None:
    """A body isn't always what its headers say."""
    backend.answers(200, body, content_encoding=encoding)
    (*_, ending) = (await collect(make_agent()))[-1]
    assert isinstance(ending, UpstreamFailed)
    assert "upstream_malformed" == ending.failure.code


@pytest.mark.parametrize("filling", [b"\n", b" ", b": hm\n\n", b"x", b"[", b"data:\n\n", b"\r"])
async def test_a_packed_body_of_nothing_holds_nobody_up(
    backend: Backend, make_agent: MakeAgent, filling: bytes
) -> None:
    """A few kilobytes may unpack to any size; what no event comes of is given up."""
    packed = gzip.compress(filling * ((64 << 20) // len(filling)), 1)
    backend.answers(200, packed, content_encoding="gzip")
    agent = make_agent(max_event_bytes=1 << 20)
    async with nobody_waits():
        (*_, ending) = (await collect(agent))[-1]
    assert isinstance(ending, UpstreamFailed)


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize(
    "piece",
    [
        b"data: {}\n\n",
        b"data:{}\n",
        b"data:\n\n",
        b"\n",
        b"event: ping\n\n",
        b": hm\n\n",
        b"x\n\n",
        b'{"x":1}\n\n',
        b"data: {\ndata: }\n\n",
    ],
)
async def test_many_tiny_events_at_once_hold_nobody_up(
    backend: Backend, make_agent: MakeAgent, piece: bytes, encoding: str
) -> None:
    """Megabytes that are here at once are read in pieces."""
    body = piece * ((1 << 20) // len(piece)) + b"data: [DONE]\n\n"
    if encoding:
        backend.answers(200, gzip.compress(body, 1), content_encoding=encoding)
    else:
        backend.answers(200, body)
    agent = make_agent()
    async with nobody_waits(), agent.open(call()) as answer:
        while not isinstance((await answer.read())[-1], (UpstreamFinished, UpstreamFailed)):
            pass


@pytest.mark.parametrize("status", [200, 400])
async def test_what_a_packed_body_unpacks_to_is_never_in_memory(
    backend: Backend, make_agent: MakeAgent, status: int
) -> None:
    """Neither an answer's nor an error's."""
    backend.answers(status, gzip.compress(b"x" * (64 << 20), 1), content_encoding="gzip")
    agent = make_agent(max_event_bytes=1 << 20)
    tracemalloc.start()
    try:
        if status == 200:
            await collect(agent)
        else:
            await refusal(agent)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 << 20


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("status", [400, 500])
async def test_an_errors_body_is_read_up_to_a_bound(
    backend: Backend, make_agent: MakeAgent, status: int, encoding: str
) -> None:
    """Its beginning is quoted, and its connection is closed."""
    closed = asyncio.Event()
    piece = b"x" * (1 << 20)
    packed = gzip.compress(piece * 64, 1)

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        if encoding:
            response.headers["Content-Encoding"] = encoding
        await response.prepare(request)
        try:
            while True:
                await response.write(packed if encoding else piece)
        finally:
            closed.set()

    backend.answer = endless
    agent = make_agent()
    async with nobody_waits(), asyncio.timeout(10):
        error = await refusal(agent)
        await closed.wait()
    assert (status, "x" * 200) == (error.failure.status, error.failure.message)


async def test_a_slow_error_body_has_a_deadline(
    backend: Backend, make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come by then is what it says."""
    monkeypatch.setattr(agent_module, "_ERROR_TIMEOUT_SECONDS", 0.2)

    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=503)
        await response.prepare(request)
        await response.write(b"Loading")
        await asyncio.Event().wait()
        return response

    backend.answer = slowly
    async with asyncio.timeout(4):
        error = await refusal(make_agent())
    assert (503, "Loading") == (error.failure.status, error.failure.message)


# --- statuses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 203, 206, 226])
async def test_any_success_with_a_stream_is_an_answer(
    backend: Backend, make_agent: MakeAgent, status: int
) -> None:
    """A 201 says no less than a 200 that an answer has been made."""
    backend.answers(status, BODY)
    transcript, ending = folded(await collect(make_agent()))
    assert (UpstreamFinished(), "abcdefgh") == (ending, transcript.choices()[0].message["content"])


@pytest.mark.parametrize(
    ("status", "body"), [(201, b""), (202, b""), (202, b'{"job": 5}'), (204, b""), (205, b"")]
)
async def test_a_success_without_a_stream_is_no_answer(
    backend: Backend, make_agent: MakeAgent, status: int, body: bytes
) -> None:
    """Asked again, such a backend would do the same again."""
    backend.answers(status, body)
    ((ending,),) = await collect(make_agent())
    assert isinstance(ending, UpstreamFailed)
    assert ("upstream_malformed", False) == (ending.failure.code, ending.failure.should_retry)
    assert ending.failure.status is None


@pytest.mark.parametrize("status", [300, 304, 399])
async def test_a_failure_has_a_failures_status(
    backend: Backend, make_agent: MakeAgent, status: int
) -> None:
    """What isn't one doesn't go on to clients."""
    backend.answers(status, b"")
    error = await refusal(make_agent())
    assert not error.is_retryable
    assert (None, f"The model's backend answered {status}.") == (
        error.failure.status,
        error.failure.message,
    )


@pytest.mark.parametrize("name", ["retry_after", "retry_after_ms"])
async def test_headers_go_with_an_error_that_names_its_status(
    backend: Backend, make_agent: MakeAgent, name: str
) -> None:
    """Under a 200 as well."""
    value = "7" if name == "retry_after" else "7000"
    backend.answers(200, error_json(message="Slow down.", code="429"), **{name: value})
    ((ending,),) = await collect(make_agent())
    assert isinstance(ending, UpstreamFailed)
    assert (429, 7.0) == (ending.failure.status, ending.failure.retry_after_seconds)


@pytest.mark.parametrize(("advice", "is_retryable"), [("false", False), ("true", True)])
async def test_a_backends_advice_about_retries_is_taken(
    backend: Backend, make_agent: MakeAgent, advice: str, is_retryable: bool
) -> None:
    """As the SDKs take it."""
    status = 503 if advice == "false" else 404
    backend.answers(status, error_json(message="No."), x_should_retry=advice)
    assert is_retryable == (await refusal(make_agent())).is_retryable


async def test_a_whole_completion_instead_of_a_stream_is_read(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """A backend that ignores `stream` has answered all the same, and is asked once."""
    message: dict[str, Any] = {"role": "assistant", "content": "Hello."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 3}}
    backend.answers(200, json.dumps(body).encode(), content_type="application/json")
    transcript, ending = folded(await collect(make_agent()))
    assert (UpstreamFinished(), "Hello.") == (ending, transcript.choices()[0].message["content"])
    assert ("stop", {"total_tokens": 3}) == (transcript.finish_reason, transcript.usage)
    assert 1 == len(backend.requests)
