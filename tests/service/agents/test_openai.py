"""The agent that asks OpenAI-compatible backends: what it sends, and what it reads."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from service.agents.openai.agent import OpenAIAgent
from service.settings.tools import ContextFile
from service.wire import encode_json
from statemachine import (
    ChunkReceived,
    ParsedChunk,
    UpstreamFailed,
    UpstreamFinished,
)
from tests.service.agents.conftest import (
    EVENT,
    KEY,
    TRACEPARENT,
    Backend,
    MakeAgent,
    call,
    collect,
    folded,
    openai_config,
)
from tests.statemachine.conftest import finish_chunk, text_chunk


async def test_an_event_is_read_as_soon_as_it_is_whole(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """An event doesn't wait for more of the body."""
    go_on = asyncio.Event()

    async def in_two_parts(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(EVENT + b"data: {\xff")
        await go_on.wait()
        await response.write(b"}\r\n\r\n")
        return response

    backend.answer = in_two_parts
    async with make_agent().open(call()) as answer:
        assert [ChunkReceived({"choices": []})] == await answer.read()
        go_on.set()
        (ending,) = await answer.read()
    assert isinstance(ending, UpstreamFailed)
    assert "upstream_malformed" == ending.failure.code


@pytest.mark.parametrize("uses_shortcut", [True, False])
async def test_without_the_shortcut_the_same_chunks_are_read(
    backend: Backend, closing_agents: Any, uses_shortcut: bool
) -> None:
    """The shortcut can be turned off by a value, and then each chunk is parsed."""
    words = [text_chunk(word) for word in "abcdef"]
    said = [*words, finish_chunk()]
    data = b"".join(b"data: %b\n\n" % encode_json(payload) for payload in said)
    backend.answers(200, data + b"data: [DONE]\n\n")
    config = openai_config(base_url=backend.url)
    agent = closing_agents(OpenAIAgent(config, KEY, uses_shortcut=uses_shortcut))
    reads = await collect(agent)
    transcript, ending = folded(reads)
    assert (UpstreamFinished(), 7) == (ending, transcript.chunk_count)
    assert "abcdef" == transcript.choices()[0].message["content"]
    if not uses_shortcut:
        runs = [
            event.run for events in reads for event in events if isinstance(event, ChunkReceived)
        ]
        assert [ParsedChunk(payload) for payload in said] == runs


async def test_a_request_is_the_clients_on_top_of_the_agents_parameters(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """Our key and trace go along, and the SDK's talk about itself doesn't."""
    agent = make_agent(parameters={"temperature": 0.5, "seed": 1}, preamble="Be kind.")
    await collect(agent, call(seed=2, top_k=40, stream=False, x={"y": None}))
    (request,) = backend.requests
    assert ("POST", "/v1/chat/completions") == (request.method, request.path)
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert TRACEPARENT == request.headers["traceparent"]
    assert "text/event-stream" == request.headers["Accept"]
    assert "identity" == request.headers["Accept-Encoding"]
    assert "application/json" == request.headers["Content-Type"]
    assert "AsyncOpenAI" in request.headers["User-Agent"]
    assert not [name for name in request.headers if name.lower().startswith("x-stainless")]
    assert {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hello?"},
        ],
        "temperature": 0.5,
        "seed": 2,
        "top_k": 40,
        "x": {"y": None},
        "stream": True,
        "stream_options": {"include_usage": True},
    } == json.loads(backend.bodies[0])


async def test_files_of_the_context_follow_the_preamble(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """The backend is told the agent's files in the preamble's message."""
    agent = make_agent(preamble="Be kind.", context=(ContextFile("a.md", "Open at nine."),))
    await collect(agent, call())
    told = json.loads(backend.bodies[0])["messages"][0]
    assert {"role": "system", "content": "Be kind.\n\nOpen at nine."} == told


async def test_odd_text_reaches_the_backend(backend: Backend, make_agent: MakeAgent) -> None:
    """Lone surrogates, NULs and emoji survive the way through the SDK."""
    messages = [{"role": "user", "content": "a\ud800\x00🙂", "\udfff": 2**63}]
    await collect(make_agent(), call(messages=messages))
    assert json.loads(backend.bodies[0])["messages"] == messages


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_a_body_of_megabytes_reaches_the_backend(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """Pictures in a message make requests of megabytes."""
    messages = [{"role": "user", "content": "x" * (4 << 20)}]
    await collect(make_agent(), call(messages=messages))
    assert json.loads(backend.bodies[0])["messages"] == messages


async def test_the_sdks_environment_variables_dont_count(
    backend: Backend, make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that wants no key never sees the process's own, nor is it replaced by another."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    await collect(make_agent(key=None))
    assert "sk-secret" not in str(dict(backend.requests[0].headers))


@pytest.mark.parametrize(
    ("parameters", "model", "expected"),
    [
        ({"model": "llama3"}, "o", "llama3"),
        ({"model": "llama3"}, "m", "m"),
        ({}, "o", "o"),
        ({"model": 5}, "o", "o"),
    ],
)
async def test_an_agent_asked_by_its_own_name_sends_its_own_model(
    backend: Backend, make_agent: MakeAgent, parameters: Any, model: str, expected: str
) -> None:
    """An agent without a model of its own, or asked for another, sends the client's."""
    await collect(make_agent(parameters=parameters), call(model=model))
    assert expected == json.loads(backend.bodies[0])["model"]
