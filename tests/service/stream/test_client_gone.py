"""Clients that leave, in every phase and both policies; clients that don't read."""

import asyncio
import json
import socket
import struct
from typing import Any

import pytest

from service.settings.config import ScriptedAgentConfig, SseConfig
from statemachine import ClientGone, State
from tests.service.conftest import QUESTION, Service, ServiceMaker, agent_for
from tests.service.stage.backend import Backend, Exchange, chunk, event_bytes


class RawClient:
    """A client on a bare socket, which can leave as rudely as it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def ask(
        cls, service: Service, *, receive_buffer: int | None = None, **fields: Any
    ) -> "RawClient":
        host, port = service.runner.addresses[0][:2]
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**16)
        body = json.dumps({"model": "m", "stream": True, "messages": QUESTION, **fields}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return cls(reader, writer)

    async def read_until(self, mark: bytes) -> bytes:
        seen = b""
        async with asyncio.timeout(5):
            while mark not in seen:
                data = await self.reader.read(4096)
                assert data, seen
                seen += data
        return seen

    def leave(self, *, rudely: bool = False) -> None:
        """Close the connection with a FIN, or with a RST."""
        if rudely:
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def talk_until_closed(exchange: Exchange) -> None:
    """Words for as long as anybody listens."""
    await exchange.start()
    while not exchange.client_closed.is_set():
        await exchange.words("word ")
        await asyncio.sleep(0.01)


async def silent_until_closed(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.client_closed.wait()


@pytest.mark.parametrize("rudely", [False, True])
async def test_leaving_mid_stream_closes_the_upstream_and_keeps_the_text(
    service: Service, backend: Backend, rudely: bool
) -> None:
    """The upstream is closed within a second, and what was received is kept as partial."""
    backend.script = talk_until_closed
    client = await RawClient.ask(service)
    seen = await client.read_until(b"word ")
    client.leave(rudely=rudely)
    record = await service.kept.one()
    async with asyncio.timeout(1):
        await backend.exchanges[0].client_closed.wait()
    assert (State.CLIENT_GONE, None) == (record.state, record.finish_reason)
    assert record.failure is not None
    assert "client_left" == record.failure.code
    assert record.client_left_at is not None
    content = record.choices[0].message["content"]
    assert content.startswith("word " * seen.count(b"word "))
    (message,) = await service.store.answer(record.completion_id)
    assert "partial" == message.state


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_before_the_first_token_stops_the_upstream_too(
    service: Service, backend: Backend, stream: bool
) -> None:
    """This holds streaming or not, and the completion is kept without a message."""
    backend.script = silent_until_closed
    client = await RawClient.ask(service, stream=stream)
    while not backend.exchanges:
        await asyncio.sleep(0.01)
    client.leave()
    record = await service.kept.one()
    async with asyncio.timeout(1):
        await backend.exchanges[0].client_closed.wait()
    assert (State.CLIENT_GONE, ()) == (record.state, record.choices)


async def test_leaving_before_the_upstream_answers_stops_it_too(
    service: Service, backend: Backend
) -> None:
    """The connection is closed while its response is still awaited."""

    async def script(exchange: Exchange) -> None:
        await exchange.client_closed.wait()

    backend.script = script
    client = await RawClient.ask(service)
    while not backend.exchanges:
        await asyncio.sleep(0.01)
    client.leave()
    assert (await service.kept.one()).state is State.CLIENT_GONE
    async with asyncio.timeout(1):
        await backend.exchanges[0].client_closed.wait()


async def test_under_finish_the_upstream_may_end(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """The whole answer is kept, and so is the moment when the client left."""
    left = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hel")
        await left.wait()
        await asyncio.sleep(0.05)
        await exchange.words("lo")
        await exchange.finish()

    backend.script = script
    service = await make_service(agent_for(backend), client_gone=ClientGone.FINISH)
    client = await RawClient.ask(service)
    await client.read_until(b"Hel")
    client.leave()
    left.set()
    record = await service.kept.one()
    assert (State.COMPLETED, "stop") == (record.state, record.finish_reason)
    assert "Hello" == record.choices[0].message["content"]
    assert record.client_left_at is not None
    assert record.client_left_at < record.finished_at


async def test_an_agent_may_have_its_own_policy(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """`client_gone` of an agent wins over the service's."""
    agent = ScriptedAgentConfig(
        name="demo",
        kind="scripted",
        reply="a b c d e f g h",
        tokens_per_second=40,
        client_gone=ClientGone.FINISH,
    )
    service = await make_service(agent)
    client = await RawClient.ask(service, model="demo")
    await client.read_until(b'" b"')
    client.leave()
    assert "a b c d e f g h" == (await service.kept.one()).choices[0].message["content"]


async def test_leaving_once_the_answer_is_whole_changes_nothing_about_it(
    service: Service, backend: Backend
) -> None:
    """The finish reason has come and `[DONE]` hasn't."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hello")
        await exchange.event(chunk({}, "stop"))
        await asyncio.sleep(0.1)
        await exchange.done()

    backend.script = script
    client = await RawClient.ask(service)
    await client.read_until(b'"stop"')
    client.leave()
    record = await service.kept.one()
    assert "stop" == record.finish_reason
    assert record.whole


async def flood(exchange: Exchange) -> None:
    """As much text as anybody takes."""
    await exchange.start()
    data = event_bytes(chunk({"content": "x" * 1000})) * 10
    sent = 0
    while not exchange.client_closed.is_set() and sent < 200_000_000:
        await exchange.send(data)
        sent += len(data)


async def test_a_client_that_takes_nothing_has_left(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """Until `send_timeout_seconds` are over its back-pressure holds the upstream, and what was
    received is kept."""
    backend.script = flood
    service = await make_service(
        agent_for(backend),
        sse=SseConfig(keep_alive_interval_seconds=15.0, send_timeout_seconds=1.0),
    )
    client = await RawClient.ask(service, receive_buffer=4096)
    record = await service.kept.one()
    assert record.state is State.CLIENT_GONE
    assert record.duration_ms >= 1000
    received = len(record.choices[0].message["content"])
    assert received < 1_000_000  # socket buffers and ours, not all that was on offer
    client.leave()


async def test_a_slow_reader_delays_nobody(backend: Backend, make_service: ServiceMaker) -> None:
    """While one client stalls, another's stream runs as if it were alone."""
    backend.script = flood
    service = await make_service(
        agent_for(backend),
        ScriptedAgentConfig(name="demo", kind="scripted", reply="a b c", tokens_per_second=100),
    )
    stalled = await RawClient.ask(service, receive_buffer=4096)
    await asyncio.sleep(0.2)
    async with asyncio.timeout(2):
        streamed = await service.stream(model="demo")
    assert ("a b c", True) == (streamed.text, streamed.is_done)
    stalled.leave()
    assert (await _second(service)).state is State.CLIENT_GONE


async def _second(service: Service) -> Any:
    async with asyncio.timeout(5):
        while len(service.kept.records) < 2:
            await asyncio.sleep(0.01)
    return service.kept.records[1]


async def test_clients_that_left_leave_no_relay_and_no_task(
    service: Service, backend: Backend
) -> None:
    """Ten clients that leave in the middle make ten records, and nothing of theirs runs on."""
    backend.script = talk_until_closed
    clients = [await RawClient.ask(service) for _ in range(10)]
    for client in clients:
        await client.read_until(b"word ")
        client.leave()
    async with asyncio.timeout(5):
        while service.relays:
            await asyncio.sleep(0.01)
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith("relay")]
    assert 10 == len({record.completion_id for record in service.kept.records})
