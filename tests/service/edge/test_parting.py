"""Requests that are answered before they are wholly read: closed at once, and read all the same."""

import asyncio
import json
import time

import pytest

from service.edge import parting
from service.settings.access import AuthConfig
from service.settings.config import ServerConfig
from tests.service.callers.test_auth import ANNE, api_key
from tests.service.conftest import Service, ServiceMaker
from tests.service.edge.test_connections import POST, connect

MEGABYTE = 1024 * 1024
CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"
LONG = f"Content-Length: {9 * MEGABYTE}\r\n\r\n"
LINE = "HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (POST + LONG, 413),
        (POST + "Content-Encoding: gzip\r\n" + LONG, 415),
        (f"POST /nowhere {LINE}{LONG}", 404),
        (f"POST /v1/models {LINE}{LONG}", 405),
        (f"GET /v1/models {LINE}{LONG}", 200),
        (f"GET /v1/models {LINE}Origin: http://x\r\n{LONG}", 403),
        ("hello\r\n\r\n", 400),
        (f"GET /healthz {LINE}X-A: {'a' * 9000}\r\n\r\n", 431),
    ],
)
async def test_a_client_that_sends_all_before_it_reads_gets_its_answer(
    make_service: ServiceMaker, head: str, status: int
) -> None:
    """Nine megabytes on the way don't cost a client its answer, which says that the connection ends,
    and the end comes as soon as the client has closed too."""
    service = await make_service(server=ServerConfig(max_body_bytes=MEGABYTE))
    async with connect(service) as client:
        client.send(head)
        for _ in range(9 * 16):
            client.writer.write(b"x" * 65536)
            await client.writer.drain()
        found, headers, _ = await client.answer()
        assert (status, "close") == (found, headers.get("connection", "close"))
        assert b"" == await client.reader.read()
        client.writer.transport.abort()
        await gone(service)


async def gone(service: Service) -> None:
    """Wait until the service has no connection left."""
    assert service.runner.server is not None
    async with asyncio.timeout(1):
        while service.runner.server.connections:
            await asyncio.sleep(0.01)


async def test_a_refused_key_is_heard_in_mid_body(make_service: ServiceMaker) -> None:
    """Who has no key learns it while its body is still on the way."""
    service = await make_service(auth=AuthConfig((api_key("anne", ANNE),)))
    async with connect(service) as client:
        client.send(POST + LONG)
        client.writer.write(b"x" * MEGABYTE)
        assert 401 == (await client.answer())[0]
        assert b"" == await client.reader.read()


async def test_a_body_without_end_is_cut_off(make_service: ServiceMaker) -> None:
    """What comes after the answer is thrown away for a while and then cut off, however fast."""
    service = await make_service(server=ServerConfig(max_body_bytes=MEGABYTE))
    async with connect(service) as client:
        client.send(POST + "Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(10):
                while True:
                    client.writer.write(CHUNK)
                    await client.writer.drain()
                    sent += len(CHUNK)
    assert sent < 64 * MEGABYTE  # the limit, and what sockets hold


async def test_a_client_that_trickles_on_is_cut_off(make_service: ServiceMaker) -> None:
    """The same, however slowly."""
    service = await make_service(server=ServerConfig(max_body_bytes=MEGABYTE))
    async with connect(service) as client:
        client.send(POST + f"Content-Length: {2 * MEGABYTE}\r\n\r\n")
        assert 413 == (await client.answer())[0]
        since = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - since < 10:
                client.send("x")
                await client.writer.drain()
                await asyncio.sleep(0.05)
        assert time.monotonic() - since < parting._LONGEST_SECONDS + 1


async def test_nothing_behind_a_torn_request_is_answered(make_service: ServiceMaker) -> None:
    """What was pipelined behind a request that wasn't wholly read may be its body."""
    service = await make_service()
    async with connect(service) as client:
        client.send(f"GET /v1/models {LINE}Content-Length: 200\r\n\r\n")
        await client.answer()
        client.send(f"GET /healthz {LINE}\r\n")
        assert b"" == await client.reader.read()


async def test_a_refused_request_that_came_whole_costs_no_connection(
    make_service: ServiceMaker,
) -> None:
    """What is pipelined behind a whole request is answered, whatever became of that."""
    service = await make_service()
    async with connect(service) as client:
        client.send(f"POST /nowhere {LINE}Content-Length: 3\r\n\r\nabcGET /healthz {LINE}\r\n")
        assert 404 == (await client.answer())[0]
        assert 200 == (await client.answer())[0]


async def test_an_upgrade_is_declined(make_service: ServiceMaker) -> None:
    """Who asks for a WebSocket gets the answer of plain HTTP, and is read on."""
    service = await make_service()
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    async with connect(service) as client:
        client.send(f"GET /healthz {LINE}{upgrade}Sec-WebSocket-Key: AAAA\r\n\r\n")
        status, _, body = await client.answer()
        assert (200, {"status": "ok"}) == (status, json.loads(body))
        client.send(f"GET /healthz {LINE}\r\n")
        assert 200 == (await client.answer())[0]
