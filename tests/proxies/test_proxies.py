"""What clients behind each proxy see: events at once, long silences, leaving, a service that dies.

Each test is for one proxy, and is left out where that isn't installed. `make proxies` runs them, not
`make test`: they take minutes, and programs that few machines have.
"""

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.proxies.running import Proxy, path_of, running
from tests.service.stage.backend import Backend, Exchange
from tests.service.stage.process import Process

pytestmark = [pytest.mark.proxies, pytest.mark.timeout(300)]

SILENCE_SECONDS = float(os.environ.get("PROXIES_SILENCE", "20"))
"""Longer than the shortest limit of any proxy for a whole answer; `make proxies` says how to wait
for their limits of silence too."""
QUESTION = [{"role": "user", "content": "Hello?"}]


class Front:
    """A proxy with the service behind it, and the backend behind that."""

    def __init__(self, proxy: Proxy, port: int, service: Process, backend: Backend) -> None:
        self.proxy = proxy
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self.service = service
        self.backend = backend
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=200))

    def ask(self, **headers: str) -> Any:
        body = {"model": "m", "stream": True, "messages": QUESTION}
        return self.http.post(self.url, json=body, headers=headers)


@pytest.fixture
def service(backend: Backend, tmp_path: Path) -> Iterator[Process]:
    """The service, without a database: what is kept is tried elsewhere."""
    place = tmp_path / "service"
    place.mkdir()
    process = Process(
        place,
        {
            "database": {
                "url": "postgresql://nobody@127.0.0.1:1/none",
                "commit_timeout_seconds": 0.1,
            },
            "journal": {"directory": None},
            "agents": [
                {
                    "name": "m",
                    "kind": "openai",
                    "base_url": backend.base_url,
                    "api_key_env": None,
                    "retries": 0,
                    "timeouts": {"idle_seconds": 300, "first_token_seconds": 300},
                }
            ],
        },
    )
    yield process
    process.end()


@pytest.fixture
async def front(
    proxy: Proxy, service: Process, backend: Backend, place: Path
) -> AsyncIterator[Front]:
    program = path_of(proxy)
    assert program is not None
    port = await asyncio.to_thread(lambda: service.port)
    context = running(proxy, program, port, place)
    one = Front(proxy, await asyncio.to_thread(context.__enter__), service, backend)
    yield one
    await one.http.close()
    await asyncio.to_thread(context.__exit__, None, None, None)


async def test_events_arrive_one_by_one_as_they_are_sent(front: Front) -> None:
    """Within a tenth of a second, to a client that speaks HTTP/1.1."""
    sent: list[float] = []

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        for word in "abcdef":
            sent.append(time.monotonic())
            await exchange.words(f"{word}!")
            await asyncio.sleep(0.4)
        await exchange.finish()

    front.backend.script = script
    seen: list[float] = []
    async with front.ask() as response:
        assert 200 == response.status
        async for line in response.content:
            if b'!"' in line:
                seen.append(time.monotonic())
    late = [there - here for here, there in zip(sent, seen, strict=True)]
    assert max(late) < 0.15, late


async def test_a_long_silence_with_keep_alives_is_survived(front: Front) -> None:
    """And so is an answer that takes long in all."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hel")
        await asyncio.sleep(SILENCE_SECONDS)
        await exchange.words("lo")
        await exchange.finish()

    front.backend.script = script
    async with front.ask() as response:
        body = await response.read()
    assert b"lo" in body
    assert body.endswith(b"data: [DONE]\n\n")
    assert SILENCE_SECONDS < 15 or b": keep-alive" in body


async def test_a_client_that_leaves_a_silent_stream_is_noticed(front: Front) -> None:
    """At once, or some pings later: the proxy tells when it writes to who has left."""
    silent = asyncio.Event()
    closed_at: list[float] = []

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hel")
        silent.set()
        await exchange.client_closed.wait()
        closed_at.append(time.monotonic())

    front.backend.script = script
    host, port = front.url.split("/")[2].split(":")
    body = json.dumps({"model": "m", "stream": True, "messages": QUESTION})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/json\r\nX-Keep-Alive-Interval: 1\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as client:
        client.sendall((head + body).encode())
        client.setblocking(False)
        async with asyncio.timeout(10):
            await silent.wait()
            while b"Hel" not in await asyncio.get_running_loop().sock_recv(client, 65536):
                pass  # one that leaves with something unread resets, which more proxies see
    left_at = time.monotonic()
    within = front.proxy.notices_leaving_within_seconds
    for _ in range(int(within / 0.05)):
        if closed_at:
            break
        await asyncio.sleep(0.05)
    assert closed_at
    print(f"{front.proxy.name}: {closed_at[0] - left_at:.2f} s")


async def test_a_service_that_dies_is_no_clean_end(front: Front) -> None:
    """In the middle of an answer, of which the client keeps what came."""
    silent = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hel")
        silent.set()
        await exchange.client_closed.wait()

    front.backend.script = script
    seen = b""
    is_cut = False
    async with front.ask() as response:
        try:
            async for line in response.content:
                seen += line
                if silent.is_set() and front.service.popen.poll() is None and b"Hel" in seen:
                    front.service.popen.kill()
        except aiohttp.ClientError:
            is_cut = True
    assert b"Hel" in seen
    assert is_cut


async def test_a_request_is_sent_on_once(proxy: Proxy, place: Path) -> None:
    """Also where the service closes the connection without an answer: an answer costs money."""
    asked = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += (await reader.read(100)).startswith(b"POST")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    program = path_of(proxy)
    assert program is not None
    port = server.sockets[0].getsockname()[1]

    async def ask(door: int) -> int:
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"http://127.0.0.1:{door}/v1/chat/completions", json={"a": 1}) as response,
        ):
            return response.status

    context = running(proxy, program, port, place)
    door = await asyncio.to_thread(context.__enter__)
    try:
        status = await ask(door)
    except aiohttp.ClientError:
        status = 0
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)
        server.close()
        await server.wait_closed()
    assert status == 0 or status >= 500
    assert 1 == asked
