"""What clients see behind each proxy that has two replicas: which one answers, and what becomes of an
answer whose replica stops, dies or freezes.

`make proxies` runs them, for the proxies that are installed, and prints what it measured.
"""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.proxies.conftest import MEASURED
from tests.proxies.running import HAVE_REPLICAS, PROXIES, Proxy, path_of, running_before_two
from tests.service.stage.backend import Backend, Exchange, say
from tests.service.stage.process import Process

SILENCE_SECONDS = float(os.environ.get("PROXIES_SILENCE", "20"))
pytestmark = [
    pytest.mark.proxies,
    pytest.mark.timeout(300 + SILENCE_SECONDS),
    pytest.mark.parametrize(
        "proxy",
        [each for each in PROXIES if each.name in HAVE_REPLICAS],
        ids=lambda proxy: proxy.name,
        indirect=True,
    ),
]

QUESTION = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello?"}]}
SHORT, LONG = 0, 300_000
"""Characters of the question beside its words: some proxies send only short ones to the next replica."""
COME_AGAIN_SECONDS = {("apache", SHORT): 2.5, ("apache", LONG): 2.5, ("haproxy", LONG): 2.5}
"""How long clients may be refused by a stopping replica: until a probe has noticed. The others, 0."""
WAITS_FOR_THE_FROZEN = {"nginx", "apache"}
"""The first asks nobody how he is, the other waits 60 s for the answer."""
WANTS_ONE_THAT_IS_READY = {"caddy", "apache"}
"""Where none is ready these refuse everything; the others' recipes send it to all."""


class Front:
    """A proxy with two replicas behind it, and the backend behind them."""

    def __init__(self, proxy: Proxy, port: int, replicas: list[Process], backend: Backend) -> None:
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self.replicas = replicas
        self.backend = backend
        self.figures = MEASURED.setdefault(proxy.name, {})
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        timeout = aiohttp.ClientTimeout(total=60 + SILENCE_SECONDS)
        self.http = aiohttp.ClientSession(connector=connector, timeout=timeout)

    def ask(self, url: str | None = None, size: int = SHORT) -> Any:
        return self.http.post(url or self.url, json={**QUESTION, "user": "x" * size})

    async def outcome(self, patience_seconds: float = 60.0, size: int = SHORT) -> str:
        """What a question of this size comes to: its status, `cut` or `late`."""
        try:
            async with asyncio.timeout(patience_seconds), self.ask(size=size) as response:
                body = await response.read()
                is_whole = body.endswith(b"data: [DONE]\n\n") or response.status != 200
                return str(response.status) if is_whole else "no end"
        except TimeoutError:
            return "late"
        except aiohttp.ClientError:
            return "cut"

    async def streams(self) -> list[int]:
        """How many each replica has."""
        found = []
        for each in self.replicas:
            async with self.http.get(f"http://127.0.0.1:{each.port}/readyz") as response:
                found.append((await response.json())["streams"])
        return found


def replica(place: Path, database_url: str, backend: Backend) -> Process:
    place.mkdir()
    agent = {
        "name": "m",
        "kind": "openai",
        "base_url": backend.base_url,
        "api_key_env": None,
        "retries": 0,
        "timeouts": {"idle_seconds": 600, "first_token_seconds": 600, "total_seconds": 900},
    }
    journal = {"directory": str(place / "journal")}
    database = {"url": database_url, "commit_timeout_seconds": 0.2}
    return Process(place, {"database": database, "journal": journal, "agents": [agent]})


@pytest.fixture
def replicas(tmp_path: Path, database_url: str, backend: Backend) -> Iterator[list[Process]]:
    started = [replica(tmp_path / name, database_url, backend) for name in ("one", "two")]
    yield started
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            each.popen.send_signal(signal.SIGCONT)
        each.end()


@pytest.fixture
async def front(
    proxy: Proxy, replicas: list[Process], backend: Backend, place: Path
) -> AsyncIterator[Front]:
    ports = await asyncio.to_thread(lambda: [each.port for each in replicas])
    async with before(proxy, ports, place) as port:
        one = Front(proxy, port, replicas, backend)
        yield one
        await one.http.close()


@contextlib.asynccontextmanager
async def before(proxy: Proxy, ports: list[int], place: Path) -> AsyncIterator[int]:
    """The proxy, once it has seen both replicas."""
    program = path_of(proxy)
    assert program is not None
    context = running_before_two(proxy, program, ports, place)
    port = await asyncio.to_thread(context.__enter__)
    try:
        await asyncio.sleep(2.5)  # two rounds of its probes
        yield port
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


async def words_until(event: asyncio.Event, exchange: Exchange) -> None:
    """Say a word every tenth of a second, up to then."""
    await exchange.start()
    while not event.is_set() and not exchange.client_closed.is_set():
        await exchange.words("word ")
        await asyncio.sleep(0.1)
    if not exchange.client_closed.is_set():
        await exchange.finish()


async def delay_of_first_word(front: Front, url: str | None) -> float:
    """Milliseconds from the backend's writing it to the client's seeing it."""
    sent: list[float] = []

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        sent.append(time.monotonic())
        await exchange.words("Hel")
        await asyncio.sleep(0.05)
        await exchange.finish()

    front.backend.script = script
    async with front.ask(url) as response:
        assert 200 == response.status
        async for line in response.content:
            if b"Hel" in line:
                return (time.monotonic() - sent[0]) * 1000
    raise AssertionError("no word came")


async def test_the_first_word_comes_at_once(front: Front) -> None:
    """At most some milliseconds later than without the proxy."""
    straight, behind = [], []
    direct = f"http://127.0.0.1:{front.replicas[0].port}/v1/chat/completions"
    for _ in range(20):
        straight.append(await delay_of_first_word(front, direct))
        behind.append(await delay_of_first_word(front, None))
    added = statistics.median(behind) - statistics.median(straight)
    front.figures["first word, ms added"] = f"{added:.1f}"
    assert added < 30


async def test_both_replicas_are_used(front: Front) -> None:
    """Of streams that last, each has about half."""
    over = asyncio.Event()
    front.backend.script = lambda exchange: words_until(over, exchange)
    responses = []
    for _ in range(8):
        responses.append(await front.ask())
        await responses[-1].content.readline()
    shares = await front.streams()
    over.set()
    for response in responses:
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    front.figures["8 streams"] = f"{shares[0]} + {shares[1]}"
    assert 8 == sum(shares)
    assert min(shares) >= 2


async def test_a_long_silence_is_survived(front: Front) -> None:
    """With the keep-alives of the service's defaults, or those that the recipe asks for."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hel")
        await asyncio.sleep(SILENCE_SECONDS)
        await exchange.words("lo")
        await exchange.finish()

    front.backend.script = script
    async with front.ask() as response:
        body = await response.read()
    assert b'"lo"' in body
    assert body.endswith(b"data: [DONE]\n\n")
    front.figures["silence survived, s"] = f"{SILENCE_SECONDS:.0f}"


async def test_a_client_that_leaves_is_noticed(front: Front) -> None:
    """While the model is silent: at once, or with one of the next keep-alives."""
    closed_at: list[float] = []

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hel")
        await exchange.client_closed.wait()
        closed_at.append(time.monotonic())

    front.backend.script = script
    async with front.ask() as response:
        async for line in response.content:
            if b"Hel" in line:
                break
        await response.content.readline()  # one that leaves with something unread resets
        left_at = time.monotonic()
        response.close()
    for _ in range(700):
        if closed_at:
            break
        await asyncio.sleep(0.05)
    assert closed_at
    front.figures["leaving noticed, s"] = f"{closed_at[0] - left_at:.2f}"


async def cut_off(front: Front, act: Callable[[Process], None]) -> tuple[str, float]:
    """What a client sees whose replica this is done to in mid-answer, and after how many seconds."""
    front.backend.script = lambda exchange: words_until(asyncio.Event(), exchange)
    done_at = 0.0
    async with front.ask() as response:
        try:
            async for line in response.content:
                if b"word" in line and not done_at:
                    runner = (await front.streams()).index(1)
                    done_at = time.monotonic()
                    act(front.replicas[runner])
        except aiohttp.ClientError as error:
            return type(error).__name__, time.monotonic() - done_at
    return "clean end", time.monotonic() - done_at


async def test_a_replica_that_dies_cuts_its_answers_and_no_others(front: Front) -> None:
    """The client sees a broken answer, no clean end; whoever asks next is answered by the other."""
    seen, seconds = await cut_off(front, lambda runner: runner.popen.kill())
    front.figures["killed replica, seen as"] = f"{seen} after {seconds:.2f} s"
    front.backend.script = say("Hello")
    began = time.monotonic()
    outcomes = Counter([await front.outcome(5) for _ in range(20)])
    front.figures["the next 20"] = f"{dict(outcomes)} in {time.monotonic() - began:.1f} s"
    assert seen != "clean end"
    assert {"200": 20} == outcomes


@pytest.mark.parametrize("size", [SHORT, LONG], ids=["short", "long"])
async def test_a_replica_that_stops_ends_its_answers_and_begins_none(
    front: Front, size: int
) -> None:
    """From SIGTERM to the exit: what runs there ends whole, and new questions go to the other, also
    where the one that stops has fewer streams."""
    over = asyncio.Event()
    front.backend.script = lambda exchange: words_until(over, exchange)
    responses = []
    while min(shares := await front.streams()) == 0 or shares[0] == shares[1]:
        responses.append(await front.ask())
        await responses[-1].content.readline()
    runner = front.replicas[shares.index(min(shares))]
    front.backend.script = say("Hello")
    runner.popen.send_signal(signal.SIGTERM)
    began = time.monotonic()
    outcomes: list[tuple[float, str]] = []
    exited_at = None
    while exited_at is None or time.monotonic() < exited_at + 1:
        outcomes.append((time.monotonic() - began, await front.outcome(5, size)))
        if time.monotonic() > began + 3:
            over.set()
        if exited_at is None and runner.popen.poll() is not None:
            exited_at = time.monotonic()
        assert time.monotonic() < began + 30
        await asyncio.sleep(0.03)
    for response in responses:
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    bad = [(round(at, 1), what) for at, what in outcomes if what != "200"]
    count = len(outcomes)
    what = "stopping replica" + (", long questions" if size else "")
    front.figures[what] = f"{len(bad)} of {count} refused, {bad[-1:]}"
    allowed = COME_AGAIN_SECONDS.get((front_name(front), size), 0.0)
    assert [] == [each for each in bad if each[0] > allowed or each[1] != "503"]


def front_name(front: Front) -> str:
    return next(name for name, figures in MEASURED.items() if figures is front.figures)


async def test_a_replica_that_freezes_is_left_out(front: Front) -> None:
    """A stopped process takes connections and never answers: seven seconds later nobody waits for it,
    where the proxy asks its replicas how they are."""
    front.backend.script = say("Hello")
    front.replicas[0].popen.send_signal(signal.SIGSTOP)
    await asyncio.sleep(7)
    outcomes = Counter(await asyncio.gather(*(front.outcome(3) for _ in range(10))))
    front.replicas[0].popen.send_signal(signal.SIGCONT)
    front.figures["frozen replica, 10 asked"] = str(dict(outcomes))
    if front_name(front) in WAITS_FOR_THE_FROZEN:
        assert {"200", "late"} >= set(outcomes)
    else:
        assert {"200": 10} == outcomes


@pytest.mark.parametrize("database_url", ["postgresql://nobody@127.0.0.1:1/none"])
async def test_without_its_database_the_service_goes_on(front: Front) -> None:
    """No replica is ready then, and each can answer all the same."""
    front.backend.script = say("Hello")
    outcomes = Counter([await front.outcome(10) for _ in range(10)])
    front.figures["none ready, 10 asked"] = str(dict(outcomes))
    refused = front_name(front) in WANTS_ONE_THAT_IS_READY
    assert {"503" if refused else "200": 10} == outcomes


async def test_a_request_is_sent_to_one_replica_once(proxy: Proxy, place: Path) -> None:
    """Also where that one closes the connection without an answer: an answer costs money."""
    asked = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        if (await reader.read(100)).startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        else:
            asked += 1
        writer.close()

    servers = [await asyncio.start_server(refuse, "127.0.0.1", 0) for _ in range(2)]
    ports = [each.sockets[0].getsockname()[1] for each in servers]
    async with before(proxy, ports, place) as door, aiohttp.ClientSession() as http:
        asked = 0  # not counting how it was waited for
        url = f"http://127.0.0.1:{door}/v1/chat/completions"
        status = 0
        with contextlib.suppress(aiohttp.ClientError):
            async with http.post(url, data=json.dumps(QUESTION)) as response:
                status = response.status
    for server in servers:
        server.close()
        await server.wait_closed()
    MEASURED.setdefault(proxy.name, {})["closed without an answer"] = str(status or "cut")
    assert status == 0 or status >= 500
    assert 1 == asked
