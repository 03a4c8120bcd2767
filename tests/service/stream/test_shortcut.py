"""From a backend's socket to the relay: repeated chunks take the shortcut, all else wakes the reader."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from service.agents.openai.agent import OpenAIAgent
from service.stream.attempts import Attempts
from statemachine import (
    ChunkReceived,
    Event,
    RepeatedChunks,
    UpstreamFailed,
    UpstreamFinished,
)
from tests.service.conftest import agent_for
from tests.service.stage.backend import Backend, Exchange, Script, chunk, event_bytes
from tests.service.stage.line import HEAD, LAST, http_chunk
from tests.service.stream.conftest import CALL, attempts_of


class Ear:
    """Reads an upstream to its end, and notes everything in order, and which way it came."""

    def __init__(self, upstream: Attempts, is_clear: Callable[[], bool]) -> None:
        self.events: list[Event] = []
        self.passed_on: list[str] = []
        self.is_clear = is_clear
        self._upstream = upstream

    def take(self, event: ChunkReceived) -> None:
        assert isinstance(event.run, RepeatedChunks)
        self.events.append(event)
        self.passed_on += event.run.texts

    async def listen(self) -> Event:
        """The ending."""
        while True:
            self.events += await self._upstream.read(self)
            if isinstance(self.events[-1], (UpstreamFinished, UpstreamFailed)):
                await self._upstream.close()
                return self.events[-1]

    @property
    def words(self) -> list[str]:
        """All texts in order, whichever way they came."""
        found: list[str] = []
        for event in self.events:
            if not isinstance(event, ChunkReceived):
                continue
            if isinstance(event.run, RepeatedChunks):
                found += event.run.texts
            else:
                choices = event.run.payload["choices"]
                found += [choice["delta"].get("content", "") for choice in choices]
        return [word for word in found if word]

    async def heard(self, count: int) -> None:
        while len(self.words) < count:
            await asyncio.sleep(0.001)


MakeEar = Callable[..., Ear]
WORDS = [f" word{number}" for number in range(12)]


@pytest.fixture
async def make_ear(backend: Backend) -> AsyncIterator[MakeEar]:
    """Makes those who ask `backend`, as the service does."""
    agents: list[OpenAIAgent] = []

    def make(is_clear: Callable[[], bool] = lambda: True) -> Ear:
        agents.append(OpenAIAgent(agent_for(backend), "key"))
        return Ear(attempts_of(agents[-1]), is_clear)

    yield make
    for agent in agents:
        await agent.close()


def say_slowly(ear: Ear, last: bytes = b"") -> Script:
    """A word as soon as the one before was heard, and then the end."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        for count, word in enumerate(WORDS):
            await ear.heard(count)
            await exchange.words(word)
        await ear.heard(len(WORDS))
        await (exchange.raw(last) if last else exchange.finish())
        await exchange.cut()

    return script


async def test_repeats_go_past_a_read_that_waits(backend: Backend, make_ear: MakeEar) -> None:
    """From the third chunk on texts go to the sink, and `read` gives the rest, all in order."""
    ear = make_ear()
    backend.script = say_slowly(ear)
    assert UpstreamFinished() == await ear.listen()
    assert WORDS == ear.words
    assert ear.passed_on == WORDS[2:]


async def test_nothing_goes_past_a_read_while_the_sink_isnt_clear(
    backend: Backend, make_ear: MakeEar
) -> None:
    """`read` gives everything then, and order is kept when that changes from word to word."""
    ear = make_ear(lambda: False)
    backend.script = say_slowly(ear)
    assert UpstreamFinished() == await ear.listen()
    assert (WORDS, []) == (ear.words, ear.passed_on)
    ear = make_ear(lambda: len(ear.words) % 3 == 0)
    backend.script = say_slowly(ear)
    assert UpstreamFinished() == await ear.listen()
    assert (ear.words, ear.passed_on) == (WORDS, WORDS[3::3])


async def test_repeats_that_come_with_the_end_go_past_the_read(
    backend: Backend, make_ear: MakeEar
) -> None:
    """What came in one packet is parted: texts to the sink first, and then the end by way of
    `read`."""
    ear = make_ear()
    events = [event_bytes(chunk({"content": word})) for word in "abcdef"]
    events += [event_bytes(chunk({}, "stop")), b"data: [DONE]\n\n"]
    backend.script = say_slowly(ear, b"".join(map(http_chunk, events)) + LAST)
    assert UpstreamFinished() == await ear.listen()
    assert [*WORDS, *"abcdef"] == ear.words
    assert ear.passed_on == [*WORDS[2:], *"abcde"]  # the end's three events take the last along


class Nobody:
    """A sink that would take anything, and is not to be asked."""

    def __init__(self) -> None:
        self.asked = 0

    def is_clear(self) -> bool:
        self.asked += 1
        return True

    def take(self, event: ChunkReceived) -> None:
        raise AssertionError


async def test_the_sink_isnt_asked_while_nobody_waits(backend: Backend) -> None:
    """What comes between two reads is for the next one, also after a read that didn't have to
    wait."""
    go_on = asyncio.Event()
    first, second = (event_bytes(chunk({"content": word})) for word in "ab")

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.send(first)
        await go_on.wait()
        await exchange.send(second)
        await exchange.end()

    backend.script = script
    agent = OpenAIAgent(agent_for(backend), "key")
    sink = Nobody()
    async with agent.open(CALL) as answer:
        await asyncio.sleep(0.02)
        assert 1 == len(await answer.read(sink))
        go_on.set()
        await asyncio.sleep(0.02)
        assert 1 == len(await answer.read(sink))
        assert 0 == sink.asked
    await agent.close()


BAD_CHUNKS = {"no size": b"zz\r\nhello\r\n", "two sizes": b"5 5\r\nhello\r\n0\r\n\r\n"}


@pytest.mark.parametrize("bad", BAD_CHUNKS.values(), ids=list(BAD_CHUNKS))
@pytest.mark.parametrize("words", [0, 12])
async def test_a_body_against_the_rules_is_a_failure(
    backend: Backend, make_ear: MakeEar, bad: bytes, words: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A backend that garbles its body is not waited for, and the words before are kept."""
    ear = make_ear()

    async def garble(exchange: Exchange) -> None:
        await exchange.raw(HEAD + bad)

    backend.script = say_slowly(ear, bad) if words else garble
    async with asyncio.timeout(5):
        ending = await ear.listen()
    assert isinstance(ending, UpstreamFailed)
    assert ending.failure.code.startswith("upstream_")
    assert ear.words == WORDS[:words]
    assert [] == [it.message for it in caplog.records if it.levelno >= logging.ERROR]


@pytest.mark.parametrize("last", [b"", b"ff\r\ndata: {", b"5\r\nhello\r"])
async def test_repeats_that_came_before_a_break_are_kept(
    backend: Backend, make_ear: MakeEar, last: bytes
) -> None:
    """A connection that breaks after texts went to the sink is a failure as ever."""
    ear = make_ear()

    async def break_off(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words(*WORDS)
        await ear.heard(len(WORDS))
        await exchange.raw(last)
        await exchange.cut()

    backend.script = break_off
    ending = await ear.listen()
    assert isinstance(ending, UpstreamFailed)
    assert "upstream_incomplete" == ending.failure.code
    assert WORDS == ear.words
