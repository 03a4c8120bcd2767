"""A backend that misbehaves in every way we know: what the client is told, and what is kept."""

import asyncio
import socket
from typing import Any

import pytest

from service.settings.config import ScriptedAgentConfig, Timeouts
from statemachine import State
from tests.service.conftest import ServiceMaker, agent_for
from tests.service.stage.backend import Backend, Exchange, Script, chunk, event_bytes, say


async def reset(exchange: Exchange) -> None:
    await exchange.reset()


async def cut(exchange: Exchange) -> None:
    await exchange.cut()


async def end(exchange: Exchange) -> None:
    await exchange.end()


async def half_event(exchange: Exchange) -> None:
    await exchange.send(event_bytes(chunk({"content": "never whole"}))[:40])
    await exchange.end()


async def not_json(exchange: Exchange) -> None:
    await exchange.send(b"data: {oops}\n\n")


async def not_utf8(exchange: Exchange) -> None:
    await exchange.send(b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n')


async def not_a_chunk(exchange: Exchange) -> None:
    await exchange.send(b"data: [1, 2]\n\n")


async def too_large(exchange: Exchange) -> None:
    await exchange.send(b"data: " + b"x" * 2000)
    await asyncio.sleep(5)


async def error_object(exchange: Exchange) -> None:
    await exchange.event({"error": {"message": "GPU on fire", "type": "hot", "code": 503}})


async def error_text(exchange: Exchange) -> None:
    await exchange.event({"error": "GPU on fire"})


async def error_beside_choices(exchange: Exchange) -> None:
    await exchange.event({**chunk({"content": "!"}), "error": {"message": "GPU on fire"}})


async def error_event(exchange: Exchange) -> None:
    await exchange.send(b'event: error\ndata: {"message": "GPU on fire"}\n\n')


BREAKS: list[tuple[Script, str]] = [
    (reset, "upstream_incomplete"),
    (cut, "upstream_incomplete"),
    (end, "upstream_incomplete"),
    (half_event, "upstream_incomplete"),
    (not_json, "upstream_malformed"),
    (not_utf8, "upstream_malformed"),
    (not_a_chunk, "upstream_malformed"),
    (too_large, "upstream_malformed"),
    (error_object, "503"),
    (error_text, "upstream_error"),
    (error_beside_choices, "upstream_error"),
    (error_event, "upstream_error"),
]


@pytest.mark.parametrize(("break_off", "code"), BREAKS)
async def test_a_break_mid_stream_keeps_the_words_and_is_told_truthfully(
    backend: Backend, make_service: ServiceMaker, break_off: Script, code: str
) -> None:
    """The client keeps the words before the break and sees neither `[DONE]` nor a finish reason;
    the row holds the same words, as partial."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hel", "lo")
        await break_off(exchange)

    backend.script = script
    service = await make_service(agent_for(backend, max_event_bytes=1000))
    streamed = await service.stream()
    assert (200, "Hello") == (streamed.status, streamed.text)
    assert streamed.error["code"] == code
    assert {"message", "type", "param", "code"} == set(streamed.error)
    assert not streamed.is_done
    assert all(item["choices"][0]["finish_reason"] is None for item in streamed.chunks)
    completion = await service.store.find(streamed.chunks[0]["id"])
    assert completion is not None
    assert (State.FAILED, None) == (completion.state, completion.finish_reason)
    assert completion.error is not None
    assert completion.error["code"] == code
    (message,) = await service.store.answer(completion.completion_id)
    assert ("Hello", "partial") == (message.content, message.state)


@pytest.mark.parametrize(("break_off", "code"), BREAKS)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_break_before_the_first_token_is_an_http_error(
    backend: Backend, make_service: ServiceMaker, break_off: Script, code: str, stream: bool
) -> None:
    """This holds streaming or not, a role and comments count as no token, and the failed
    completion is kept."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.send(b": thinking\n\n")
        await exchange.event(chunk({"role": "assistant", "content": ""}))
        await break_off(exchange)

    backend.script = script
    service = await make_service(agent_for(backend, max_event_bytes=1000))
    streamed = await service.stream(stream=stream)
    assert streamed.status == (int(code) if code.isdigit() else 502)
    assert streamed.error["code"] == code
    assert streamed.headers["x-request-id"]
    record = await service.kept.one()
    assert record.state is State.FAILED
    assert 0 == record.chunk_count


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (
            400,
            {"error": {"message": "Bad n", "param": "n", "code": None}},
            "upstream_error",
            "Bad n",
        ),
        (
            404,
            {"error": {"message": "No model", "code": "model_not_found"}},
            "model_not_found",
            None,
        ),
        (429, {"error": {"message": "Slow down", "code": "rate_limit"}}, "rate_limit", None),
        (500, b"it broke", "upstream_error", "it broke"),
        (503, {"error": {"message": "Loading model", "code": 503}}, "503", "Loading model"),
    ],
)
async def test_a_refusal_is_passed_on_with_its_status_message_and_code(
    backend: Backend,
    make_service: ServiceMaker,
    stream: bool,
    status: int,
    body: Any,
    code: str,
    message: str | None,
) -> None:
    """The upstream's `Retry-After` goes along."""

    async def script(exchange: Exchange) -> None:
        await exchange.json(status, body, Retry_After="7")

    backend.script = script
    service = await make_service(agent_for(backend))
    streamed = await service.stream(stream=stream)
    assert (streamed.status, streamed.error["code"]) == (status, code)
    assert message is None or streamed.error["message"] == message
    assert "7" == streamed.headers["Retry-After"]
    assert (await service.kept.one()).state is State.FAILED


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "upstream_incomplete"),
        (b'{"error": {"message": "no", "code": "x"}}', "x"),
        (b'{"choices": []}', "upstream_malformed"),
        (b"<html>Hello</html>", "upstream_malformed"),
    ],
)
async def test_a_200_that_is_no_stream_is_a_failure(
    backend: Backend, make_service: ServiceMaker, body: bytes, code: str
) -> None:
    """The body may be empty, an error's JSON, or something else entirely."""

    async def script(exchange: Exchange) -> None:
        await exchange.start(200, "application/json")
        await exchange.send(body)
        await exchange.end()

    backend.script = script
    service = await make_service(agent_for(backend))
    streamed = await service.stream()
    assert (streamed.status, streamed.error["code"]) == (502, code)


async def test_an_error_after_every_finish_reason_is_a_failure(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """The message is whole all the same."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hello")
        await exchange.event(chunk({}, "stop"))
        await exchange.event({"error": {"message": "Oops"}})

    backend.script = script
    service = await make_service(agent_for(backend))
    streamed = await service.stream()
    assert "upstream_error" == streamed.error["code"]
    assert not streamed.is_done
    record = await service.kept.one()
    assert (State.FAILED, "stop", True) == (record.state, record.finish_reason, record.whole)


async def test_a_backend_that_isnt_there_is_unreachable(
    make_service: ServiceMaker, backend: Backend
) -> None:
    """The client gets a 502 with `upstream_unreachable`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    service = await make_service(agent_for(backend, base_url=f"http://127.0.0.1:{port}/v1"))
    streamed = await service.stream()
    assert (502, "upstream_unreachable") == (streamed.status, streamed.error["code"])


async def test_a_backend_without_a_token_runs_into_its_deadline(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """A 200 and comments are no token; the client gets a 504 with `first_token_timeout`."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        while True:
            await exchange.send(b": still here\n\n")
            await asyncio.sleep(0.05)

    backend.script = script
    timeouts = Timeouts(first_token_seconds=0.3)
    service = await make_service(agent_for(backend, timeouts=timeouts))
    streamed = await service.stream()
    assert (504, "first_token_timeout") == (streamed.status, streamed.error["code"])


async def test_silence_between_tokens_ends_the_stream(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """Comments don't feed the idle deadline, the upstream is closed, and the words before are
    kept."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hel")
        while True:
            await exchange.send(b": still here\n\n")
            await asyncio.sleep(0.05)

    backend.script = script
    service = await make_service(agent_for(backend, timeouts=Timeouts(idle_seconds=0.3)))
    streamed = await service.stream()
    assert ("Hel", "idle_timeout") == (streamed.text, streamed.error["code"])
    async with asyncio.timeout(1):
        await backend.exchanges[0].client_closed.wait()
    assert "Hel" == (await service.kept.one()).choices[0].message["content"]


async def test_a_completion_ends_at_total_seconds_however_lively(
    make_service: ServiceMaker,
) -> None:
    """The words up to then are kept as the client saw them."""
    agent = ScriptedAgentConfig(
        name="demo", kind="scripted", tokens_per_second=50, timeouts=Timeouts(total_seconds=0.3)
    )
    service = await make_service(agent)
    streamed = await service.stream(model="demo")
    assert "total_timeout" == streamed.error["code"]
    record = await service.kept.one()
    assert record.choices[0].message["content"] == streamed.text != ""


async def test_a_retry_leaves_no_trace_at_the_client(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """A failure before the first token is retried; the client sees one clean answer."""

    async def flaky(exchange: Exchange) -> None:
        backend.script = say("Hi")
        await exchange.start()
        await exchange.event(chunk({"role": "assistant", "content": ""}))
        await exchange.reset()

    backend.script = flaky
    service = await make_service(agent_for(backend, retries=2))
    streamed = await service.stream()
    assert ("Hi", True) == (streamed.text, streamed.is_done)
    assert 2 == len(streamed.chunks)
    assert 2 == len(backend.exchanges)


async def test_nothing_is_retried_once_a_word_was_shown(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """Once a word was shown the upstream's failure is the stream's end."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hi")
        await exchange.reset()

    backend.script = script
    service = await make_service(agent_for(backend, retries=5))
    assert "upstream_incomplete" == (await service.stream()).error["code"]
    assert 1 == len(backend.exchanges)


async def test_a_fallback_answers_where_the_first_agent_fails(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """The row names the agent that answered."""

    async def script(exchange: Exchange) -> None:
        await exchange.json(503, {"error": {"message": "Loading"}})

    backend.script = script
    service = await make_service(
        agent_for(backend, fallbacks=("demo",)),
        ScriptedAgentConfig(
            name="demo", kind="scripted", reply="Hi there.", tokens_per_second=1000
        ),
    )
    streamed = await service.stream()
    assert ("Hi there.", True) == (streamed.text, streamed.is_done)
    assert "demo" == (await service.kept.one()).agent


async def test_a_fallback_uses_its_own_model(backend: Backend, make_service: ServiceMaker) -> None:
    """A fallback can't know the client's model; it uses the one of its parameters, if any."""

    async def script(exchange: Exchange) -> None:
        backend.script = say("Hi")
        await exchange.json(503, {"error": {"message": "Loading"}})

    backend.script = script
    service = await make_service(
        agent_for(backend, fallbacks=("other",)),
        agent_for(backend, name="other", models=(), parameters={"model": "other-model"}),
    )
    assert "Hi" == (await service.stream(model="asked-model")).text
    models = [exchange.body["model"] for exchange in backend.exchanges]
    assert ["asked-model", "other-model"] == models


@pytest.mark.parametrize("fail_with", ["reset", "error", "truncate", "malformed"])
async def test_words_before_a_scripted_failure_are_kept(
    make_service: ServiceMaker, fail_with: Any
) -> None:
    """The built-in agent can be told to fail in each of these ways."""
    agent = ScriptedAgentConfig(
        name="demo",
        kind="scripted",
        reply="one two three",
        tokens_per_second=1000,
        fail_after_tokens=2,
        fail_with=fail_with,
    )
    service = await make_service(agent)
    streamed = await service.stream(model="demo")
    assert ("one two", False) == (streamed.text, streamed.is_done)
    assert streamed.error is not None
    record = await service.kept.one()
    assert "one two" == record.choices[0].message["content"]


async def test_a_chunk_nested_too_deeply_is_malformed(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """The words before such a chunk are kept."""
    deep = b'{"choices":[{"index":0,"delta":{"x":' + b"[" * 900 + b"]" * 900 + b"}}]}"

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hello")
        await exchange.send(b"data: " + deep + b"\n\n")
        await exchange.client_closed.wait()

    backend.script = script
    service = await make_service(agent_for(backend))
    streamed = await service.stream()
    assert ("Hello", "upstream_malformed") == (streamed.text, streamed.error["code"])
    record = await service.kept.one()
    assert "Hello" == record.choices[0].message["content"]
