"""Agents, a backend for them to ask, and what they answer."""

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

import pytest
from aiohttp import web

from service.agents.openai.agent import OpenAIAgent
from service.agents.protocol import Agent, AgentCall, AgentError
from service.agents.scripted import ScriptedAgent
from service.settings.config import OpenAIAgentConfig, ScriptedAgentConfig
from service.wire import encode_json, parse_request
from statemachine import (
    ChunkReceived,
    Event,
    Transcript,
    UpstreamFailed,
    UpstreamFinished,
)

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
KEY = "sk-ours-0123456789"
EVENT = b'data: {"choices": []}\n\n'


def call(**fields: Any) -> AgentCall:
    """A call for a small request with these fields besides."""
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello?"}], **fields}
    return AgentCall(parse_request(encode_json(body)), "chatcmpl-1", TRACEPARENT)


def error_json(**error: Any) -> bytes:
    return json.dumps({"error": error}).encode()


def unused_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


async def collect(agent: Agent, asked: AgentCall | None = None) -> list[Sequence[Event]]:
    """What the agent says to the end, one item per read."""
    async with agent.open(asked or call()) as answer:
        reads = [await answer.read()]
        while not isinstance(reads[-1][-1], (UpstreamFinished, UpstreamFailed)):
            reads.append(await answer.read())
        return reads


def folded(reads: Iterable[Sequence[Event]], choices_expected: int = 1) -> tuple[Transcript, Event]:
    """The answer within these reads, and their last event."""
    transcript = Transcript(choices_expected)
    events = [event for events in reads for event in events]
    for event in events:
        if isinstance(event, ChunkReceived):
            transcript.fold_run(event.run)
    return transcript, events[-1]


FAST = 100_000.0


def scripted(**fields: Any) -> ScriptedAgent:
    defaults = {"name": "demo", "kind": "scripted", "tokens_per_second": FAST}
    return ScriptedAgent(ScriptedAgentConfig(**{**defaults, **fields}))


def openai_config(**fields: Any) -> OpenAIAgentConfig:
    return OpenAIAgentConfig(**{"name": "o", "kind": "openai", **fields})


@pytest.fixture
async def closing_agents() -> AsyncIterator[Callable[[OpenAIAgent], OpenAIAgent]]:
    """Closes at the end of the test what it is given."""
    agents: list[OpenAIAgent] = []

    def keep(agent: OpenAIAgent) -> OpenAIAgent:
        agents.append(agent)
        return agent

    yield keep
    for agent in agents:
        await agent.close()


class Backend:
    """An OpenAI-compatible backend: remembers what it was asked, answers as it is told."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.stream
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return await self.answer(request)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(EVENT)
        await response.write(b"data: [DONE]\n\n")
        return response

    def answers(self, status: int, body: bytes, **headers: str) -> None:
        """Answer everything with this."""

        async def answer(_request: web.Request) -> web.StreamResponse:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return web.Response(status=status, body=body, headers=named)

        self.answer = answer


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    backend = Backend()
    app = web.Application(client_max_size=1 << 25)
    app.router.add_route("*", "/v1/{tail:.*}", backend.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    backend.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield backend
    await runner.cleanup()


MakeAgent = Callable[..., OpenAIAgent]


@pytest.fixture
def make_agent(backend: Backend, closing_agents: Any) -> MakeAgent:
    """Makes agents that ask `backend`, unless told otherwise."""

    def make(key: str | None = KEY, **fields: Any) -> OpenAIAgent:
        config = openai_config(**{"base_url": backend.url, **fields})
        agent: OpenAIAgent = closing_agents(OpenAIAgent(config, key))
        return agent

    return make


async def refusal(agent: Agent) -> AgentError:
    """How the agent says no."""
    with pytest.raises(AgentError) as caught:
        await collect(agent)
    assert KEY not in repr(caught.value.failure)
    return caught.value
