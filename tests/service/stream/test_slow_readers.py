"""Clients that read slowly, pause, or take nothing: only the last are given up."""

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from service.settings.config import SseConfig
from statemachine import ClientGone, State
from tests.service.conftest import QUESTION, Service, ServiceMaker, agent_for
from tests.service.stage.backend import Backend, Exchange, Script, chunk, event_bytes

EVENT = event_bytes(chunk({"content": "x" * 1000}))
END = b"data: [DONE]\n\n"
STEP_BYTES, STEP_SECONDS = 16 * 1024, 0.1
"""How a slow reader reads. Its machine makes room in larger steps, up to all of its buffer."""


class Reader:
    """A client that reads when it is told to, and whose machine takes little by itself."""

    def __init__(self, receive_buffer: int) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.setblocking(False)
        self.seen = b""

    async def connect(self, service: Service) -> None:
        address = service.runner.addresses[0][:2]
        await asyncio.get_running_loop().sock_connect(self.sock, address)

    async def post(self, path: str, version: str = "1.1", stream: bool = True) -> None:
        body = json.dumps({"model": "m", "stream": stream, "messages": QUESTION}).encode()
        head = (
            f"POST {path} HTTP/{version}\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        if not path.endswith("completions"):
            head, body = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n", b""
        await asyncio.get_running_loop().sock_sendall(self.sock, head.encode() + body)

    async def some(self, most: int = STEP_BYTES) -> bytes:
        """What is there; b"" at the connection's end."""
        data = await asyncio.get_running_loop().sock_recv(self.sock, most)
        self.seen += data
        return data

    async def slowly_until(self, mark: bytes) -> None:
        """Read steadily up to the mark, or to the connection's end."""
        async with asyncio.timeout(20):
            while mark not in self.seen[-len(mark) - STEP_BYTES :] and await self.some():
                await asyncio.sleep(STEP_SECONDS)

    async def rest(self) -> None:
        """Read what is left as fast as it comes, until the connection ends."""
        async with asyncio.timeout(5):
            try:
                while await self.some(1_000_000):
                    pass
            except ConnectionResetError:
                pass


class Readers:
    """Clients that hang up when the test ends, however it does."""

    def __init__(self) -> None:
        self._made: list[Reader] = []

    async def ask(
        self,
        service: Service,
        path: str = "/v1/chat/completions",
        *,
        version: str = "1.1",
        receive_buffer: int = 32 * 1024,
        stream: bool = True,
    ) -> Reader:
        reader = Reader(receive_buffer)
        self._made.append(reader)
        await reader.connect(service)
        await reader.post(path, version, stream)
        return reader

    def close(self) -> None:
        for reader in self._made:
            reader.sock.close()


@pytest.fixture
def readers() -> Iterator[Readers]:
    """Comes last among a test's fixtures: who hangs up first keeps no service from stopping."""
    made = Readers()
    yield made
    made.close()


def says(size: int) -> Script:
    """A backend's whole answer of so many bytes, there at once: what was written in one go is what
    the kernel looks at as one when it counts a client's silence."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.send(EVENT * (size // 1000))
        await exchange.finish()

    return script


async def _soon(what: Any, seconds: float = 5) -> None:
    """Wait until this becomes true."""
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.01)


@pytest.fixture
async def patient(backend: Backend, make_service: ServiceMaker) -> Service:
    """A service that gives clients up after a second and a half."""
    return await make_service(agent_for(backend), sse=SseConfig(send_timeout_seconds=1.5))


def lines_of(log_lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in log_lines if line["event"] == event]


@pytest.mark.parametrize(("version", "stream"), [("1.1", True), ("1.0", True), ("1.1", False)])
async def test_a_reader_that_makes_progress_is_never_cut_off(
    patient: Service, backend: Backend, log_lines: Any, version: str, stream: bool, readers: Readers
) -> None:
    """However long it takes in all: a stream, one for HTTP/1.0 and a plain answer arrive whole."""
    backend.script = says(600_000)
    client = await readers.ask(patient, version=version, stream=stream)
    began = asyncio.get_running_loop().time()
    await client.slowly_until(END if stream else b'"completion_tokens":')
    assert asyncio.get_running_loop().time() - began > 2 * 1.5
    assert 600 == client.seen.count(b"x" * 1000)
    record = await patient.kept.one()
    assert (State.COMPLETED, None) == (record.state, record.client_left_at)
    assert [] == lines_of(log_lines, "client stalled") + lines_of(log_lines, "answer not taken")


async def test_a_slow_readers_connection_serves_its_next_request(
    patient: Service, backend: Backend, readers: Readers
) -> None:
    """An answer that took long leaves the connection as it was."""
    backend.script = says(300_000)
    client = await readers.ask(patient)
    for count in (1, 2):
        await client.slowly_until(END + b"\r\n0\r\n\r\n")
        assert count == client.seen.count(END)
        client.seen = client.seen if count == 2 else END
        if count == 1:
            await client.post("/v1/chat/completions")


async def test_a_pause_shorter_than_the_timeout_harms_nothing(
    patient: Service, backend: Backend, readers: Readers
) -> None:
    """Several of them neither, though they are longer together."""
    backend.script = says(400_000)
    client = await readers.ask(patient)
    for _ in range(3):
        await asyncio.sleep(1.0)
        for _ in range(8):
            await client.some()
    await client.slowly_until(END)
    assert END in client.seen
    assert (await patient.kept.one()).state is State.COMPLETED


@pytest.mark.parametrize("policy", list(ClientGone))
async def test_a_reader_that_stops_for_good_has_left(
    backend: Backend,
    make_service: ServiceMaker,
    log_lines: Any,
    policy: ClientGone,
    readers: Readers,
) -> None:
    """In the middle of an answer: the upstream is stopped and the text so far is kept, or under
    `finish` all of it; and a line says whose client it was."""
    backend.script = says(4_000_000)
    sse = SseConfig(send_timeout_seconds=1.5)
    service = await make_service(agent_for(backend), sse=sse, client_gone=policy)
    client = await readers.ask(service)
    await client.some()
    record = await service.kept.one()
    assert 1500 <= record.duration_ms < 4000
    assert record.client_left_at is not None
    kept = len(record.choices[0].message["content"])
    if policy is ClientGone.CANCEL:
        assert (State.CLIENT_GONE, True) == (record.state, kept < 1_000_000)
        await _soon(backend.exchanges[0].client_closed.is_set, seconds=1)
    else:
        assert (State.COMPLETED, 4_000_000) == (record.state, kept)
    (line,) = lines_of(log_lines, "client stalled")
    ids = (record.completion_id, record.request.trace_id)
    assert ids == (line["completion_id"], line["trace_id"])
    await client.rest()
    assert END not in client.seen


async def test_a_client_lost_in_the_middle_is_so_though_the_end_is_at_hand(
    patient: Service, backend: Backend, readers: Readers
) -> None:
    """What the backend has sent meanwhile doesn't make it one that was there at the end."""
    backend.script = says(250_000)
    await readers.ask(patient, receive_buffer=8192)
    record = await patient.kept.one()
    assert State.CLIENT_GONE is record.state
    assert record.client_left_at is not None


@pytest.mark.parametrize(("size", "left"), [(30_000, False), (100_000, True)])
async def test_a_client_cut_off_after_the_end_is_told_from_one_that_saw_it(
    patient: Service, backend: Backend, log_lines: Any, size: int, left: bool, readers: Readers
) -> None:
    """The answer is whole and its row says so, being older than the cut. A line of the log with
    the row's id says that its client took nothing more. An end that was still here is lost; one
    that the kernel had, it may deliver yet."""
    backend.script = says(size)
    client = await readers.ask(patient, receive_buffer=8192)
    record = await patient.kept.one()
    assert (State.COMPLETED, None) == (record.state, record.client_left_at)
    await _soon(lambda: lines_of(log_lines, "client stalled"))
    ids = (record.completion_id, record.request.trace_id)
    await client.rest()
    await asyncio.sleep(0.05)
    for line in lines_of(log_lines, "client stalled") + lines_of(log_lines, "answer not taken"):
        assert ids == (line["completion_id"], line["trace_id"])
    assert left == bool(lines_of(log_lines, "answer not taken"))
    assert left == (END not in client.seen)


async def test_leaving_before_the_end_is_taken_is_logged(
    patient: Service, backend: Backend, log_lines: Any, readers: Readers
) -> None:
    """The row is older than that, too."""
    backend.script = says(100_000)
    client = await readers.ask(patient, receive_buffer=8192)
    record = await patient.kept.one()
    await _soon(lambda: not patient.relays)
    client.sock.close()
    await _soon(lambda: lines_of(log_lines, "answer not taken"))
    (line,) = lines_of(log_lines, "answer not taken")
    assert record.completion_id == line["completion_id"]
    assert [] == lines_of(log_lines, "client stalled")


async def test_pings_that_nobody_takes_end_a_silent_stream(
    backend: Backend, make_service: ServiceMaker, log_lines: Any, readers: Readers
) -> None:
    """Where nothing waits in this process, what the client's machine acknowledges decides."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.send(EVENT * 20)
        await exchange.client_closed.wait()

    backend.script = script
    sse = SseConfig(keep_alive_interval_seconds=0.2, send_timeout_seconds=1.5)
    service = await make_service(agent_for(backend), sse=sse)
    await readers.ask(service, receive_buffer=4096)
    record = await service.kept.one()
    assert record.state is State.CLIENT_GONE
    assert 1500 <= record.duration_ms < 4000
    assert lines_of(log_lines, "client stalled")


async def test_a_client_that_takes_all_may_be_silent_for_ever(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """The timeout is for what waits; where nothing does, neither silence nor pings count."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hel")
        await asyncio.sleep(1.5)
        await exchange.words("lo")
        await exchange.finish()

    backend.script = script
    sse = SseConfig(keep_alive_interval_seconds=0.9, send_timeout_seconds=0.4)
    service = await make_service(agent_for(backend), sse=sse)
    assert "Hello" == (await service.stream()).text


@pytest.mark.parametrize("path", ["completion", "stored"])
async def test_a_plain_answer_that_nobody_takes_is_given_up(
    patient: Service, backend: Backend, log_lines: Any, path: str, readers: Readers
) -> None:
    """A completion's one object, and one that is read from the store."""
    backend.script = says(2_000_000)
    if path == "completion":
        client = await readers.ask(patient, stream=False)
        record = await patient.kept.one()
    else:
        async with patient.post(stream=False) as response:
            await response.read()
        record = await patient.kept.one()
        client = await readers.ask(patient, f"/v1/chat/completions/{record.completion_id}")
    await _soon(lambda: lines_of(log_lines, "client stalled"))
    (line,) = lines_of(log_lines, "client stalled")
    assert (path == "completion") == (record.completion_id == line.get("completion_id"))
    await client.rest()
    assert len(client.seen) < 1_000_000
    assert patient.runner.server is not None
    await _soon(lambda: len(patient.runner.server.connections) <= 1)


async def test_a_stop_by_id_does_not_wait_for_a_reader_that_stalls(
    patient: Service, backend: Backend, readers: Readers
) -> None:
    """It answers once the partial text is handed over."""
    backend.script = says(4_000_000)
    await readers.ask(patient)
    await _soon(lambda: patient.relays and len(backend.exchanges))
    await asyncio.sleep(0.3)
    (relay,) = patient.relays
    url = f"{patient.url}/v1/chat/completions/{relay.session.request.completion_id}/cancel"
    began = asyncio.get_running_loop().time()
    async with patient.http.post(url) as response:
        assert (await response.json())["cancelled"]
    assert asyncio.get_running_loop().time() - began < 1.0


async def test_a_stop_of_the_service_waits_for_a_slow_reader(
    patient: Service, backend: Backend, readers: Readers
) -> None:
    """What it has been handed arrives, the end included."""
    backend.script = says(100_000)
    client = await readers.ask(patient, receive_buffer=8192)
    await patient.kept.one()
    await _soon(lambda: not patient.relays)
    stopping = asyncio.create_task(patient.stop())
    await client.slowly_until(END)
    await stopping
    assert END in client.seen
