"""Invalid HTTP, and requests that come too slowly: refused in OpenAI's shape, and ended."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.edge.errors import ERROR_CODES
from service.settings.access import AuthConfig
from service.settings.config import ServerConfig, SseConfig
from tests.service.callers.test_auth import ANNE, api_key
from tests.service.conftest import Service, ServiceMaker


class Connection:
    """A client that writes its own bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, text: str) -> None:
        self.writer.write(text.encode())

    async def answer(self) -> tuple[int, dict[str, str], str]:
        """Status, headers in small letters, and the body's text."""
        async with asyncio.timeout(5):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in head[1:])
            }
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body.decode()

    async def closed_after(self, send_every_tick: str = "") -> float:
        """Seconds until the service has closed; meanwhile something is sent ten times a second."""
        since = time.monotonic()
        closing = asyncio.ensure_future(self.reader.read())
        async with asyncio.timeout(20):
            while not closing.done():
                self.send(send_every_tick)
                await asyncio.wait((closing,), timeout=0.1)
        assert not closing.exception() or isinstance(closing.exception(), ConnectionError)
        return time.monotonic() - since


@asynccontextmanager
async def connect(service: Service) -> AsyncIterator[Connection]:
    host, port = service.runner.addresses[0][:2]
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


POST = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


# --- what is no request ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        (
            f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: {'a' * 9000}\r\n\r\n",
            431,
            "headers_too_large",
        ),
        (
            f"GET /healthz?{'a' * 9000} HTTP/1.1\r\nHost: localhost\r\n\r\n",
            431,
            "headers_too_large",
        ),
        (
            "GET / HTTP/1.1\r\n" + "".join(f"X-{n}: a\r\n" for n in range(200)) + "\r\n",
            431,
            "headers_too_large",
        ),
        ("hello\r\n\r\n", 400, "invalid_request"),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n", 400, "invalid_request"),
        (POST + "Content-Length: x\r\n\r\n", 400, "invalid_request"),
        ("\x16\x03\x01\x02\x00", 400, "invalid_request"),
    ],
)
async def test_invalid_http_is_answered_in_openais_shape(
    service: Service, text: str, status: int, code: str
) -> None:
    """Invalid HTTP gets an error in OpenAI's shape with both ids, and is cut off."""
    async with connect(service) as client:
        client.send(text)
        found, headers, body = await client.answer()
        assert (found, json.loads(body)["error"]["code"]) == (status, code)
        assert headers["content-type"].startswith("application/json")
        assert headers["x-request-id"].startswith("req_")
        assert 16 == len(bytes.fromhex(headers["x-trace-id"]))
        assert await client.closed_after() < 2


@pytest.mark.parametrize(
    ("header", "pause_seconds", "sent", "code"),
    [
        ("Transfer-Encoding: chunked", 0, "zz\r\n", "invalid_request"),
        # aiohttp 3.14 keeps this from who reads the body, so that the deadline ends it.
        ("Transfer-Encoding: chunked", 0.2, "zz\r\n", "request_timeout"),
    ],
)
async def test_a_body_that_contradicts_its_headers_is_the_clients_fault(
    make_service: ServiceMaker, header: str, pause_seconds: float, sent: str, code: str
) -> None:
    """A body that is not what its headers say is the client's fault, not a bug of ours, and
    nobody waits for it for ever."""
    service = await make_service(server=ServerConfig(request_timeout_seconds=1))
    async with connect(service) as client:
        client.send(f"{POST}{header}\r\n\r\n")
        await asyncio.sleep(pause_seconds)
        client.send(sent)
        status, _, body = await client.answer()
    found = json.loads(body)["error"]["code"]
    assert (status, found) == (ERROR_CODES[code], code)


async def test_an_announced_size_over_the_limit_is_refused_unread(
    make_service: ServiceMaker,
) -> None:
    """Who says that the body is too large is believed, and needn't send it."""
    service = await make_service(server=ServerConfig(max_body_bytes=1000))
    async with connect(service) as client:
        client.send(POST + "Content-Length: 1001\r\n\r\n")
        status, _, body = await client.answer()
    assert (413, "body_too_large") == (status, json.loads(body)["error"]["code"])


async def test_a_refused_client_is_never_asked_for_its_body(make_service: ServiceMaker) -> None:
    """A client that waits to be asked for its body is asked once it is let in, and not before."""
    service = await make_service(auth=AuthConfig((api_key("anne", ANNE),)))
    head = POST + "Expect: 100-continue\r\nContent-Length: 1\r\n"
    async with connect(service) as client:
        client.send(head + "\r\n")
        assert 401 == (await client.answer())[0]
    async with connect(service) as client:
        client.send(f"{head}Authorization: Bearer {ANNE}\r\n\r\n")
        async with asyncio.timeout(5):
            asked = await client.reader.readuntil(b"\r\n\r\n")
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == asked
        client.send("{")
        assert 400 == (await client.answer())[0]


# --- what comes too slowly ------------------------------------------------------------------------


async def test_a_slow_body_is_refused(make_service: ServiceMaker) -> None:
    """A body that isn't whole in time is refused with 408, however steadily it comes."""
    service = await make_service(server=ServerConfig(request_timeout_seconds=0.5))
    async with connect(service) as client:
        client.send(POST + "Content-Length: 1000\r\n\r\n")
        answer = asyncio.ensure_future(client.answer())
        since = time.monotonic()
        while not answer.done():
            client.send(" ")
            await asyncio.wait((answer,), timeout=0.05)
        status, _, body = answer.result()
    assert 0.4 < time.monotonic() - since < 2
    assert (408, "request_timeout") == (status, json.loads(body)["error"]["code"])
    assert "0.5 s" in body
    assert [] == service.relays


async def test_the_bodys_deadline_does_not_hold_for_the_answer(make_service: ServiceMaker) -> None:
    """The deadline is the body's alone: an answer may take longer."""
    service = await make_service(server=ServerConfig(request_timeout_seconds=0.3))
    streamed = await service.stream()
    assert streamed.is_done


@pytest.mark.parametrize(
    "start", ["", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["first", "second"]
)
@pytest.mark.parametrize("trickle", ["", "a"], ids=["idle", "slow"])
async def test_a_connection_without_a_whole_request_is_closed(
    make_service: ServiceMaker, start: str, trickle: str
) -> None:
    """A connection that stays idle, or whose headers come byte by byte, is closed in time, the
    first request's or a later one's."""
    service = await make_service(server=ServerConfig(idle_timeout_seconds=0.5))
    async with connect(service) as client:
        if start:
            client.send(start)
            assert 200 == (await client.answer())[0]
        client.send("GET /healthz HTTP/1.1\r\nX-Slow: " if trickle else "")
        assert 0.4 < await client.closed_after(trickle) < 2


async def test_a_stream_is_not_idle(make_service: ServiceMaker) -> None:
    """Waiting for an answer is not idling, however long it takes."""
    service = await make_service(server=ServerConfig(idle_timeout_seconds=0.2))
    streamed = await service.stream()
    assert streamed.is_done


async def test_a_send_timeout_beyond_any_system_is_no_limit(make_service: ServiceMaker) -> None:
    """A deadline of months, which means none, is more than the kernel's own can be."""
    service = await make_service(sse=SseConfig(send_timeout_seconds=1e7))
    assert (await service.stream()).is_done
