"""The main job over real sockets: a backend's tokens reach the client and the store."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from service.agents.scripted import INTRODUCTION
from service.settings.config import ServerConfig
from statemachine import State
from tests.service.conftest import QUESTION, Service, ServiceMaker, agent_for
from tests.service.stage.backend import Backend, Exchange, chunk, event_bytes, say


async def test_a_stream_is_in_openais_format(service: Service) -> None:
    """Every event is a chunk with one id, our id; the model is the one asked for; `[DONE]` ends."""
    streamed = await service.stream(model="gpt-asked")
    assert 200 == streamed.status
    assert "text/event-stream; charset=utf-8" == streamed.headers["Content-Type"]
    assert "no-cache" == streamed.headers["Cache-Control"]
    assert "Hello world!" == streamed.text
    assert streamed.is_done
    (completion_id,) = {item["id"] for item in streamed.chunks}
    assert completion_id.startswith("chatcmpl-")
    assert {"gpt-asked"} == {item["model"] for item in streamed.chunks}
    assert {"chat.completion.chunk"} == {item["object"] for item in streamed.chunks}
    assert "stop" == streamed.chunks[-1]["choices"][0]["finish_reason"]


async def test_who_saw_done_can_read_the_record(service: Service) -> None:
    """The commit comes before `[DONE]`, with the text as the client saw it."""
    streamed = await service.stream()
    (record,) = service.kept.records
    completion = await service.store.find(streamed.chunks[0]["id"])
    assert completion is not None
    assert completion.state is State.COMPLETED
    assert ("stop", "backend-1") == (completion.finish_reason, completion.upstream_id)
    (message,) = await service.store.answer(completion.completion_id)
    assert (message.content, message.state) == (streamed.text, "complete")
    assert 4 == record.chunk_count


async def test_the_first_word_leaves_before_the_second_is_made(
    service: Service, backend: Backend
) -> None:
    """The client has the first word while the backend hasn't thought of the next."""
    client_has_it = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("first")
        await client_has_it.wait()
        await exchange.words(" second")
        await exchange.finish()

    backend.script = script
    async with service.post() as response:
        seen = b""
        async with asyncio.timeout(5):
            while b"first" not in seen:
                seen += await response.content.readany()
        client_has_it.set()
        seen += await response.read()
    assert b" second" in seen


async def test_a_word_is_in_the_journal_before_the_client_has_it(
    service: Service, backend: Backend, tmp_path: Path
) -> None:
    """A word that takes the shortcut past the relay's task is written down first too."""
    texts = [f"word-{number}" for number in range(6)]
    seen = b""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        for text in texts:
            await exchange.words(text)
            while text.encode() not in seen:
                await asyncio.sleep(0.001)
        await exchange.finish()

    backend.script = script
    async with service.post() as response:
        for text in texts:
            async with asyncio.timeout(5):
                while text.encode() not in seen:
                    seen += await response.content.readany()
            segments = (tmp_path / "journal").rglob("*.jsonl")
            assert text.encode() in b"".join(path.read_bytes() for path in segments)
        await response.read()


async def test_a_plain_request_gets_one_object_of_the_same_session(service: Service) -> None:
    """Without `stream` the upstream is streamed and the answer kept all the same."""
    async with service.post(stream=False) as response:
        body = await response.json()
    assert "chat.completion" == body["object"]
    assert "Hello world!" == body["choices"][0]["message"]["content"]
    assert "stop" == body["choices"][0]["finish_reason"]
    assert body["usage"]["estimated"] is True
    record = await service.kept.one()
    assert record.completion_id == body["id"]


async def test_the_upstream_is_asked_for_a_stream_with_usage(
    service: Service, backend: Backend
) -> None:
    """Whatever the client asked, the upstream streams and counts; all else goes as it came."""
    request = {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "top_k": 3,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    async with service.post(request):
        pass
    (exchange,) = backend.exchanges
    assert exchange.body == {
        **request,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "Bearer backend-key" == exchange.headers["authorization"]


@pytest.mark.parametrize("asked", [True, False, None])
async def test_usage_is_for_those_who_asked(
    service: Service, backend: Backend, asked: bool | None
) -> None:
    """Those who asked get one last chunk with the totals and `usage: null` on the others, the rest
    no trace of it; an explicit no goes upstream too."""
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.event(chunk({"content": "Hi"}, usage=None))
        await exchange.event(chunk({}, "stop", usage=None))
        await exchange.event({**chunk({}), "choices": [], "usage": usage})
        await exchange.done()

    backend.script = script
    options = {} if asked is None else {"stream_options": {"include_usage": asked}}
    streamed = await service.stream(**options)
    sent = [item.get("usage", "absent") for item in streamed.chunks]
    if asked:
        assert sent == [None, None, usage]
        assert [] == streamed.chunks[-1]["choices"]
    else:
        assert ["absent", "absent"] == sent
    upstream_asked = backend.exchanges[0].body["stream_options"]["include_usage"]
    assert upstream_asked is (asked is not False)
    record = await service.kept.one()
    assert (3, "provider") == (record.token_count, record.usage_source)


async def test_unknown_fields_pass_untouched(service: Service, backend: Backend) -> None:
    """Reasoning, log probabilities, citations and what vendors invent reach the client as sent."""
    payload = chunk({"role": "assistant", "content": "Hi", "reasoning_content": "Hm."}, None)
    payload["choices"][0]["logprobs"] = {"content": [{"token": "Hi", "logprob": -0.5}]}
    payload |= {"citations": ["https://example.org"], "system_fingerprint": "fp_1"}

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.event(payload)
        await exchange.finish()

    backend.script = script
    streamed = await service.stream()
    assert streamed.chunks[0] == {**payload, "id": streamed.chunks[0]["id"], "model": "any"}
    record = await service.kept.one()
    assert {"citations": ["https://example.org"], "system_fingerprint": "fp_1"} == record.extra
    assert "Hm." == record.choices[0].message["reasoning_content"]


async def test_every_event_of_one_packet_reaches_the_client(
    service: Service, backend: Backend
) -> None:
    """What came in one read goes out in one write."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.send(b"".join(event_bytes(chunk({"content": str(i)})) for i in range(50)))
        await exchange.finish()

    backend.script = script
    streamed = await service.stream()
    assert streamed.text == "".join(map(str, range(50)))


async def test_an_event_cut_into_single_bytes_arrives_whole(
    service: Service, backend: Backend
) -> None:
    """An event is the same however its bytes were split."""
    data = event_bytes(chunk({"content": "Grüße 🌍"}))

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        for position in range(len(data)):
            await exchange.send(data[position : position + 1])
        await exchange.finish()

    backend.script = script
    assert "Grüße 🌍" == (await service.stream()).text


async def test_nul_and_surrogates_survive(service: Service, backend: Backend) -> None:
    """A NUL and a lone surrogate reach the client and come back from the store exactly."""
    text = "a\x00b\ud83dc"
    backend.script = say(text)
    streamed = await service.stream(messages=[{"role": "user", "content": "x\x00\udc00"}])
    assert streamed.text == text
    assert "x\x00\udc00" == backend.exchanges[0].body["messages"][0]["content"]
    (message,) = await service.store.answer(streamed.chunks[0]["id"])
    assert message.content == text


async def test_interleaved_choices_are_kept_one_by_one(service: Service, backend: Backend) -> None:
    """The client gets them as they come."""

    def choice(index: int, text: str | None, reason: str | None = None) -> Any:
        payload = chunk({"content": text} if text else {}, reason)
        payload["choices"][0]["index"] = index
        return payload

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        for index, text in ((0, "a"), (1, "x"), (0, "b")):
            await exchange.event(choice(index, text))
        await exchange.event(choice(1, None, "length"))
        await exchange.event(choice(0, None, "stop"))
        await exchange.done()

    backend.script = script
    streamed = await service.stream(n=2)
    answers = await service.store.answer(streamed.chunks[0]["id"])
    assert [(0, "ab"), (1, "x")] == [(answer.choice_index, answer.content) for answer in answers]


async def test_a_finish_reason_without_done_ends_an_answer_well(
    service: Service, backend: Backend
) -> None:
    """A finish reason for every choice is enough, even if the connection is cut."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hi")
        await exchange.event(chunk({}, "stop"))
        await exchange.cut()

    backend.script = script
    streamed = await service.stream()
    assert streamed.is_done
    assert (await service.kept.one()).state is State.COMPLETED


async def test_done_alone_ends_well_and_invents_nothing(service: Service, backend: Backend) -> None:
    """`[DONE]` without a finish reason completes the answer; its finish reason stays null."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hi")
        await exchange.done()

    backend.script = script
    streamed = await service.stream()
    assert streamed.is_done
    assert all(item["choices"][0]["finish_reason"] is None for item in streamed.chunks)
    record = await service.kept.one()
    assert (State.COMPLETED, None) == (record.state, record.finish_reason)


async def test_done_and_nothing_else_is_no_answer(service: Service, backend: Backend) -> None:
    """A backend that says it is done, and never began, has failed."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.done()

    backend.script = script
    streamed = await service.stream()
    assert (502, "upstream_incomplete") == (streamed.status, streamed.error["code"])
    record = await service.kept.one()
    assert (State.FAILED, 0) == (record.state, record.token_count)


async def test_the_demo_agent_answers_without_any_key(make_service: ServiceMaker) -> None:
    """The embedded default gives its introduction to whoever asks."""
    service = await make_service()
    streamed = await service.stream(model="demo")
    assert INTRODUCTION == streamed.text


async def test_the_models_of_the_upstreams_are_listed(service: Service, backend: Backend) -> None:
    """`GET /v1/models` lists what the upstreams offer."""

    async def script(exchange: Exchange) -> None:
        await exchange.json(200, {"object": "list", "data": [{"id": "llama", "object": "model"}]})

    backend.script = script
    async with service.http.get(f"{service.url}/v1/models") as response:
        body = await response.json()
    assert "list" == body["object"]
    assert ["llama"] == [model["id"] for model in body["data"]]


async def test_preamble_and_parameters_are_defaults(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """An agent's preamble and parameters apply where the client's request has none; asked by its
    own name, the agent uses its own model."""
    agent = agent_for(
        backend,
        name="poet",
        preamble="You are a poet.",
        parameters={"model": "base-model", "temperature": 0.1},
    )
    service = await make_service(agent)
    await service.stream(model="poet")
    await service.stream(model="other", temperature=0.9)
    first, second = (exchange.body for exchange in backend.exchanges)
    assert [{"role": "system", "content": "You are a poet."}, *QUESTION] == first["messages"]
    assert ("base-model", 0.1) == (first["model"], first["temperature"])
    assert ("other", 0.9) == (second["model"], second["temperature"])


async def test_a_header_or_metadata_names_the_conversation(service: Service) -> None:
    """Requests with the same key are one conversation, and one without a key is its own."""
    ids = []
    for headers, metadata in (
        ({"X-OpenWebUI-Chat-Id": "c1"}, {}),
        ({"X-Conversation-Id": "c1", "X-Session-Id": "other"}, {}),
        ({"x-session-id": "c1"}, {"conversation_id": "other"}),
        ({}, {"conversation_id": "c1"}),
        ({}, {}),
    ):
        body = {"model": "m", "messages": QUESTION, "metadata": metadata}
        url = f"{service.url}/v1/chat/completions"
        async with service.http.post(url, json=body, headers=headers) as response:
            completion = await service.store.find((await response.json())["id"])
            assert completion is not None
            ids.append(completion.conversation_id)
    *named, unnamed = ids
    assert 1 == len(set(named))
    assert unnamed not in named


async def test_the_headers_that_name_a_conversation_are_configurable(
    make_service: ServiceMaker,
) -> None:
    """The first of the configured headers that a request has counts, and no other does."""
    service = await make_service(server=ServerConfig(conversation_headers=("X-First", "X-Second")))
    names = {
        "one": {"X-First": "one", "X-Second": "two"},
        "two": {"x-second": "two", "X-Conversation-Id": "three"},
        None: {"X-Conversation-Id": "three"},
    }
    for expected, headers in names.items():
        body = {"model": "m", "messages": QUESTION}
        url = f"{service.url}/v1/chat/completions"
        async with service.http.post(url, json=body, headers=headers) as response:
            assert 200 == response.status
        assert expected == service.kept.records[-1].request.conversation_key


async def test_the_body_ends_right_after_done(service: Service) -> None:
    """Open WebUI keeps a message unfinished until the body ends; it ends with `[DONE]`."""
    streamed = await service.stream()
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert json.loads(streamed.data[0])
