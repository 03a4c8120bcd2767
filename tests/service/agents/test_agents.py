"""The agents: the built-in one, the one that asks OpenAI-compatible backends, and who is picked."""

import asyncio
import gzip
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
from aiohttp import web
from attrs import evolve
from freezegun import freeze_time
from hypothesis import given
from hypothesis import strategies as st

from service.agents.directory import AgentDirectory
from service.agents.openai.agent import OpenAIAgent
from service.agents.protocol import Agent, AgentCall, AgentError
from service.agents.scripted import INTRODUCTION, ScriptedAgent, split_tokens
from service.edge.errors import ApiError
from service.settings.config import OpenAIAgentConfig, ScriptedAgentConfig, Timeouts, load_config
from service.wire import SseDecoder, encode_json, parse_request
from statemachine import Failure, Transcript, UpstreamFailed, UpstreamFinished

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
KEY = "sk-ours-0123456789"
EVENT = b'data: {"choices": []}\n\n'


def call(**fields: Any) -> AgentCall:
    """A call for a small request with these fields besides."""
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello?"}], **fields}
    return AgentCall(parse_request(encode_json(body)), "chatcmpl-1", TRACEPARENT)


async def collect(agent: Agent, asked: AgentCall | None = None) -> list[bytes]:
    """What the agent says to the end, one item per read."""
    async with agent.open(asked or call()) as body:
        return [data async for data in body]


def folded(
    pieces: list[bytes], choices_expected: int = 1
) -> tuple[Transcript, UpstreamFinished | UpstreamFailed | None]:
    """The answer within an SSE body, and how it ends."""
    decoder = SseDecoder(1 << 20)
    transcript = Transcript(choices_expected)
    for payload in [payload for piece in pieces for payload in decoder.feed(piece)]:
        transcript.fold(payload)
    decoder.close()
    return transcript, decoder.ending


# --- the scripted agent ---------------------------------------------------------------------------

FAST = 100_000.0


def scripted(**fields: Any) -> ScriptedAgent:
    defaults = {"name": "demo", "kind": "scripted", "tokens_per_second": FAST}
    return ScriptedAgent(ScriptedAgentConfig(**{**defaults, **fields}))


texts = st.text(
    st.sampled_from("ab \n\t\u00a0\u3000é🙂\ud800") | st.characters(exclude_categories=())
)


@given(texts)
def test_tokens_joined_are_the_text(text: str) -> None:
    """Splitting loses nothing: no space, no line end, no half a character."""
    tokens = split_tokens(text)
    assert "".join(tokens) == text
    assert "" not in tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("word", ["word"]),
        ("two words", ["two", " words"]),
        ("  a \n b\t", ["  a", " \n b", "\t"]),
        (" ", [" "]),
    ],
)
def test_a_token_is_a_word_with_the_space_before_it(text: str, tokens: list[str]) -> None:
    """That is how models' tokens look too."""
    assert split_tokens(text) == tokens


async def test_scripted_answer() -> None:
    """The whole answer: the reply word by word, a finish reason, usage, `[DONE]`."""
    pieces = await collect(scripted(reply="Say  it\nagain. 🙂\ud83d"))
    transcript, ending = folded(pieces)
    (choice,) = transcript.choices()
    assert choice.message == {"role": "assistant", "content": "Say  it\nagain. 🙂\ud83d"}
    assert choice.finish_reason == "stop"
    assert ending == UpstreamFinished()
    assert transcript.upstream_id == "scripted-chatcmpl-1"
    assert transcript.upstream_model == "m"
    assert transcript.usage is not None
    assert transcript.usage["completion_tokens"] == 4
    assert transcript.usage["prompt_tokens"] > 0
    assert len(pieces) == 1 + 4 + 3  # the role, a read per word, and the end's three


async def test_scripted_introduction() -> None:
    """Without a reply it introduces itself; an empty reply is one."""
    transcript, _ = folded(await collect(scripted()))
    assert transcript.choices()[0].message["content"] == INTRODUCTION
    transcript, ending = folded(await collect(scripted(reply="")))
    assert transcript.choices()[0].message["content"] == ""
    assert (transcript.is_whole, ending) == (True, UpstreamFinished())


async def test_same_configuration_same_bytes() -> None:
    """Two runs, and two agents of one configuration, say the same bytes."""
    first, second = scripted(reply="a b c"), scripted(reply="a b c")
    expected = await collect(first)
    assert expected == await collect(first)
    assert expected == await collect(second)
    assert expected != await collect(scripted(reply="a b d"))


async def test_scripted_choices() -> None:
    """Every choice asked for gets the whole reply, and each of its tokens is counted."""
    transcript, _ = folded(await collect(scripted(reply="a b"), call(n=3)), 3)
    found = [(it.index, it.message["content"], it.finish_reason) for it in transcript.choices()]
    assert found == [(0, "a b", "stop"), (1, "a b", "stop"), (2, "a b", "stop")]
    assert transcript.usage is not None
    assert transcript.usage["completion_tokens"] == 6


@pytest.mark.parametrize("options", [{}, {"include_usage": None}, {"include_usage": True}])
async def test_scripted_usage(options: Any) -> None:
    """It counts for all but those who say no; prompt and answer add up to the total."""
    transcript, _ = folded(await collect(scripted(), call(stream_options=options)))
    assert transcript.usage is not None
    counted = transcript.usage
    assert counted["prompt_tokens"] + counted["completion_tokens"] == counted["total_tokens"]


async def test_scripted_usage_refused() -> None:
    """A client that says no gets no usage chunk."""
    refused = call(stream_options={"include_usage": False})
    transcript, ending = folded(await collect(scripted(), refused))
    assert transcript.usage is None
    assert ending == UpstreamFinished()


@pytest.mark.parametrize(("after", "text"), [(0, ""), (2, "a b"), (3, "a b c"), (9, "a b c")])
@pytest.mark.parametrize(
    ("fail_with", "code"),
    [
        ("truncate", "upstream_incomplete"),
        ("error", "upstream_error"),
        ("malformed", "upstream_malformed"),
    ],
)
async def test_scripted_failures(fail_with: str, code: str, after: int, text: str) -> None:
    """It fails in the way it is told to, after the tokens it is told to say first, and never
    finishes."""
    agent = scripted(reply="a b c", fail_after_tokens=after, fail_with=fail_with)
    transcript, ending = folded(await collect(agent))
    assert transcript.choices()[0].message["content"] == text
    assert transcript.finish_reason is None
    assert isinstance(ending, UpstreamFailed)
    assert ending.failure.code == code


async def test_scripted_reset() -> None:
    """A reset raises as a broken connection does, after the tokens."""
    agent = scripted(reply="a b c", fail_after_tokens=2, fail_with="reset")
    pieces: list[bytes] = []
    with pytest.raises(AgentError) as caught:
        async with agent.open(call()) as body:
            async for data in body:
                pieces.append(data)
    assert caught.value.failure.code == "upstream_incomplete"
    assert caught.value.is_retryable
    assert folded(pieces)[0].choices()[0].message["content"] == "a b"


async def test_scripted_stall() -> None:
    """A stall says its tokens and then nothing, and can be left."""
    agent = scripted(reply="a b c", fail_after_tokens=2, fail_with="stall")
    pieces: list[bytes] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), agent.open(call()) as body:
            async for data in body:
                pieces.append(data)
    assert folded(pieces)[0].choices()[0].message["content"] == "a b"


async def test_scripted_pace() -> None:
    """No word comes before its time, counted from the start, so that the pace doesn't drift."""
    agent = scripted(reply="a b c d", tokens_per_second=50, first_token_delay_seconds=0.05)
    started = time.monotonic()
    async with agent.open(call()) as body:
        moments = [time.monotonic() - started async for _ in body]
    words = moments[1:5]
    for position, moment in enumerate(words):
        assert moment >= 0.05 + position / 50 - 0.005
    assert words[-1] < 1.0


async def test_scripted_stops_when_left() -> None:
    """Whoever leaves in the middle leaves nothing running."""
    agent = scripted(reply="a b c")
    async with agent.open(call()) as body:
        await anext(body)
        await anext(body)
    assert [data async for data in body] == []


# --- who serves what ------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("models", "model", "serves"),
    [
        ((), "it", True),  # its own name
        ((), "gpt-4o", False),
        (("*",), "anything/at:all", True),
        (("gpt-*",), "gpt-4o", True),
        (("gpt-*",), "GPT-4o", False),
        (("gpt-*",), "my-gpt-4o", False),
        (("a", "b"), "b", True),
        (("gpt-[45]*",), "gpt-5", True),
        (("gpt-[45]*",), "gpt-3", False),
    ],
)
async def test_serves(
    models: tuple[str, ...], model: str, serves: bool, closing_agents: Any
) -> None:
    """Both kinds go by name and by patterns, in which case counts."""
    assert scripted(name="it", models=models).serves(model) is serves
    agent = closing_agents(OpenAIAgent(openai_config(name="it", models=models), None))
    assert agent.serves(model) is serves


async def test_scripted_models() -> None:
    """It lists its own name and the names it was given, each once; patterns are no names."""
    agent = scripted(name="demo", models=("x", "y-*", "z?", "w[1]", "demo", "x"))
    expected = [
        {"id": name, "object": "model", "created": 0, "owned_by": "verbatim"}
        for name in ("demo", "x")
    ]
    assert await agent.models() == expected


async def test_pick_by_name_before_pattern() -> None:
    """An agent asked for by its name answers, though another's pattern comes first."""
    first, second = scripted(name="a", models=("*",)), scripted(name="b")
    directory = AgentDirectory([first, second])
    assert directory.pick("b") == (second,)
    assert directory.pick("a") == (first,)


async def test_pick_by_pattern_in_order() -> None:
    """Of several agents whose patterns fit, the first in the configuration answers."""
    first, second = scripted(name="a", models=("gpt-4*",)), scripted(name="b", models=("gpt-*",))
    directory = AgentDirectory([first, second])
    assert directory.pick("gpt-4o") == (first,)
    assert directory.pick("gpt-5") == (second,)
    assert AgentDirectory([second, first]).pick("gpt-4o") == (second,)


async def test_fallbacks_that_are_on() -> None:
    """Fallbacks come after the agent in its own order; those that are off are left out, and a
    fallback's fallbacks aren't its."""
    third = scripted(name="c", fallbacks=("a",))
    first = scripted(name="a", fallbacks=("off", "c", "b"))
    second = scripted(name="b")
    directory = AgentDirectory([first, second, third], {"off": "KEY is not set"})
    assert directory.pick("a") == (first, third, second)
    assert directory.pick("b") == (second,)
    assert directory.pick("c") == (third, first)


async def test_model_not_found() -> None:
    """The error names the agents that could be asked, and why others can't."""
    directory = AgentDirectory([scripted(name="a"), scripted(name="b")], {"o": "KEY is not set"})
    with pytest.raises(ApiError) as caught:
        directory.pick("gpt-4o")
    message = (
        "No agent serves the model 'gpt-4o'. Agents that are on: a, b. (o is off: KEY is not set)"
    )
    expected = Failure("model_not_found", message, type="invalid_request_error", param="model")
    assert caught.value.failure == expected


async def test_model_not_found_is_brief() -> None:
    """Neither a long name nor many agents make a long message."""
    directory = AgentDirectory([scripted(name=f"agent-{number}") for number in range(30)])
    with pytest.raises(ApiError) as caught:
        directory.pick("x" * 10_000)
    assert len(caught.value.failure.message) < 400
    with pytest.raises(ApiError) as caught:
        AgentDirectory([]).pick("m")
    assert caught.value.failure.message.endswith("Agents that are on: none.")


@pytest.mark.parametrize("environ", [{}, {"OPENAI_API_KEY": ""}, {"OTHER": "x"}])
async def test_agents_without_their_key_are_off(environ: dict[str, str]) -> None:
    """A missing or empty key turns the agent off, and the directory says why."""
    configs = [
        ScriptedAgentConfig(name="demo", kind="scripted"),
        openai_config(name="openai"),
        openai_config(name="local", api_key_env=None),
    ]
    directory = AgentDirectory.from_config(configs, environ)
    assert [agent.name for agent in directory.agents] == ["demo", "local"]
    assert directory.off == {"openai": "OPENAI_API_KEY is not set"}
    await directory.close()


async def test_agents_with_their_key_are_on() -> None:
    """With its key in the environment an agent is on, under whatever name the key has."""
    configs = [openai_config(name="a"), openai_config(name="b", api_key_env="B_KEY")]
    directory = AgentDirectory.from_config(configs, {"OPENAI_API_KEY": "x", "B_KEY": "y"})
    assert [agent.name for agent in directory.agents] == ["a", "b"]
    assert directory.off == {}
    await directory.close()


async def test_directory_lists_each_model_once(closing_agents: Any) -> None:
    """Two agents may list a model; the one that answers for it is the one that describes it."""
    config = openai_config(base_url=f"http://127.0.0.1:{unused_port()}/v1", models=("x", "y"))
    first, second = scripted(name="a", models=("x",)), closing_agents(OpenAIAgent(config, None))
    listed = await AgentDirectory([first, second]).models()
    assert [(model["id"], model["owned_by"]) for model in listed] == [
        ("a", "verbatim"),
        ("x", "verbatim"),
        ("y", "o"),
    ]


# --- the OpenAI agent, against backends on this machine -------------------------------------------


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


async def test_bytes_come_as_they_are(backend: Backend, make_agent: MakeAgent) -> None:
    """The body is handed on raw, as soon as it comes."""
    go_on = asyncio.Event()

    async def in_two_parts(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: {\xff")
        await go_on.wait()
        await response.write(b"}\r\n")
        return response

    backend.answer = in_two_parts
    async with make_agent().open(call()) as body:
        assert await anext(body) == b"data: {\xff"
        go_on.set()
        assert b"".join([data async for data in body]) == b"}\r\n"


async def test_request_as_sent(backend: Backend, make_agent: MakeAgent) -> None:
    """The backend gets the client's body on top of the agent's parameters, our key and trace."""
    agent = make_agent(parameters={"temperature": 0.5, "seed": 1}, preamble="Be kind.")
    await collect(agent, call(seed=2, top_k=40, stream=False, x={"y": None}))
    (request,) = backend.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["traceparent"] == TRACEPARENT
    assert request.headers["Accept"] == "text/event-stream"
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.headers["Content-Type"] == "application/json"
    assert "AsyncOpenAI" in request.headers["User-Agent"]
    assert not [name for name in request.headers if name.lower().startswith("x-stainless")]
    assert json.loads(backend.bodies[0]) == {
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
    }


async def test_odd_text_reaches_the_backend(backend: Backend, make_agent: MakeAgent) -> None:
    """Lone surrogates, NULs and emoji survive the way through the SDK."""
    messages = [{"role": "user", "content": "a\ud800\x00🙂", "\udfff": 2**63}]
    await collect(make_agent(), call(messages=messages))
    assert json.loads(backend.bodies[0])["messages"] == messages


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_large_body_reaches_the_backend(backend: Backend, make_agent: MakeAgent) -> None:
    """Pictures in a message make requests of megabytes."""
    messages = [{"role": "user", "content": "x" * (4 << 20)}]
    await collect(make_agent(), call(messages=messages))
    assert json.loads(backend.bodies[0])["messages"] == messages


async def test_environment_of_the_sdk_does_not_count(
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
async def test_model_sent(
    backend: Backend, make_agent: MakeAgent, parameters: Any, model: str, expected: str
) -> None:
    """An agent asked for by its own name uses its model, if it has one; else the client's."""
    await collect(make_agent(parameters=parameters), call(model=model))
    assert json.loads(backend.bodies[0])["model"] == expected


# --- refusals -------------------------------------------------------------------------------------


def error_json(**error: Any) -> bytes:
    return json.dumps({"error": error}).encode()


NO_MESSAGE = "The model's backend reported an error without a message."


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            error_json(message="Bad n.", type="invalid_request_error", param="n", code="bad"),
            Failure("upstream_error", "Bad n.", "invalid_request_error", "n", "bad", 400),
        ),
        (
            404,
            error_json(message="No such model.", type="x", param=None, code="model_not_found"),
            Failure("upstream_error", "No such model.", "x", None, "model_not_found", 404),
        ),
        (
            503,
            error_json(message="Loading model", type="unavailable_error", code=503),
            Failure("upstream_error", "Loading model", "unavailable_error", None, "503", 503),
        ),
        (
            500,
            b"Internal Server Error\n",
            Failure("upstream_error", "Internal Server Error", "upstream_error", status=500),
        ),
        (
            502,
            b"<html>" + b"x" * 1000,
            Failure("upstream_error", "<html>" + "x" * 194, "upstream_error", status=502),
        ),
        (
            500,
            b"",
            Failure(
                "upstream_error",
                "The backend of agent 'o' answered 500.",
                "upstream_error",
                status=500,
            ),
        ),
        (
            401,
            b'{"error": "Who are you?"}',
            Failure("upstream_error", "Who are you?", "upstream_error", status=401),
        ),
        (
            422,
            b'{"message": "No.", "type": "vllm", "code": 422}',
            Failure("upstream_error", "No.", "vllm", None, "422", 422),
        ),
        (
            404,
            b'{"detail": "Not Found"}',
            Failure("upstream_error", NO_MESSAGE, "upstream_error", status=404),
        ),
        (500, b"[1]", Failure("upstream_error", NO_MESSAGE, "upstream_error", status=500)),
        (500, b"5", Failure("upstream_error", NO_MESSAGE, "upstream_error", status=500)),
        (
            500,
            b"\xff\xfe bad \xf0",
            Failure("upstream_error", "\ufffd\ufffd bad \ufffd", "upstream_error", status=500),
        ),
    ],
)
async def test_status_errors(
    backend: Backend, make_agent: MakeAgent, status: int, body: bytes, expected: Failure
) -> None:
    """A refusal keeps the backend's status and words, whatever dress they come in."""
    backend.answers(status, body)
    assert (await refusal(make_agent())).failure == expected


@pytest.mark.parametrize(
    ("status", "is_retryable", "is_final"),
    [
        (400, False, True),
        (401, False, False),
        (403, False, False),
        (404, False, False),
        (408, True, False),
        (409, True, False),
        (413, False, True),
        (418, False, False),
        (422, False, True),
        (429, True, False),
        (500, True, False),
        (503, True, False),
        (529, True, False),
    ],
)
async def test_what_a_status_means(
    backend: Backend, make_agent: MakeAgent, status: int, is_retryable: bool, is_final: bool
) -> None:
    """What may pass is retried; what is wrong with the request itself isn't asked elsewhere."""
    backend.answers(status, b"No.")
    error = await refusal(make_agent())
    assert (error.is_retryable, error.is_final) == (is_retryable, is_final)
    assert len(backend.requests) == 1  # the SDK's own retries are off


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("3600", 3600.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", None),
        ("soon", None),
        ("-1", None),
        ("inf", None),
        ("nan", None),
    ],
)
async def test_retry_after(
    backend: Backend, make_agent: MakeAgent, text: str, seconds: float | None
) -> None:
    """A `Retry-After` in seconds is passed on; what is no time to wait counts as none."""
    backend.answers(429, error_json(message="Slow down."), retry_after=text)
    assert (await refusal(make_agent())).failure.retry_after_seconds == seconds


@pytest.mark.parametrize(
    "body",
    [
        error_json(message=f"Incorrect API key {KEY} given: {KEY}."),
        json.dumps({"error": f"Wrong key: {KEY}."}).encode(),
        f"Wrong key: {KEY}.".encode(),
        f"{'x' * 190} {KEY}".encode(),  # only its beginning is within what is quoted
        json.dumps({"error": f"{'x' * 190} {KEY}"}).encode(),
    ],
)
async def test_quoted_keys_are_masked(backend: Backend, make_agent: MakeAgent, body: bytes) -> None:
    """A backend that quotes our key doesn't tell the client, not even a part of it."""
    backend.answers(401, body)
    message = (await refusal(make_agent())).failure.message
    assert "***" in message
    assert KEY[:5] not in message


async def test_refusal_without_a_key(backend: Backend, make_agent: MakeAgent) -> None:
    """Where there is no key there is nothing to mask."""
    backend.answers(401, b"no-key-needed? No!")
    assert (await refusal(make_agent(key=None))).failure.message == "no-key-needed? No!"


# --- connections ----------------------------------------------------------------------------------


@asynccontextmanager
async def raw_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A backend that does with each connection, once its request came, what no server should."""
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def unused_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


UNREACHABLE = Failure("upstream_unreachable", "The backend of agent 'o' could not be reached.")


async def test_connection_refused(make_agent: MakeAgent) -> None:
    """A backend that isn't there may come back: the attempt may be repeated."""
    error = await refusal(make_agent(base_url=f"http://127.0.0.1:{unused_port()}/v1"))
    assert error.failure == UNREACHABLE
    assert (error.is_retryable, error.is_final) == (True, False)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\nContent-"])
async def test_no_answer_at_all(make_agent: MakeAgent, data: bytes) -> None:
    """A connection that closes before its headers are whole is the same as none."""

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    async with raw_server(hang_up) as url:
        error = await refusal(make_agent(base_url=url))
    assert error.failure == UNREACHABLE
    assert error.is_retryable


async def test_answer_that_is_not_http(make_agent: MakeAgent) -> None:
    """Something else that listens there is a failure like others, not a fault of ours."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-server\r\n")

    async with raw_server(greet) as url:
        error = await refusal(make_agent(base_url=url))
    assert error.failure.code.startswith("upstream_")
    assert error.is_retryable


async def test_connect_timeout(make_agent: MakeAgent) -> None:
    """A backend that can't be connected to in time has its own code, and may be asked again.

    On Linux, a listener whose queue of connections is full answers no more.
    """
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for client in waiting:
                client.setblocking(False)
                client.connect_ex(listener.getsockname())
            await asyncio.sleep(0.05)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            started = time.monotonic()
            error = await refusal(make_agent(base_url=url, timeouts=Timeouts(connect_seconds=0.2)))
        finally:
            for client in waiting:
                client.close()
    message = "Connecting to the backend of agent 'o' took over 0.2 s."
    assert error.failure == Failure("connect_timeout", message, type="timeout_error")
    assert error.is_retryable
    assert 0.15 <= time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (HEAD + chunked(EVENT), b""),  # no last chunk
        (HEAD + chunked(EVENT), b"ff\r\ndata:"),  # within a chunk
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + EVENT, b"data:"),
    ],
)
async def test_body_breaks_off(make_agent: MakeAgent, head: bytes, rest: bytes) -> None:
    """A body that ends against HTTP's rules is a connection that broke; what came before is kept."""
    go_on = asyncio.Event()

    async def break_off(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await go_on.wait()
        writer.write(rest)

    async with raw_server(break_off) as url:
        async with make_agent(base_url=url).open(call()) as body:
            assert await anext(body) == EVENT
            go_on.set()
            with pytest.raises(AgentError) as caught:
                assert await anext(body) == b"data:"
                await anext(body)
    message = "The connection to the backend of agent 'o' broke."
    assert caught.value.failure == Failure("upstream_incomplete", message)
    assert caught.value.is_retryable


async def test_connection_reset(make_agent: MakeAgent) -> None:
    """So is a reset."""
    go_on = asyncio.Event()

    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunked(EVENT))
        await go_on.wait()
        writer.transport.abort()

    async with raw_server(reset) as url:
        async with make_agent(base_url=url).open(call()) as body:
            assert await anext(body) == EVENT
            go_on.set()
            with pytest.raises(AgentError) as caught:
                await anext(body)
    assert caught.value.failure.code == "upstream_incomplete"


async def test_compressed_all_the_same(backend: Backend, make_agent: MakeAgent) -> None:
    """A backend that compresses unasked is understood; if it does so wrongly, it is malformed."""
    backend.answers(200, gzip.compress(EVENT), content_encoding="gzip")
    assert b"".join(await collect(make_agent())) == EVENT
    backend.answers(200, b"not gzip", content_encoding="gzip")
    error = await refusal(make_agent())
    assert error.failure.code == "upstream_malformed"
    assert error.is_retryable


@pytest.mark.parametrize("data", [b"", HEAD, HEAD + chunked(EVENT)])
async def test_leaving_hangs_up_at_once(make_agent: MakeAgent, data: bytes) -> None:
    """Cancelled in whatever phase, or left between two reads, the connection closes, so that the
    backend stops working."""
    hung_up = asyncio.Event()
    reached = asyncio.Event()

    async def wait_for_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        reached.set()
        assert await reader.read() == b""
        hung_up.set()

    async with raw_server(wait_for_the_end) as url:
        agent = make_agent(base_url=url)
        asking = asyncio.create_task(collect(agent))
        await reached.wait()
        await asyncio.sleep(0.02)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(2):
            await hung_up.wait()
        if data.endswith(chunked(EVENT)):
            hung_up.clear()
            async with agent.open(call()) as body:
                await anext(body)
            async with asyncio.timeout(2):
                await hung_up.wait()


async def test_many_connections_at_once(backend: Backend, make_agent: MakeAgent) -> None:
    """The HTTP client's usual limit of 100 connections is lifted."""
    count = 120
    all_here = asyncio.Event()

    async def wait_for_the_others(request: web.Request) -> web.StreamResponse:
        if len(backend.requests) == count:
            all_here.set()
        await all_here.wait()
        return await backend.stream(request)

    backend.answer = wait_for_the_others
    agent = make_agent()
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*[collect(agent) for _ in range(count)])
    assert [folded(pieces)[1] for pieces in answers] == [UpstreamFinished()] * count


# --- the models of a backend ----------------------------------------------------------------------


def model_list(*entries: Any) -> bytes:
    return json.dumps({"object": "list", "data": entries}).encode()


def ids(models: list[dict[str, Any]]) -> list[str]:
    return [model["id"] for model in models]


async def test_models(backend: Backend, make_agent: MakeAgent) -> None:
    """The backend's own model objects are listed as they are, with what they lack filled in."""
    backend.answers(200, model_list({"id": "x", "created": 5, "vendor": 1}, {"id": "y"}))
    assert await make_agent().models() == [
        {"id": "x", "object": "model", "created": 5, "owned_by": "o", "vendor": 1},
        {"id": "y", "object": "model", "created": 0, "owned_by": "o"},
    ]
    (request,) = backend.requests
    assert (request.method, request.path) == ("GET", "/v1/models")
    assert request.headers["Authorization"] == f"Bearer {KEY}"


async def test_models_are_those_it_serves(backend: Backend, make_agent: MakeAgent) -> None:
    """Patterns filter the backend's list; literal names are there though the backend hides them."""
    backend.answers(200, model_list({"id": "gpt-5"}, {"id": "whisper"}, {"id": "extra"}))
    agent = make_agent(models=("hidden", "gpt-*", "extra"))
    assert ids(await agent.models()) == ["hidden", "extra", "gpt-5"]


async def test_an_agent_with_a_model_of_its_own_is_listed(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """It can be asked for by its name, so its name is a model."""
    backend.answers(200, model_list({"id": "llama3"}))
    assert ids(await make_agent(parameters={"model": "llama3"}).models()) == ["o", "llama3"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"Not Found"),
        (500, b""),
        (401, error_json(message="No.")),
        (200, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"null"),
        (200, b'{"data": null}'),
        (200, b'{"data": [5]}'),
        (200, b'{"models": []}'),
        (200, b'{"data": [{"id": 5}, {"name": "x"}]}'),
    ],
)
async def test_models_that_cannot_be_listed(
    backend: Backend, make_agent: MakeAgent, status: int, body: bytes
) -> None:
    """A backend that has no list, or a bad one, contributes the literal names alone."""
    backend.answers(status, body)
    assert ids(await make_agent(models=("a", "b-*")).models()) == ["a"]


async def test_models_of_an_absent_backend(make_agent: MakeAgent) -> None:
    """A backend that isn't there doesn't hide the others' models."""
    absent = make_agent(base_url=f"http://127.0.0.1:{unused_port()}/v1", models=("a",))
    directory = AgentDirectory([absent, scripted(name="demo")])
    assert ids(await directory.models()) == ["a", "demo"]


async def test_models_are_cached(backend: Backend, make_agent: MakeAgent) -> None:
    """Pages ask at every load; the backend is asked once a minute. One that can't be asked keeps
    its last list and is asked again after some seconds."""
    agent = make_agent(models=("*",))
    with freeze_time(real_asyncio=True) as frozen:
        backend.answers(200, model_list({"id": "x"}))
        assert ids(await agent.models()) == ["x"]
        backend.answers(500, b"")
        frozen.tick(59)
        assert ids(await agent.models()) == ["x"]
        frozen.tick(2)
        assert ids(await agent.models()) == ["x"]
        backend.answers(200, model_list({"id": "y"}))
        assert ids(await agent.models()) == ["x"]
        frozen.tick(6)
        assert ids(await agent.models()) == ["y"]
    assert len(backend.requests) == 3


async def test_models_for_many_at_once(backend: Backend, make_agent: MakeAgent) -> None:
    """Pages that load together get the same whole list, for one question to the backend."""
    go_on = asyncio.Event()

    async def slowly(_request: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return web.Response(body=model_list({"id": "x"}))

    backend.answer = slowly
    agent = make_agent()
    asking = [asyncio.create_task(agent.models()) for _ in range(3)]
    while not backend.requests:
        await asyncio.sleep(0.001)
    go_on.set()
    assert [ids(models) for models in await asyncio.gather(*asking)] == [["x"]] * 3
    assert len(backend.requests) == 1


async def test_models_after_a_caller_left(backend: Backend, make_agent: MakeAgent) -> None:
    """A page that is closed while the list is on its way takes it from nobody else."""

    async def never(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    backend.answer = never
    agent = make_agent()
    asking = asyncio.create_task(agent.models())
    while not backend.requests:
        await asyncio.sleep(0.001)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    backend.answers(200, model_list({"id": "x"}))
    assert ids(await agent.models()) == ["x"]


async def test_both_kinds_are_agents(make_agent: MakeAgent) -> None:
    """What the service reads of an agent, both kinds have from their configuration."""
    common = {
        "timeouts": Timeouts(idle_seconds=1),
        "retries": 4,
        "fallbacks": ("x",),
        "max_event_bytes": 9,
    }
    for agent in (scripted(**common), make_agent(**common)):
        assert {name: getattr(agent, name) for name in common} == common
        assert agent.client_gone is None
    assert evolve(Timeouts(), idle_seconds=1) == common["timeouts"]


@pytest.mark.parametrize("key", ["sk-schlüssel", "sk-1\n"])
async def test_a_key_that_no_header_can_carry(key: str, closing_agents: Any) -> None:
    """A mangled key turns its agent off at start, with the reason, instead of failing requests."""
    directory = AgentDirectory.from_config([openai_config(api_key_env="KEY")], {"KEY": key})
    assert directory.agents == ()
    assert list(directory.off.values()) == ["KEY holds characters that no HTTP header can"]


@pytest.mark.parametrize(
    ("base_url", "is_on"),
    [("http://127.0.0.1:11434/v1", True), ("https://api.openai.com/v1", False), ("", False)],
)
async def test_a_server_of_ones_own_needs_no_key(
    base_url: str, is_on: bool, closing_agents: Any
) -> None:
    """`OPENAI_BASE_URL` alone turns the agent on, unless it points to OpenAI, which wants a key."""
    environ = {"OPENAI_BASE_URL": base_url}
    config = load_config(None, environ)
    directory = AgentDirectory.from_config(config.agents, environ)
    assert ("openai" in [agent.name for agent in directory.agents]) is is_on
    await directory.close()
