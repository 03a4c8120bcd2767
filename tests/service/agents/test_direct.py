"""Requests go below aiohttp's session, and say and mean what a session's would."""

import asyncio
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from service.agents.openai import connection
from service.agents.openai.agent import OpenAIAgent
from service.agents.openai.response import Response
from service.agents.protocol import AgentCall, AgentError
from statemachine import Failure
from tests.service.agents.conftest import EVENT, Backend, MakeAgent, call, collect
from tests.service.agents.test_connection import HEAD, chunked, raw_server

DONE = b"data: [DONE]\n\n"


@pytest.fixture(params=["direct", "session"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways: an aiohttp that this wasn't tested with is used by its session."""
    if request.param == "session":
        monkeypatch.setattr(connection, "is_tested", lambda: False)
    return str(request.param)


async def response_of(agent: OpenAIAgent) -> Response:
    response, _ = await agent.ask(call())
    return response


async def refused(agent: OpenAIAgent, asked: AgentCall) -> Failure:
    with pytest.raises(AgentError) as caught:
        await collect(agent, asked)
    return caught.value.failure


async def test_the_way_is_the_one_that_was_meant(make_agent: MakeAgent, way: str) -> None:
    """An aiohttp whose insides were tested is used directly, any other is not."""
    response = await response_of(make_agent())
    assert {"direct": "Posted", "session": "ClientResponse"}[way] == type(response).__name__
    response.close()


async def test_a_request_says_the_same_on_either_way(
    backend: Backend, make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every header and the body."""
    await collect(make_agent())
    monkeypatch.setattr(connection, "is_tested", lambda: False)
    await collect(make_agent())
    direct, by_session = (sorted(request.headers.items()) for request in backend.requests)
    assert by_session == direct
    assert backend.bodies[1] == backend.bodies[0]


async def test_a_connection_serves_one_request_after_the_other(
    backend: Backend, make_agent: MakeAgent, way: str
) -> None:
    """It goes back to the others at its answer's end."""
    agent = make_agent()
    for _ in range(3):
        await collect(agent)
    assert 1 == len({request.protocol for request in backend.requests})


async def test_words_before_the_head_are_passed_over(make_agent: MakeAgent, way: str) -> None:
    """An informational response is none."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + HEAD)
        writer.write(chunked(EVENT + DONE) + b"0\r\n\r\n")
        await writer.drain()

    async with raw_server(serve) as url:
        reads = await collect(make_agent(base_url=url))
    assert reads


async def test_a_connection_with_half_a_request_in_it_is_closed(make_agent: MakeAgent) -> None:
    """A backend that answers before it has read all gets no second request behind the rest."""
    connections: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"error": {"message": "Too large."}}'
        writer.write(b"HTTP/1.1 413 X\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        agent = make_agent(base_url=url)
        for count in (1, 2):
            failure = await refused(agent, call(user="x" * 20_000_000))
            assert (413, count) == (failure.status, len(connections))
        for writer in connections:
            writer.transport.abort()
        await asyncio.sleep(0)


async def test_a_cancelled_request_leaves_no_connection(
    backend: Backend, make_agent: MakeAgent, way: str
) -> None:
    """Not while it waits for a head, either."""
    asked = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.sleep(30)
        raise AssertionError

    backend.answer = wait
    agent = make_agent()
    asking = asyncio.create_task(response_of(agent))
    await asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    session = agent._connection._session
    assert session is not None
    assert session.connector is not None
    assert not session.connector._acquired


def test_the_sdk_is_not_imported_before_it_is_needed() -> None:
    """It takes longer than all else that is imported."""
    program = (
        "import sys, service.app; sys.exit('openai' in sys.modules or 'httpx2' in sys.modules)"
    )
    assert 0 == subprocess.run([sys.executable, "-c", program], check=False).returncode


async def test_what_a_first_request_would_wait_for_is_done_beforehand(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """And asks the backend nothing."""
    agent = make_agent()
    await agent.prepare()
    assert not backend.requests
    assert agent._connection._ways
    await collect(agent)


async def test_a_closed_agent_opens_nothing_any_more(make_agent: MakeAgent) -> None:
    """Also if it was about to."""
    agent = make_agent()
    preparing = asyncio.create_task(agent.prepare())
    await asyncio.sleep(0)
    await agent.close()
    await asyncio.wait((preparing,))
    assert agent._connection._session is None or agent._connection._session.closed


@pytest.fixture
async def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Backend]:
    """A backend behind TLS, whose certificate this process trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    command += ["-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    backend = Backend()
    app = web.Application(client_max_size=1 << 25)
    app.router.add_post("/v1/chat/completions", backend.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    backend.url = f"https://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield backend
    await runner.cleanup()


async def test_tls_is_spoken_as_before(trusted: Backend, make_agent: MakeAgent, way: str) -> None:
    """Large requests too, one after the other on one connection."""
    agent = make_agent(base_url=trusted.url)
    for size in (1, 900_000, 1):
        assert await collect(agent, call(user="x" * size))
        assert size < len(trusted.bodies[-1])
    assert 1 == len({request.protocol for request in trusted.requests})


@pytest.mark.parametrize("retries", [1, 0])
async def test_a_connection_that_went_stale_is_not_a_backend_that_is_down(
    make_agent: MakeAgent, retries: int
) -> None:
    """Who closes idle connections may do so as a request is on its way. It goes on another one, however
    many are found so; unless nothing may be sent twice."""
    connections = 0
    go_on = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0]))
        await go_on.wait()
        writer.write(HEAD + chunked(EVENT + DONE) + b"0\r\n\r\n")
        await reader.read(1)  # the next request
        writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        agent = make_agent(base_url=url, retries=retries)
        first = [asyncio.create_task(collect(agent)) for _ in range(5)]
        while connections < 5:
            await asyncio.sleep(0.001)
        go_on.set()
        await asyncio.gather(*first)
        if retries:
            assert await collect(agent)
            assert 6 == connections
        else:
            failure = await refused(agent, call())
            assert ("upstream_unreachable", 5) == (failure.code, connections)
        await agent.close()
        await asyncio.sleep(0.01)
