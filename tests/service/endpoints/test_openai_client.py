"""The official openai SDK as client, over real sockets, with the answers in a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

from db.postgres.store import PostgresStore
from service.settings.config import DatabaseConfig, SseConfig
from statemachine import State
from tests.service.conftest import QUESTION, Service, ServiceMaker, agent_for
from tests.service.stage.backend import Backend, Exchange, chunk, say


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(database_url)
    yield store
    await store.close()


@pytest.fixture
async def kept_in_postgres(
    backend: Backend, make_service: ServiceMaker, store: PostgresStore
) -> Service:
    return await make_service(
        agent_for(backend),
        store=store,
        sse=SseConfig(keep_alive_interval_seconds=0.5),
        database=DatabaseConfig(commit_timeout_seconds=30.0),  # rows are read once `[DONE]` came
    )


@pytest.fixture
async def client(kept_in_postgres: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{kept_in_postgres.url}/v1", api_key="any", max_retries=0
    ) as client:
        yield client


async def read(client: openai.AsyncOpenAI, **options: object) -> tuple[str, str, str | None]:
    """Stream one answer: its text, its id, its finish reason."""
    text, ids, reason = "", set(), None
    stream = await client.chat.completions.create(
        model="m",
        messages=QUESTION,
        stream=True,
        **options,  # type: ignore[call-overload]
    )
    async for item in stream:
        ids.add(item.id)
        text += item.choices[0].delta.content or ""
        reason = item.choices[0].finish_reason or reason
    (completion_id,) = ids
    return text, completion_id, reason


async def test_the_sdks_text_is_that_of_the_row(
    client: openai.AsyncOpenAI, store: PostgresStore
) -> None:
    """What the SDK collects is what `messages` holds, and the completion is there with it."""
    text, completion_id, reason = await read(client)
    assert ("Hello world!", "stop") == (text, reason)
    completion = await store.find(completion_id)
    assert completion is not None
    assert completion.state is State.COMPLETED
    (answer,) = await store.answer(completion_id)
    assert (answer.content, answer.role, answer.state) == (text, "assistant", "complete")
    thread = await store.thread(answer.digest)
    assert [(message.role, message.content) for message in thread] == [
        ("user", "Say hello."),
        ("assistant", text),
    ]


async def test_nul_and_surrogates_survive_postgres(
    client: openai.AsyncOpenAI, store: PostgresStore, backend: Backend
) -> None:
    """PostgreSQL refuses NUL and half characters; the answer comes back exactly all the same."""
    backend.script = say("a\x00b", "\ud83d", "c")
    text, completion_id, _ = await read(client)
    assert "a\x00b\ud83dc" == text
    (answer,) = await store.answer(completion_id)
    assert answer.content == text


async def test_a_broken_answer_raises_and_its_words_are_kept(
    client: openai.AsyncOpenAI, store: PostgresStore, backend: Backend
) -> None:
    """The SDK raises on our error event, with the code; the row holds the words shown."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hel", "lo")
        await exchange.reset()

    backend.script = script
    stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
    text, completion_id = "", ""
    with pytest.raises(openai.APIError) as caught:
        async for item in stream:
            text += item.choices[0].delta.content or ""
            completion_id = item.id
    assert ("Hello", "upstream_incomplete") == (text, caught.value.code)
    completion = await store.find(completion_id)
    assert completion is not None
    assert (State.FAILED, None) == (completion.state, completion.finish_reason)
    (answer,) = await store.answer(completion_id)
    assert ("Hello", "partial") == (answer.content, answer.state)


async def test_leaving_the_loop_keeps_the_partial_answer(
    client: openai.AsyncOpenAI, store: PostgresStore, backend: Backend
) -> None:
    """A user who stops reading and closes leaves a partial answer in the table."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hello")
        await exchange.client_closed.wait()

    backend.script = script
    stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
    item = await anext(aiter(stream))
    await stream.close()
    async with asyncio.timeout(5):
        while (completion := await store.find(item.id)) is None:
            await asyncio.sleep(0.01)
    assert completion.state is State.CLIENT_GONE
    (answer,) = await store.answer(item.id)
    assert ("Hello", "partial") == (answer.content, answer.state)


async def test_pings_are_invisible_to_the_sdk(client: openai.AsyncOpenAI, backend: Backend) -> None:
    """Comments before the first token and between tokens are invisible to the SDK."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await asyncio.sleep(1.1)
        await exchange.words("Hel")
        await asyncio.sleep(1.1)
        await exchange.words("lo")
        await exchange.finish()

    backend.script = script
    text, _, reason = await read(client)
    assert ("Hello", "stop") == (text, reason)


async def test_usage_comes_in_one_last_chunk(client: openai.AsyncOpenAI) -> None:
    """A client that asks for usage gets one last chunk with totals, here estimated."""
    stream = await client.chat.completions.create(
        model="m", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    items = [item async for item in stream]
    assert [] == items[-1].choices
    assert items[-1].usage is not None
    assert 3 == items[-1].usage.completion_tokens
    assert all(item.usage is None for item in items[:-1])


async def test_a_plain_completion_is_parsed_by_the_sdk(
    client: openai.AsyncOpenAI, store: PostgresStore
) -> None:
    """Without streaming the SDK parses our object, usage and ids included."""
    response = await client.chat.completions.with_raw_response.create(model="m", messages=QUESTION)
    completion = response.parse()
    assert "Hello world!" == completion.choices[0].message.content
    assert completion._request_id == response.headers["x-request-id"]
    assert await store.find(completion.id) is not None


async def test_tool_calls_stream_in_pieces_and_are_kept_whole(
    client: openai.AsyncOpenAI, store: PostgresStore, backend: Backend
) -> None:
    """Tool calls stream in pieces and are kept whole beside the content."""
    call = {"index": 0, "id": "call_1", "type": "function"}

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        first = {**call, "function": {"name": "add", "arguments": ""}}
        await exchange.event(chunk({"role": "assistant", "content": None, "tool_calls": [first]}))
        for piece in ('{"a"', ": 1}"):
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
            await exchange.event(chunk(delta))
        await exchange.finish("tool_calls")

    backend.script = script
    async with client.chat.completions.stream(model="m", messages=QUESTION) as stream:
        final = await stream.get_final_completion()
    (tool_call,) = final.choices[0].message.tool_calls or []
    assert '{"a": 1}' == tool_call.function.arguments
    (answer,) = await store.answer(final.id)
    assert answer.content is None
    assert answer.parts is not None
    assert {"name": "add", "arguments": '{"a": 1}'} == answer.parts["tool_calls"][0]["function"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (503, openai.InternalServerError),
    ],
)
async def test_an_upstreams_refusal_raises_its_own_class(
    client: openai.AsyncOpenAI, backend: Backend, status: int, error: type[openai.APIStatusError]
) -> None:
    """An upstream's refusal raises the same class as if the SDK had asked the upstream itself."""

    async def script(exchange: Exchange) -> None:
        await exchange.json(status, {"error": {"message": "No", "type": "t", "code": "c"}})

    backend.script = script
    with pytest.raises(error) as caught:
        await read(client)
    assert ("c", "t") == (caught.value.code, caught.value.type)
    assert caught.value.request_id


async def test_a_refused_request_names_the_field(client: openai.AsyncOpenAI) -> None:
    """What we refuse ourselves names the field."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="m", messages=[])
    assert "messages" == caught.value.param


async def test_the_sdk_lists_the_models(client: openai.AsyncOpenAI, backend: Backend) -> None:
    """The SDK lists the models."""

    async def script(exchange: Exchange) -> None:
        await exchange.json(200, {"object": "list", "data": [{"id": "llama"}]})

    backend.script = script
    assert ["llama"] == [model.id async for model in client.models.list()]


@pytest.mark.parametrize("name", ["llama", "mistralai/Mistral-7B", "a b%2Fc", "ü:7b@x"])
async def test_the_sdk_shows_one_model(
    client: openai.AsyncOpenAI, backend: Backend, name: str
) -> None:
    """The SDK shows a model by its id, whatever is in that, with its backend's own fields."""

    async def script(exchange: Exchange) -> None:
        listed = [{"id": "other"}, {"id": name, "created": 7, "vendor": "V"}]
        await exchange.json(200, {"object": "list", "data": listed})

    backend.script = script
    model = await client.models.retrieve(name)
    shown = (model.id, model.object, model.created, model.owned_by, model.model_extra)
    assert (name, "model", 7, "backend", {"vendor": "V"}) == shown


async def test_the_sdk_is_told_of_an_unknown_model(client: openai.AsyncOpenAI) -> None:
    """A model that the list hasn't is not found, by the code that asking for one has too."""
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("mistralai/none")
    assert ("model_not_found", "model") == (caught.value.code, caught.value.param)
    assert "'mistralai/none'" in caught.value.message


async def test_a_hundred_streams_do_not_mix(
    client: openai.AsyncOpenAI, store: PostgresStore, backend: Backend
) -> None:
    """A hundred streams run side by side without mixing, and every one is kept."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        number = exchange.body["messages"][0]["content"]
        for _ in range(5):
            await exchange.words(f"{number} ")
        await exchange.finish()

    backend.script = script

    async def one(number: int) -> None:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": str(number)}], stream=True
        )
        items = [item async for item in stream]
        text = "".join(item.choices[0].delta.content or "" for item in items)
        assert text == f"{number} " * 5
        (answer,) = await store.answer(items[0].id)
        assert answer.content == text

    await asyncio.gather(*map(one, range(100)))
