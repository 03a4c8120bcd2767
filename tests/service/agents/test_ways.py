"""The way to a backend: its address, redirects, heads of any size, and why there is no way."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from service.settings.checking import ConfigError
from service.settings.config import load_config
from statemachine import UpstreamFinished
from tests.service.agents.conftest import (
    KEY,
    Backend,
    MakeAgent,
    collect,
    folded,
    refusal,
    unused_port,
)
from tests.service.agents.test_models import ids, model_list

# --- redirects --------------------------------------------------------------------------------


def redirecting(backend: Backend, status: int, location: Callable[[web.Request], str]) -> None:
    """Have the backend redirect once, then answer."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if "moved" in request.path:
            if request.method == "GET":
                return web.Response(body=model_list({"id": "x"}))
            return await backend.stream(request)
        return web.Response(status=status, headers={"Location": location(request)})

    backend.answer = answer


def elsewhere(request: web.Request) -> str:
    return f"http://localhost:{request.url.port}/v1/moved?secret=1"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("location", ["/v1/moved", "moved?a=b", "{origin}/v1/moved#x"])
async def test_a_redirect_within_the_backends_origin_is_followed_as_a_post(
    backend: Backend, make_agent: MakeAgent, status: int, location: str
) -> None:
    """The body and the key go along, and so they do for the list of models."""
    redirecting(backend, status, lambda at: location.format(origin=at.url.origin()))
    agent = make_agent()
    assert UpstreamFinished() == folded(await collect(agent))[1]
    first, second = backend.requests
    assert ["POST", "POST"] == [first.method, second.method]
    assert backend.bodies[0] == backend.bodies[1] != b""
    assert f"Bearer {KEY}" == second.headers["Authorization"]
    assert ["x"] == ids(await agent.models())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        elsewhere,
        lambda at: f"https://{at.url.authority}/v1/moved",
        lambda at: f"//localhost:{at.url.port}/v1/moved",
        lambda at: "http://127.0.0.1:1/v1/moved",
        lambda at: f"http://user:pw@{at.url.authority}/v1/moved",
        lambda at: "ftp://127.0.0.1/moved",
        lambda at: "http://[half/moved",
        lambda at: "mailto:a@b",
    ],
)
async def test_a_redirect_elsewhere_is_a_failure(
    backend: Backend,
    make_agent: MakeAgent,
    log_lines: Any,
    status: int,
    location: Callable[[web.Request], str],
) -> None:
    """The chat goes nowhere, the log has the place without its query, and the client doesn't."""
    redirecting(backend, status, location)
    agent = make_agent()
    error = await refusal(agent)
    message = f"The model's backend redirects elsewhere ({status})."
    assert ("upstream_redirected", message) == (error.failure.code, error.failure.message)
    assert (False, False) == (error.is_retryable, error.is_final)
    assert error.cause is not None
    assert error.cause.startswith("redirect not followed")
    assert "secret" not in error.cause
    assert "pw" not in error.cause
    assert [] == await agent.models()
    (line,) = log_lines
    assert line["reason"] == error.cause
    assert ["POST", "GET"] == [request.method for request in backend.requests]


async def test_a_303_doesnt_turn_the_question_into_a_get(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """Within the same origin either; the list of models is a GET and goes there."""
    redirecting(backend, 303, lambda _: "/v1/moved")
    agent = make_agent()
    assert "upstream_redirected" == (await refusal(agent)).failure.code
    assert ["x"] == ids(await agent.models())


@pytest.mark.parametrize("location", ["", None, "/v1/chat/completions"])
async def test_redirects_without_an_end_or_a_place_are_a_failure(
    backend: Backend, make_agent: MakeAgent, location: str | None
) -> None:
    """They are followed five times."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={} if location is None else {"Location": location})

    backend.answer = answer
    assert "upstream_redirected" == (await refusal(make_agent())).failure.code
    assert len(backend.requests) == (1 if location is None else 6)


# --- heads ------------------------------------------------------------------------------------


@asynccontextmanager
async def answering(data: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """A backend that answers with these bytes, whatever it is asked, and counts."""
    asked: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(1)
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(data)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", asked
    server.close()


BODY = b"\r\ndata: [DONE]\n\n"


@pytest.mark.parametrize(
    "head",
    [
        b"X-Large: " + b"x" * 30_000 + b"\r\n",
        b"".join(b"X-%d: x\r\n" % number for number in range(300)),
        b"".join(b"Set-Cookie: c%d=%b\r\n" % (number, b"x" * 4000) for number in range(30)),
    ],
)
async def test_a_large_head_is_read(make_agent: MakeAgent, head: bytes) -> None:
    """Proxies and policies make heads of tens of kilobytes."""
    async with answering(b"HTTP/1.1 200 OK\r\n" + head + BODY) as (url, _):
        assert UpstreamFinished() == folded(await collect(make_agent(base_url=url)))[1]


@pytest.mark.parametrize(
    "head",
    [
        b"X-Large: " + b"x" * 70_000 + b"\r\n",
        b"".join(b"X-%d: x\r\n" % number for number in range(2000)),
    ],
)
async def test_a_head_that_is_too_large_is_said_to_be(make_agent: MakeAgent, head: bytes) -> None:
    """Asked again, the backend would send it again."""
    async with answering(b"HTTP/1.1 200 OK\r\n" + head + BODY) as (url, _):
        error = await refusal(make_agent(base_url=url))
    message = "The model's backend answered with a head that is too large."
    assert ("upstream_malformed", message) == (error.failure.code, error.failure.message)
    assert (False, False) == (error.is_retryable, error.failure.should_retry)
    assert error.cause is not None
    assert error.cause.startswith("bad response head (ClientResponseError: ")
    assert "xxx" not in error.cause


# --- why there is no way ----------------------------------------------------------------------


async def test_the_cause_names_what_the_client_isnt_told(make_agent: MakeAgent) -> None:
    """A refused connection: the log has address and class, the client a plain sentence."""
    port = unused_port()
    error = await refusal(make_agent(base_url=f"http://127.0.0.1:{port}/v1"))
    assert error.cause is not None
    assert error.cause.startswith("connection refused (ClientConnectorError: ")
    assert str(port) in error.cause
    assert "The model's backend could not be reached." == error.failure.message


async def test_an_unknown_host_is_one_in_the_log(make_agent: MakeAgent) -> None:
    """`.invalid` is promised never to be a host."""
    error = await refusal(make_agent(base_url="http://no-such-host.invalid/v1"))
    assert error.cause is not None
    assert error.cause.startswith("unknown host (ClientConnectorDNSError: ")
    assert "invalid" not in error.failure.message


async def test_a_proxys_refusal_is_one_in_the_log(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the proxy's password nor its address goes to the client."""
    async with answering(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n") as (url, _):
        place = url.removeprefix("http://").removesuffix("/v1")
        monkeypatch.setenv("https_proxy", f"http://user:proxy-word@{place}")
        error = await refusal(make_agent(base_url="https://no-such-host.invalid/v1"))
    assert error.cause is not None
    assert error.cause.startswith("refused by the proxy (ClientHttpProxyError: ")
    assert "proxy-word" not in error.cause + error.failure.message


async def test_a_proxy_that_isnt_there_is_one_in_the_log(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It isn't the backend that is away."""
    monkeypatch.setenv("http_proxy", f"http://user:proxy-word@127.0.0.1:{unused_port()}")
    error = await refusal(make_agent(base_url="http://no-such-host.invalid/v1"))
    assert error.cause is not None
    assert "proxy not reached" in error.cause or "connection refused" in error.cause
    assert "ClientProxyConnectionError" in error.cause
    assert "proxy-word" not in error.cause + error.failure.message


async def test_a_server_without_tls_is_no_trusted_one(make_agent: MakeAgent) -> None:
    """Plain HTTP where TLS should be."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    error = await refusal(make_agent(base_url=f"https://127.0.0.1:{port}/v1"))
    server.close()
    assert error.cause is not None
    assert error.cause.startswith("no trusted TLS connection (ClientConnectorSSLError: ")
    assert "upstream_unreachable" == error.failure.code


async def test_a_wrong_certificate_is_asked_about_once(
    make_agent: MakeAgent, tls_server: str
) -> None:
    """No later attempt finds another one."""
    error = await refusal(make_agent(base_url=tls_server))
    assert error.cause is not None
    assert error.cause.startswith("no trusted TLS connection (ClientConnectorCertificateError: ")
    assert ("upstream_unreachable", False) == (error.failure.code, error.is_retryable)


# --- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["", "/", "//", "?api-version=2024-10-21", "/?a=b&c=%20%2F"])
async def test_a_base_urls_query_goes_behind_every_path(
    backend: Backend, make_agent: MakeAgent, tail: str
) -> None:
    """Azure wants its version there; slashes at the end are none of the path."""
    path, _, query = tail.partition("?")
    agent = make_agent(
        base_url=f"{backend.url}/deployments/x{path}" + (f"?{query}" if query else "")
    )
    await collect(agent)
    backend.answers(200, model_list({"id": "x"}))
    assert ["x"] == ids(await agent.models())
    asked = [(request.path, request.rel_url.raw_query_string) for request in backend.requests]
    assert [
        ("/v1/deployments/x/chat/completions", query),
        ("/v1/deployments/x/models", query),
    ] == asked


async def test_a_password_in_the_base_url_is_sent_instead_of_a_key(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """Some backends stand behind a proxy that asks for one; it is masked like a key."""
    url = backend.url.replace("//", "//user:pass-word@")
    agent = make_agent(key=None, base_url=url)
    await collect(agent)
    assert "Basic dXNlcjpwYXNzLXdvcmQ=" == backend.requests[0].headers["Authorization"]
    backend.answers(401, b"Not pass-word, dXNlcjpwYXNzLXdvcmQ=!")
    assert "Not ***, ***!" == (await refusal(agent)).failure.message


@pytest.mark.parametrize("url", ["http://host/v1#models", "http://host/v1?a=b#c"])
def test_a_fragment_in_a_base_url_is_refused(url: str) -> None:
    """It is sent nowhere, so somebody meant something else."""
    with pytest.raises(ConfigError, match="without a fragment"):
        load_config(None, {"OPENAI_BASE_URL": url})


@pytest.fixture
async def tls_server(tmp_path: Any) -> AsyncIterator[str]:
    """A server with a certificate that nobody trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    process = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *(
            "-subj",
            "/CN=127.0.0.1",
            "-keyout",
            f"{tmp_path}/key",
            "-out",
            f"{tmp_path}/certificate",
        ),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert 0 == await process.wait()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(f"{tmp_path}/certificate", f"{tmp_path}/key")

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    server.close()
