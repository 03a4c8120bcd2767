"""Agents that play what a test writes, and the attempts that ask them."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from attrs import evolve

from service.agents.circuit import Circuits
from service.agents.openai.reads import EventReader
from service.agents.protocol import Agent, AgentCall, AgentError, AgentTools, Sink, Target
from service.settings.config import Timeouts
from service.stream.attempts import Attempts
from service.stream.moments import Attempt, Moments, Watcher, Watchers
from service.wire import encode_json, parse_request
from statemachine import (
    AttemptStarted,
    ChunkReceived,
    ClientGone,
    DeadlineExpired,
    Event,
    Failure,
    SessionPolicy,
    SessionRequest,
    StreamSession,
    UpstreamFailed,
    UpstreamFinished,
)
from tests.statemachine.conftest import asked, chunk, finish_chunk, text_chunk

CALL = AgentCall(
    parse_request(b'{"model": "m", "messages": [{"role": "user", "content": "Hello?"}]}'),
    "chatcmpl-1",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
DONE = b"data: [DONE]\n\n"
ROLE = chunk({"role": "assistant", "content": ""})
HEARTBEAT: Any = {"choices": []}
HANG = "hang"
Step = bytes | Exception | str


def event(*payloads: Any) -> bytes:
    return b"".join(b"data: " + encode_json(payload) + b"\n\n" for payload in payloads)


def refusal(
    code: str = "upstream_error", *, is_retryable: bool = False, is_final: bool = False
) -> AgentError:
    failure = Failure(code, f"It said {code}.")
    return AgentError(failure, is_retryable=is_retryable, is_final=is_final)


def busy(retry_after_seconds: float | None = None) -> AgentError:
    """What an agent raises that may well answer next time."""
    failure = Failure(
        "upstream_error", "Busy.", status=503, retry_after_seconds=retry_after_seconds
    )
    return AgentError(failure, is_retryable=True)


BROKE = AgentError(Failure("upstream_incomplete", "It broke."), is_retryable=True)


class FakeAgent:
    """Plays its attempts one after the other.

    An attempt is a list of steps: bytes are one socket read, an exception is raised, `HANG` waits
    for ever. Steps before an `OPENED` belong to entering, where most refusals come from; an
    attempt without one opens at its first bytes.
    """

    client_gone: ClientGone | None = None
    tools: AgentTools | None = None
    fallbacks: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        *attempts: list[Step],
        retries: int = 0,
        first_token_seconds: float = 30.0,
        max_event_bytes: int = 1 << 20,
    ) -> None:
        self.name = name
        self.retries = retries
        self.timeouts = Timeouts(first_token_seconds=first_token_seconds, idle_seconds=7.0)
        self.max_event_bytes = max_event_bytes
        self.circuits = Circuits(name)
        self.attempts = list(attempts)
        self.asked = 0
        self.asked_as_fallback: bool | None = None
        self.open_now = 0
        self.hangs = asyncio.Event()

    def target(self, call: AgentCall) -> Target:
        return Target("fake", call.request.model)

    @asynccontextmanager
    async def open(self, call: AgentCall) -> AsyncIterator["FakeAnswer"]:
        self.asked_as_fallback = call.is_fallback
        assert CALL == evolve(call, is_fallback=False)
        assert 0 == self.open_now, "an attempt begins after the one before was closed"
        steps = self.attempts[self.asked]
        self.asked += 1
        self.open_now += 1
        try:
            rest = iter(steps)
            if OPENED in steps or not isinstance(steps[0], bytes):
                await self._enter(rest)
            body = self._body(rest)
            try:
                yield FakeAnswer(body, EventReader(self.max_event_bytes))
            finally:
                await body.aclose()
        finally:
            self.open_now -= 1

    async def _enter(self, steps: Iterator[Step]) -> None:
        for step in steps:
            if step == OPENED:
                return
            await self._play(step)

    async def _body(self, steps: Iterator[Step]) -> Any:
        for step in steps:
            if isinstance(step, bytes):
                yield step
            else:
                await self._play(step)

    async def _play(self, step: Step) -> None:
        if isinstance(step, Exception):
            raise step
        self.hangs.set()
        await asyncio.Event().wait()

    def serves(self, model: str) -> bool:
        return True

    async def prepare(self) -> None:
        raise AssertionError("nobody asks for it")

    async def models(self) -> list[dict[str, Any]]:
        return []

    async def close(self) -> None:
        pass


class FakeAnswer:
    """Reads the steps as the agent of OpenAI-compatible backends reads a body."""

    def __init__(self, body: AsyncIterator[bytes], reader: EventReader) -> None:
        self._body = body
        self._reader = reader

    async def read(self, sink: Sink | None = None) -> Sequence[Event]:
        while True:
            try:
                events = self._reader.read(await anext(self._body))
            except StopAsyncIteration:
                events = self._reader.close()
            except AgentError as error:
                events = self._reader.close(error.failure)
            if events:
                return events


OPENED = "opened"
ANSWER: list[Step] = [event(text_chunk("Hi")), event(finish_chunk()), DONE]


@pytest.fixture
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow each other at once; their number stays the agent's."""
    decide = Attempts._wait_before_retry

    def at_once(attempts: Attempts, error: AgentError) -> float | None:
        return None if decide(attempts, error) is None else 0.0

    monkeypatch.setattr(Attempts, "_wait_before_retry", at_once)


@pytest.fixture
def announced() -> list[Event]:
    return []


class Tries(Watcher):
    """Notes the attempts that were announced."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def tried(self, request: SessionRequest, attempt: Attempt) -> None:
        self.attempts.append(attempt)


def attempts_of(*agents: Agent, watcher: Watcher | None = None) -> Attempts:
    session = StreamSession(asked(), SessionPolicy())
    return Attempts(agents, CALL, Moments(session, Watchers([watcher] if watcher else [])))


async def read_all(upstream: Attempts) -> list[Event]:
    """Every event up to the ending; then everything is closed."""
    events: list[Event] = []
    while not (
        events and isinstance(events[-1], (UpstreamFinished, UpstreamFailed, DeadlineExpired))
    ):
        new = await upstream.read()
        assert new
        events += new
    await upstream.close()
    return events


async def ask(*agents: FakeAgent, announced: list[Event] | None = None) -> list[Event]:
    """What the session is told; afterwards no agent has anything open."""
    events = await read_all(attempts_of(*agents))
    assert [agent.open_now for agent in agents] == [0] * len(agents)
    attempts = [event for event in events if isinstance(event, AttemptStarted)]
    if announced is not None:
        announced += attempts
    return [event for event in events if event not in attempts]


def received(*payloads: Any) -> list[Event]:
    return [ChunkReceived(payload) for payload in payloads]


WHOLE = [*received(text_chunk("Hi"), finish_chunk()), UpstreamFinished()]
