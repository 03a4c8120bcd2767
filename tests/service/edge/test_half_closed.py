"""Clients that send nothing more: those that still read are served, those that have gone are noticed."""

import asyncio
import json
import socket
import sys
import time
from typing import Any

import pytest

from service.edge.half_closed import PROBE_AFTER_SECONDS
from service.settings.config import ScriptedAgentConfig
from statemachine import State
from tests.service.conftest import QUESTION, Service, ServiceMaker, agent_for
from tests.service.edge.test_connections import connect
from tests.service.stage.backend import Backend, Exchange
from tests.service.stream.test_client_gone import silent_until_closed, talk_until_closed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel must tell")

LINE = "Host: localhost\r\n"


def asked(version: str = "1.1", **fields: Any) -> str:
    body = json.dumps({"model": "m", "messages": QUESTION, **fields})
    return f"POST /v1/chat/completions HTTP/{version}\r\n{LINE}Content-Length: {len(body)}\r\n\r\n{body}"


async def half_closed(service: Service, request: str, pause_seconds: float = 0.0) -> bytes:
    """Everything that comes back on a connection whose sending end is closed after the request."""
    async with connect(service) as client:
        client.send(request)
        await client.writer.drain()
        await asyncio.sleep(pause_seconds)
        client.writer.write_eof()
        async with asyncio.timeout(5):
            return await client.reader.read()


def slow(seconds: float) -> ScriptedAgentConfig:
    return ScriptedAgentConfig(
        name="m",
        kind="scripted",
        reply="a b",
        tokens_per_second=1e4,
        first_token_delay_seconds=seconds,
    )


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("pause_seconds", [0.0, 0.2])
@pytest.mark.parametrize("delay_seconds", [0.0, 0.4])
async def test_a_client_that_half_closes_is_served(
    make_service: ServiceMaker, stream: bool, pause_seconds: float, delay_seconds: float
) -> None:
    """The whole answer comes, streamed or plain, whether the end of sending comes with the request
    or later; then the connection ends."""
    service = await make_service(slow(delay_seconds))
    body = await half_closed(service, asked(stream=stream), pause_seconds)
    assert 1 == body.count(b"HTTP/1.1 200 OK\r\n")
    assert body.count(b"HTTP/1.1 100 Continue\r\n\r\n") <= 1
    assert stream == (b"data: [DONE]\n\n" in body)
    assert State.COMPLETED == (await service.kept.one()).state


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_at_once_needs_no_probe(
    make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """What is there within milliseconds comes as if nobody had closed anything."""
    monkeypatch.setattr("service.edge.connections.PROBE_AFTER_SECONDS", 2.0)  # for busy machines
    service = await make_service(slow(0.0))
    body = await half_closed(service, asked(stream=stream))
    assert body.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"keep-alive\n" not in body


async def test_a_stream_that_has_begun_is_probed_by_a_ping(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """The comment stands between two events, and clients read on as if it weren't there."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hel")
        await asyncio.sleep(0.3)
        await exchange.words("lo")
        await exchange.finish()

    backend.script = script
    service = await make_service(agent_for(backend))
    async with connect(service) as client:
        client.send(asked(stream=True))
        async with asyncio.timeout(5):
            head = await client.reader.readuntil(b"Hel")
            client.writer.write_eof()
            rest = await client.reader.read()
    assert b"100 Continue" not in head + rest
    assert 1 == rest.count(b"\r\nd\r\n: keep-alive\n\r\n")
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("path", ["/v1/chat/completions?limit=1", "/v1/models", "/v1/models/m"])
async def test_calls_for_what_is_stored_are_served_too(
    make_service: ServiceMaker, path: str
) -> None:
    """Every call goes on, not completions alone."""
    service = await make_service(slow(0.0))
    body = await half_closed(service, f"GET {path} HTTP/1.1\r\n{LINE}\r\n")
    assert body.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close\r\n" in body


async def test_everything_that_was_pipelined_is_answered(make_service: ServiceMaker) -> None:
    """The end of sending comes behind the last request."""
    service = await make_service(slow(0.1))
    models = f"GET /v1/models HTTP/1.1\r\n{LINE}\r\n"
    body = await half_closed(service, models + asked() + models + asked(stream=True))
    assert 4 == body.count(b"HTTP/1.1 200 OK\r\n")
    assert body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("pause_seconds", [0.0, 0.2])
@pytest.mark.parametrize("request_text", ["", "GET / HT", asked()[:-5]])
async def test_half_a_request_is_none(
    service: Service, request_text: str, pause_seconds: float
) -> None:
    """Who closes before the request is whole has left, and no completion began."""
    since = time.monotonic()
    assert b"" == await half_closed(service, request_text, pause_seconds)
    assert time.monotonic() - since < pause_seconds + 1
    assert ([], []) == (service.relays, service.kept.records)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("script", [silent_until_closed, talk_until_closed])
async def test_a_client_that_has_gone_is_noticed_at_once(
    backend: Backend, make_service: ServiceMaker, stream: bool, version: str, script: Any
) -> None:
    """A close is a FIN as well, and it stops the model within a fraction of a second, in silence and
    in mid-answer."""
    backend.script = script
    service = await make_service(agent_for(backend))
    host, port = service.runner.addresses[0][:2]
    sock = socket.create_connection((host, port))
    sock.sendall(asked(version, stream=stream).encode())
    await asyncio.sleep(0.3)
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):  # nothing may be left unread, or close sends a reset
        while sock.recv(65536):
            pass
    sock.close()
    since = time.monotonic()
    assert State.CLIENT_GONE == (await service.kept.one()).state
    async with asyncio.timeout(1):
        await backend.exchanges[0].client_closed.wait()
    assert time.monotonic() - since < PROBE_AFTER_SECONDS + 0.5


async def test_a_half_closed_client_that_goes_later_is_noticed_by_its_stream(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """The next words find out."""
    backend.script = talk_until_closed
    service = await make_service(agent_for(backend))
    async with connect(service) as client:
        client.send(asked(stream=True))
        client.writer.write_eof()
        await client.reader.readuntil(b"word")
        await asyncio.sleep(0.2)
        assert service.relays
    assert State.CLIENT_GONE == (await service.kept.one()).state


async def test_http_1_0_can_not_be_asked_before_the_response(make_service: ServiceMaker) -> None:
    """There are no interim responses in that version, so that its FIN means leaving; once the
    response has begun, it is served like any other."""
    service = await make_service(slow(0.4))
    assert b"" == await half_closed(service, asked("1.0"))
    assert b"" == await half_closed(service, asked("1.0", stream=True))
    body = await half_closed(service, asked("1.0", stream=True), pause_seconds=0.42)
    assert body.endswith(b"data: [DONE]\n\n")
