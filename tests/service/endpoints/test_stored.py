"""The stored completions' endpoints, over HTTP and through the official SDK."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI

from db.postgres.store import PostgresStore
from db.rows.history import rows_of
from db.store import StoreUnavailable
from service.endpoints import completions
from service.settings.access import ApiKeyConfig, AuthConfig
from service.settings.config import DatabaseConfig, ScriptedAgentConfig
from service.wire import decode_json, encode_json
from statemachine import Choice
from tests.db.records import assistant, make_partial, make_record, user
from tests.db.test_store_contract import NASTY
from tests.service.conftest import Kept, Service, ServiceMaker

ME = {"owner": "anonymous"}
PATH = "/v1/chat/completions"
QUICK = ScriptedAgentConfig(name="demo", kind="scripted", models=("*",), tokens_per_second=1e4)


def mine(*messages: dict[str, Any], request: Any = None, **fields: Any) -> Any:
    """A record of the caller's."""
    return make_record(*messages, request={**ME, **(request or {})}, **fields)


async def call(
    service: Service, path: str, method: str = "GET", **options: Any
) -> tuple[int, dict[str, Any]]:
    async with service.http.request(method, service.url + path, **options) as response:
        assert response.headers["x-request-id"]
        return response.status, decode_json(await response.read())


async def refused(service: Service, path: str, method: str = "GET", **options: Any) -> Any:
    """Status, code and param of an error."""
    status, body = await call(service, path, method, **options)
    assert {"message", "type", "param", "code"} == set(body["error"])
    return status, body["error"]["code"], body["error"]["param"]


@pytest.fixture
async def stored(make_service: ServiceMaker) -> Service:
    """A service whose store a test fills itself."""
    return await make_service(QUICK)


@pytest.fixture
async def client(stored: Service) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{stored.url}/v1", api_key="unused", max_retries=0) as sdk:
        yield sdk


async def test_a_stored_completion_has_every_field(stored: Service) -> None:
    """The shape is OpenAI's, with what was asked, and our `state` and `error`."""
    tools = [{"type": "function", "function": {"name": "look"}}]
    parameters = {"temperature": 0.5, "user": "u-1", "seed": 7, "tool_choice": "auto", "n": 1}
    record = mine(request={"parameters": parameters, "tools": tools, "metadata": {"a": "b"}})
    await stored.store.save([record])
    status, body = await call(stored, f"{PATH}/{record.completion_id}")
    expected = {
        "id": record.completion_id,
        "object": "chat.completion",
        "created": 1_750_000_001,
        "model": "demo-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi!", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": record.usage,
        "request_id": record.request.trace_id,
        "tool_choice": "auto",
        "seed": 7,
        "top_p": None,
        "temperature": 0.5,
        "presence_penalty": None,
        "frequency_penalty": None,
        "input_user": "u-1",
        "tools": tools,
        "metadata": {"a": "b"},
        "response_format": None,
        "service_tier": None,
        "system_fingerprint": "fp_1",
        "state": "completed",
        "error": None,
    }
    assert (200, expected) == (status, body)


async def test_a_stored_completion_is_its_plain_answer_and_more(stored: Service) -> None:
    """What a client got at once it gets again, field by field."""
    async with stored.post(stream=False, n=1, metadata={"k": "v"}) as response:
        answer = await response.json()
    status, body = await call(stored, f"{PATH}/{answer['id']}")
    assert 200 == status
    assert answer == {key: body[key] for key in answer}
    assert {"k": "v"} == body["metadata"]


async def test_the_sdk_makes_all_five_calls(stored: Service, client: AsyncOpenAI) -> None:
    """The official SDK lists, pages, retrieves, updates, reads messages and deletes."""
    completions = client.chat.completions
    made = [
        await completions.create(
            model="demo",
            messages=[{"role": "user", "content": f"Question {number}"}],
            metadata={"test": "sdk", "number": str(number % 2)},
            store=True,
        )
        for number in range(5)
    ]
    names = [completion.id for completion in made]
    assert names == [item.id async for item in completions.list(limit=2)]
    assert names[::-1] == [item.id async for item in completions.list(limit=2, order="desc")]
    odd = completions.list(metadata={"test": "sdk", "number": "1"}, model="demo", limit=1)
    assert names[1::2] == [item.id async for item in odd]
    found = await completions.retrieve(names[0])
    assert made[0].choices == found.choices
    changed = await completions.update(names[0], metadata={"number": "changed"})
    assert {"number": "changed"} == changed.metadata
    cleared = await completions.update(names[0], metadata=None)
    assert {} == cleared.metadata
    messages = [item async for item in completions.messages.list(names[0], limit=1)]
    assert [("user", "Question 0", None)] == [
        (item.role, item.content, item.content_parts) for item in messages
    ]
    async for item in completions.list(limit=2):  # deleted while it is read
        assert (await completions.delete(item.id)).deleted
    assert [] == (await completions.list()).data


async def test_an_empty_list_has_every_field(stored: Service) -> None:
    """The schema wants all five fields, and texts for ids."""
    empty = {"object": "list", "data": [], "first_id": "", "last_id": "", "has_more": False}
    assert (200, empty) == await call(stored, PATH)
    assert (200, empty) == await call(stored, "/v1/conversations")


async def test_a_list_says_where_it_begins_and_ends(stored: Service) -> None:
    """`first_id` and `last_id` are of this page, and `last_id` leads to the next."""
    records = [mine() for _ in range(3)]
    await stored.store.save(records)
    names = [record.completion_id for record in records]
    _, page = await call(stored, f"{PATH}?limit=2")
    assert (names[0], names[1], True) == (page["first_id"], page["last_id"], page["has_more"])
    _, page = await call(stored, f"{PATH}?limit=2&after={page['last_id']}")
    assert (names[2], names[2], False) == (page["first_id"], page["last_id"], page["has_more"])


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=abc", "limit"),
        ("limit=", "limit"),
        ("limit=1.5", "limit"),
        ("limit=%F0%9D%9F%99", "limit"),  # a digit, but not an ASCII one
        ("limit=1&limit=2", "limit"),
        ("order=foo", "order"),
        ("order=", "order"),
        ("after=unknown", "after"),
        ("after=%00", "after"),
        ("metdata[a]=b", "metdata[a]"),
        ("metadata=b", "metadata"),
        ("metadata[a]=b&metadata[a]=c", "metadata[a]"),
        ("x=" + "y" * 900, "x"),
    ],
)
async def test_bad_queries_are_refused(stored: Service, query: str, param: str) -> None:
    """What a list can't do is a 400 that names the parameter."""
    await stored.store.save([mine()])
    assert (400, "invalid_request", param) == await refused(stored, f"{PATH}?{query}")


async def test_only_the_list_of_completions_has_filters(stored: Service) -> None:
    """The other lists have no filters, and say so."""
    record = mine()
    await stored.store.save([record])
    name, talk = record.completion_id, (await call(stored, "/v1/conversations"))[1]["first_id"]
    for path in (f"{PATH}/{name}/messages", "/v1/conversations", f"/v1/conversations/{talk}"):
        assert (400, "invalid_request", "model") == await refused(stored, f"{path}?model=x")
        assert (400, "invalid_request", "after") == await refused(stored, f"{path}?after=x")
    assert 200 == (await call(stored, f"/v1/conversations/{talk}?limit=1000"))[0]


@pytest.mark.parametrize("key", ["it's 100%", "a[b]", "]", "ключ&=?", " ", "\0", "😀"])
async def test_metadata_filters_take_any_key(
    stored: Service, client: AsyncOpenAI, key: str
) -> None:
    """The SDK's way of writing keys into a query is understood, whatever the key."""
    await stored.store.save([mine(request={"metadata": {key: key}}), mine()])
    page = await client.chat.completions.list(metadata={key: key})
    assert [{key: key}] == [item.metadata for item in page.data]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"{}", "metadata"),
        (b'{"metadata": "x"}', "metadata"),
        (b'{"metadata": {"a": 1}}', "metadata.a"),
        (b'{"metadata": {"a": null}}', "metadata.a"),
        (b'{"metadata": {"' + b"k" * 65 + b'": "v"}}', "metadata." + "k" * 64),
        (b'{"metadata": {"k": "' + b"v" * 513 + b'"}}', "metadata.k"),
        (b'{"metadata": {}, "model": "other"}', "model"),
        (b'{"metadata": {' + b", ".join(b'"%d": ""' % n for n in range(17)) + b"}}", "metadata"),
    ],
)
async def test_an_update_with_bad_metadata_changes_nothing(
    stored: Service, body: bytes, param: str | None
) -> None:
    """An update that isn't one changes nothing and says what is wrong."""
    record = mine(request={"metadata": {"old": "1"}})
    await stored.store.save([record])
    path = f"{PATH}/{record.completion_id}"
    assert (400, "invalid_request", param) == await refused(stored, path, "POST", data=body)
    assert {"old": "1"} == (await call(stored, path))[1]["metadata"]


async def test_metadata_to_the_limits_is_taken(stored: Service) -> None:
    """16 pairs, keys of 64 and values of 512 characters, of any kind."""
    record = mine()
    await stored.store.save([record])
    metadata = {f"{number:02}" + "é" * 62: "\0" * 512 for number in range(16)}
    path = f"{PATH}/{record.completion_id}"
    status, body = await call(stored, path, "POST", json={"metadata": metadata})
    assert (200, metadata) == (status, body["metadata"])


async def test_unknown_foreign_and_hidden_ids_are_one_404(stored: Service) -> None:
    """Unknown, foreign, hidden: one and the same 404 on every call."""
    foreign = make_record()
    hidden = mine(user("B"), request={"parameters": {"store": False}})
    await stored.store.save([foreign, hidden])
    for name in ("chatcmpl-unknown", foreign.completion_id, hidden.completion_id, "%00", "%ED%A0"):
        expected = (404, "not_found", "completion_id")
        path = f"{PATH}/{name}"
        assert expected == await refused(stored, path)
        assert expected == await refused(stored, path, "DELETE")
        assert expected == await refused(stored, path, "POST", data=b'{"metadata": null}')
        assert expected == await refused(stored, f"{path}/messages")
    for record in (foreign, hidden):
        talk = f"/v1/conversations/{rows_of(record).conversation.conversation_id}"
        assert (404, "not_found", "conversation_id") == await refused(stored, talk)
    assert [] == (await call(stored, PATH))[1]["data"]
    assert [] == (await call(stored, "/v1/conversations"))[1]["data"]
    assert await stored.store.find(foreign.completion_id) is not None


async def test_a_broken_answer_is_not_passed_off_as_complete(stored: Service) -> None:
    """A partial answer has its text, no finish reason, its state and the error."""
    failed = make_partial(request={**ME, "messages": [user("A")]}, answer="cut o")
    silent = make_partial(request={**ME, "messages": [user("A")]}, choices=())
    failed_choice = Choice(0, assistant("cut o"))
    await stored.store.save([silent, make_partial(request=failed.request, choices=[failed_choice])])
    status, body = await call(stored, f"{PATH}/{failed.completion_id}")
    assert (200, "failed", "upstream_incomplete") == (status, body["state"], body["error"]["code"])
    (choice,) = body["choices"]
    assert ("cut o", None) == (choice["message"]["content"], choice["finish_reason"])
    status, body = await call(stored, f"{PATH}/{silent.completion_id}")
    assert (200, "failed", []) == (status, body["state"], body["choices"])


async def test_any_text_is_shown_exactly(stored: Service) -> None:
    """NUL and lone surrogates leave as they came; JSON has but one way to spell a whole pair."""
    spelt = decode_json(encode_json(NASTY))
    record = mine(user(NASTY), answer=assistant(NASTY, reasoning_content=NASTY))
    await stored.store.save([record])
    _, body = await call(stored, f"{PATH}/{record.completion_id}")
    message = body["choices"][0]["message"]
    assert (spelt, spelt) == (message["content"], message["reasoning_content"])
    _, body = await call(stored, f"{PATH}/{record.completion_id}/messages")
    assert spelt == body["data"][0]["content"]


async def test_messages_are_shown_as_they_were_sent(stored: Service) -> None:
    """Plain text is content, a list of parts is content_parts; names and ids are there."""
    parts = [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "x"}}]
    record = mine({**user("A"), "name": "Bob"}, assistant("B"), user(parts))
    await stored.store.save([record])
    _, body = await call(stored, f"{PATH}/{record.completion_id}/messages")
    first, second, third = body["data"]
    expected = {"role": "user", "content": "A", "name": "Bob", "content_parts": None}
    assert expected == {key: value for key, value in first.items() if key != "id"}
    assert ("assistant", "B") == (second["role"], second["content"])
    assert (None, parts) == (third["content"], third["content_parts"])
    assert (first["id"], third["id"]) == (body["first_id"], body["last_id"])


async def test_a_conversation_is_shown_as_a_tree(stored: Service) -> None:
    """The conversation, and its nodes, each with the one above it, its completion and states."""
    first = mine(user("A"), answer="1", request={"conversation_key": "chat-1"})
    edited = make_partial(
        request={**ME, "messages": [user("A!")], "conversation_key": "chat-1"},
        choices=(Choice(0, assistant("cut")),),
    )
    await stored.store.save([first, edited])
    _, page = await call(stored, "/v1/conversations")
    (talk,) = page["data"]
    assert ("conversation", {}, "chat-1") == (talk["object"], talk["metadata"], talk["key"])
    status, body = await call(stored, f"/v1/conversations/{talk['id']}")
    assert (200, talk) == (status, {key: body[key] for key in talk})
    nodes = body["nodes"]["data"]
    assert ["A", "1", "A!", "cut"] == [node["message"]["content"] for node in nodes]
    assert ["complete", "complete", "complete", "partial"] == [node["state"] for node in nodes]
    expected = [None, nodes[0]["id"], None, nodes[2]["id"]]
    assert expected == [node["parent_id"] for node in nodes]
    assert nodes[0]["completion"] is None
    assert {
        "id": edited.completion_id,
        "choice_index": 0,
        "model": "demo-model",
        "state": "failed",
        "finish_reason": None,
        "error": {
            "code": "upstream_incomplete",
            "message": "The upstream broke off.",
            "type": "server_error",
            "param": None,
        },
    } == nodes[3]["completion"]
    assert (404, "not_found", "conversation_id") == await refused(stored, "/v1/conversations/no")


async def test_a_follow_up_without_a_key_joins_its_conversation(stored: Service) -> None:
    """A stateless client's second turn is in the conversation that its first turn began."""
    messages = [user("Hello?")]
    async with stored.post(stream=False, messages=messages) as response:
        answer = (await response.json())["choices"][0]["message"]["content"]
    messages += [assistant(answer), user("And then?")]
    async with stored.post(stream=False, messages=messages) as response:
        assert 200 == response.status
    _, page = await call(stored, "/v1/conversations")
    (talk,) = page["data"]
    _, body = await call(stored, f"/v1/conversations/{talk['id']}")
    nodes = body["nodes"]["data"]
    assert [None, *(node["id"] for node in nodes[:-1])] == [node["parent_id"] for node in nodes]
    assert ["user", "assistant"] * 2 == [node["message"]["role"] for node in nodes]


@pytest.mark.parametrize("where", ["X-OpenWebUI-Chat-Id", "X-Conversation-Id", "metadata"])
async def test_a_clients_key_groups_its_conversation(stored: Service, where: str) -> None:
    """Whichever way a client names its conversation, what comes under the name is together."""
    for text in ("A", "B"):
        body: dict[str, Any] = {"model": "demo", "messages": [user(text)]}
        headers = {} if where == "metadata" else {where: "chat-1"}
        if where == "metadata":
            body["metadata"] = {"conversation_id": "chat-1"}
        status, _ = await call(stored, PATH, "POST", json=body, headers=headers)
        assert 200 == status
    _, page = await call(stored, "/v1/conversations")
    assert ["chat-1"] == [talk["key"] for talk in page["data"]]


async def test_no_key_sees_what_another_made(make_service: ServiceMaker) -> None:
    """With keys, what one caller made is not there for another, on any of the calls."""
    keys = {"alice": "a" * 20, "bob": "b" * 20}
    entries = tuple(
        ApiKeyConfig(name=name, sha256=hashlib.sha256(key.encode()).hexdigest())
        for name, key in keys.items()
    )
    service = await make_service(QUICK, auth=AuthConfig(api_keys=entries))
    alice, bob = ({"Authorization": f"Bearer {key}"} for key in keys.values())
    body = {"model": "demo", "messages": [user("Hello?")]}
    _, made = await call(service, PATH, "POST", json=body, headers=alice)
    path = f"{PATH}/{made['id']}"
    assert (401, "invalid_api_key", None) == await refused(service, path)
    _, page = await call(service, "/v1/conversations", headers=alice)
    (talk,) = page["data"]
    calls = [
        ("GET", path, None),
        ("GET", f"{path}/messages", None),
        ("GET", f"/v1/conversations/{talk['id']}", None),
        ("POST", path, {"metadata": {"k": "v"}}),
        ("DELETE", path, None),
    ]
    for method, url, json in calls:
        assert 404 == (await call(service, url, method, json=json, headers=bob))[0]
    for url in (PATH, "/v1/conversations"):
        assert [] == (await call(service, url, headers=bob))[1]["data"]
        cursor = f"{url}?after={made['id']}"
        expected = (400, "invalid_request", "after")
        assert expected == await refused(service, cursor, headers=bob)
    for method, url, json in calls:
        assert 200 == (await call(service, url, method, json=json, headers=alice))[0]


class Unreachable(Kept):
    """A store whose database is down for readers."""

    async def view(self, owner: str, completion_id: str) -> Any:
        raise StoreUnavailable("PostgreSQL at db.internal:5432/chat: its disk is full")


async def test_a_database_that_is_down_is_a_503(make_service: ServiceMaker) -> None:
    """Readers are told to try again, and nothing about the database's whereabouts."""
    service = await make_service(store=Unreachable())
    async with service.http.get(f"{service.url}{PATH}/chatcmpl-1") as response:
        body = await response.json()
    assert (503, "1") == (response.status, response.headers["Retry-After"])
    assert "database_unavailable" == body["error"]["code"]
    assert "db.internal" not in body["error"]["message"]


class Away(Kept):
    """A store whose database is down for writers until it is back."""

    def __init__(self) -> None:
        super().__init__()
        self.is_back = False

    async def save(self, records: Any) -> None:
        if not self.is_back:
            raise StoreUnavailable("away")
        await super().save(records)


async def test_a_completion_that_waits_to_be_saved_is_shown(make_service: ServiceMaker) -> None:
    """A completion that isn't committed can be read; deleting it then does nothing, and once it is
    there it can be deleted for good."""
    store = Away()
    late = DatabaseConfig(commit_timeout_seconds=0.05)
    service = await make_service(QUICK, store=store, database=late)
    async with service.post(stream=False) as response:
        path = f"{PATH}/{(await response.json())['id']}"
    status, shown = await call(service, path)
    assert (200, "completed") == (status, shown["state"])
    assert (404, "not_found", "completion_id") == await refused(service, path, "DELETE")
    store.is_back = True
    record = await store.one()
    assert (200, shown) == await call(service, path)
    assert 200 == (await call(service, path, "DELETE"))[0]
    await store.save([record])
    assert (404, "not_found", "completion_id") == await refused(service, path)


class Slow(Kept):
    """A store that takes its time, and notices if it is interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.began = asyncio.Event()
        self.ended = asyncio.Event()

    async def delete(self, owner: str, completion_id: str) -> bool:
        self.began.set()
        await asyncio.sleep(0.2)
        self.ended.set()
        return await super().delete(owner, completion_id)


async def test_a_client_that_leaves_interrupts_no_database_call(
    make_service: ServiceMaker,
) -> None:
    """A call that has begun ends, whoever waits for it."""
    store = Slow()
    service = await make_service(store=store)
    record = mine()
    await store.save([record])
    url = f"{service.url}{PATH}/{record.completion_id}"
    asking = asyncio.create_task(service.http.delete(url).__aenter__())
    await store.began.wait()
    asking.cancel()
    async with asyncio.timeout(5):
        await store.ended.wait()
        while await store.find(record.completion_id) is not None:
            await asyncio.sleep(0.01)


async def test_another_owners_stream_is_not_stopped(
    make_service: ServiceMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running completion of somebody else's is as unknown as one that doesn't run."""
    slow = ScriptedAgentConfig(
        name="demo", kind="scripted", models=("*",), first_token_delay_seconds=30
    )
    service = await make_service(slow)
    asking = asyncio.create_task(service.post(stream=False).__aenter__())
    async with asyncio.timeout(5):
        while not service.relays:
            await asyncio.sleep(0.01)
    path = f"{PATH}/{service.relays[0].session.request.completion_id}/cancel"
    with monkeypatch.context() as patch:
        patch.setattr(completions, "owner_of", lambda _request: "bob")
        assert (404, "not_found", "completion_id") == await refused(service, path, "POST")
    assert 200 == (await call(service, path, "POST"))[0]
    (await asking).close()


async def test_the_calls_work_over_postgres(make_service: ServiceMaker, database_url: str) -> None:
    """With the real store: ask, list, look, delete; and 503 once the store is closed."""
    store = await PostgresStore.open(database_url)
    service = await make_service(QUICK, store=store)
    async with service.post(stream=False) as response:
        name = (await response.json())["id"]
    assert [name] == [item["id"] for item in (await call(service, PATH))[1]["data"]]
    assert "completed" == (await call(service, f"{PATH}/{name}"))[1]["state"]
    deleted = {"id": name, "object": "chat.completion.deleted", "deleted": True}
    assert (200, deleted) == await call(service, f"{PATH}/{name}", "DELETE")
    assert (404, "not_found", "completion_id") == await refused(service, f"{PATH}/{name}")
    await store.close()
    assert (503, "database_unavailable", None) == await refused(service, PATH)
