"""Odd answers from a backend's socket to the client and the record, which agree."""

import json
from typing import Any

import pytest
from openai import AsyncOpenAI

from service.settings.access import AuthConfig, LimitsConfig
from statemachine import State
from tests.service.callers.test_auth import ANNE, api_key
from tests.service.conftest import QUESTION, Service, ServiceMaker, agent_for
from tests.service.stage.backend import Backend, Exchange, Script, chunk, event_bytes

DONE = b"data: [DONE]\n\n"


def answering(*payloads: Any, tail: bytes = DONE) -> Script:
    """A backend that says these chunks and ends soundly."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        for payload in payloads:
            await exchange.event(payload)
        await exchange.send(tail)
        await exchange.end()

    return script


def call(id: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": 0, "id": id, "type": "function", "function": function}


ODD = (
    chunk({"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm"}]}, ""),
    chunk({"role": "assistant", "content": [{"type": "text", "text": "So"}], "tool_calls": []}, ""),
    chunk({"tool_calls": [call("a", "add", "{}"), call("b", "mul", "{}")]}, ""),
    chunk({"tool_calls": [call("b", "mul", " ")]}, ""),
    {**chunk({}, "tool_calls"), "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
)


async def test_the_sdk_folds_what_is_kept(service: Service, backend: Backend) -> None:
    """The official SDK's `stream` helper has the stored message, whatever the backend's shapes."""
    backend.script = answering(*ODD)
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="any") as client:
        async with client.chat.completions.stream(model="any", messages=QUESTION) as stream:
            message = (await stream.get_final_completion()).choices[0].message
    record = await service.kept.one()
    (choice,) = record.choices
    assert (State.COMPLETED, "tool_calls") == (record.state, record.finish_reason)
    dumped = json.loads(message.model_dump_json(exclude_unset=True))
    folded = {key: value for key, value in dumped.items() if value is not None}
    for item in folded["tool_calls"]:
        item["function"].pop("parsed_arguments", None)
    assert {
        "role": "assistant",
        "content": "So",
        "reasoning_content": "Hm",
        "tool_calls": [call("a", "add", "{}"), {**call("b", "mul", "{} "), "index": 1}],
    } == folded
    assert folded == choice.message


async def test_usage_comes_once_and_last(service: Service, backend: Backend) -> None:
    """However often the backend says it, and only to a client that asked."""
    backend.script = answering(*ODD)
    streamed = await service.stream(stream_options={"include_usage": True})
    *others, last = streamed.chunks
    assert {None} == {each["usage"] for each in others}
    assert ([], 2) == (last["choices"], last["usage"]["completion_tokens"])
    assert not any("usage" in each for each in (await service.stream()).chunks)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_cut_off_is_a_failure(
    service: Service, backend: Backend, stream: bool
) -> None:
    """vLLM that is stopped says `abort` in perfect form: usage and `[DONE]` included."""
    usage = {**chunk({}), "choices": [], "usage": {"completion_tokens": 2}}
    backend.script = answering(chunk({"content": "Hel"}), chunk({}, "abort"), usage)
    streamed = await service.stream(stream=stream)
    assert (200 if stream else 502, "upstream_incomplete") == (
        streamed.status,
        streamed.error["code"],
    )
    if stream:
        assert not streamed.is_done
        assert {None} == {each["choices"][0]["finish_reason"] for each in streamed.chunks}
    record = await service.kept.one()
    assert (State.FAILED, None, False) == (record.state, record.finish_reason, record.whole)
    assert ("Hel", 2) == (record.choices[0].message["content"], record.token_count)


async def test_a_configured_reason_cuts_off(backend: Backend, make_service: ServiceMaker) -> None:
    """An agent's list is the one that counts."""
    backend.script = answering(chunk({"content": "Hel"}), chunk({}, "Eos"))
    service = await make_service(agent_for(backend, cut_off_reasons=("eos",)))
    assert "upstream_incomplete" == (await service.stream()).error["code"]


@pytest.mark.parametrize("stream", [True, False])
async def test_too_large_an_answer_is_stopped(
    backend: Backend, make_service: ServiceMaker, stream: bool
) -> None:
    """The backend is hung up on, the client told, and what it was shown is kept."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        while not exchange.client_closed.is_set():
            await exchange.send(event_bytes(chunk({"content": "word " * 20})) * 10)

    backend.script = script
    service = await make_service(agent_for(backend), limits=LimitsConfig(max_answer_bytes=300_000))
    streamed = await service.stream(stream=stream)
    assert "answer_too_large" == streamed.error["code"]
    assert (200 if stream else 502) == streamed.status
    record = await service.kept.one()
    assert record.failure is not None
    assert (State.FAILED, "answer_too_large") == (record.state, record.failure.code)
    content = record.choices[0].message["content"]
    assert 300_000 < len(content) < 1_000_000
    if stream:
        assert content == streamed.text
    await backend.exchanges[0].client_closed.wait()


async def test_a_caller_may_have_a_limit_of_its_own(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """As with the other limits, the key's own goes before that of all."""
    backend.script = answering(chunk({"content": "word " * 100}), chunk({}, "stop"))
    service = await make_service(
        agent_for(backend),
        limits=LimitsConfig(max_answer_bytes=100),
        auth=AuthConfig((api_key("anne", ANNE, max_answer_bytes=1000),)),
    )
    service.key = ANNE
    assert (await service.stream()).is_done
