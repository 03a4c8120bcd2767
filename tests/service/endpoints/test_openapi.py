"""The API's description says what the service does: it is valid and complete, real answers hold to
it, and Schemathesis finds nothing that doesn't."""

import asyncio
import hashlib
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from attrs import evolve

import service as package
from db.memory.store import MemoryStore
from db.postgres.store import PostgresStore
from db.store import StoreUnavailable
from service.app import STREAMS, build_app
from service.edge.addresses import of_operators
from service.edge.errors import ERROR_CODES
from service.endpoints.conversations import NODES
from service.endpoints.lists import Limits
from service.endpoints.openapi import DOCUMENT, as_json
from service.settings.access import ApiKeyConfig, AuthConfig, LimitsConfig
from service.settings.config import (
    Config,
    JournalConfig,
    OpenAIAgentConfig,
    ScriptedAgentConfig,
    ServerConfig,
    Timeouts,
)
from service.settings.readers import ReadersConfig
from service.wire import requests
from service.wire.repeats import LONGEST_KEY, is_claimable
from statemachine import ClientGone, State
from tests.service.conftest import QUESTION, Kept, Service, ServiceMaker, agent_for
from tests.service.readers.conftest import until
from tests.service.stage.backend import Backend, Exchange
from tests.service.stage.described import Description
from tests.service.stage.fuzz_api import QUICK, fuzz

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PATH = "/v1/chat/completions"
NO_OPERATION = {"admin_key_required", "method_not_allowed"}
"""They are of operators' paths, and of any path; what isn't the API has no place in its description."""
KEY = "sk-vb-0123456789abcdef"
KEYS = AuthConfig((ApiKeyConfig("anne", hashlib.sha256(KEY.encode()).hexdigest()),))


def asked(**fields: Any) -> dict[str, Any]:
    return {"json": {"model": "demo", "messages": QUESTION, **fields}}


@pytest.fixture(scope="module")
def description() -> Description:
    return Description()


# --- the document -----------------------------------------------------------------------------


def test_the_json_is_made_of_the_yaml() -> None:
    """The served document is the one that people read in docs/openapi.yaml."""
    readable = (ROOT / "docs/openapi.yaml").read_text("utf-8")
    assert DOCUMENT.read_text("utf-8") == as_json(readable), "run: make docs"


def test_the_json_is_installed_with_the_package() -> None:
    """The package takes the file along."""
    text = (ROOT / "setup.cfg").read_text("utf-8")
    assert re.search(r"^service\.endpoints = openapi.json$", text, re.MULTILINE)


def test_the_document_is_valid_openapi(description: Description) -> None:
    """The document is OpenAPI 3.1, by that standard's own schema."""
    schemathesis.openapi.from_dict(description.document).validate()
    assert description.document["openapi"].startswith("3.1.")
    assert description.document["info"]["version"] == package.__version__


def test_every_route_is_described(description: Description) -> None:
    """The application's routes are the document's operations; HEAD comes with every GET."""
    app = build_app(Config(), environ={}, store=MemoryStore())
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
        and route.method != "HEAD"
        and not of_operators(route.resource.canonical)
    }
    assert routes == set(description.operations)


def test_each_operation_has_a_name_of_its_own(description: Description) -> None:
    """Generators name functions after them."""
    names = [operation["operationId"] for operation in description.operations.values()]
    assert len(set(names)) == len(names)


def test_every_error_code_is_listed(description: Description) -> None:
    """`ErrorCode` has each code of the service, and a line about it."""
    schema = description.at("#/components/schemas/ErrorCode")
    assert set(schema["enum"]) == set(ERROR_CODES)
    assert re.findall(r"^- `(\w+)`:", schema["description"], re.MULTILINE) == schema["enum"]


def examples(description: Description) -> list[tuple[str, str, Any]]:
    """(status or "", pointer to its schema, example) of every request and response."""
    found = []
    places = [(status, place) for (_, status), place in description.responses.items()]
    for name in ("~1v1~1chat~1completions", "~1v1~1chat~1completions~1{completion_id}"):
        places.append(("", f"#/paths/{name}/post/requestBody"))
    for status, place in places:
        for media, content in description.at(place).get("content", {}).items():
            values = [item["value"] for item in content.get("examples", {}).values()]
            values += [content["example"]] if "example" in content else []
            schema = f"{place}/content/{media.replace('/', '~1')}/schema"
            found += [(status, schema, value) for value in values]
    return found


def test_every_example_fits_its_schema() -> None:
    """Every example fits the schema beside it, and every schema's own example fits the schema."""
    description = Description(is_strict=False)
    for _, schema, value in examples(description):
        assert [] == description.complaints(value, schema)
    for name, schema in description.document["components"]["schemas"].items():
        if "example" in schema:
            assert [] == description.complaints(schema["example"], f"#/components/schemas/{name}")


def test_every_error_code_has_its_response(description: Description) -> None:
    """Each code that clients can get is shown by an example, under the status that it has."""
    shown = {
        (value["error"]["code"], status)
        for status, _, value in examples(description)
        if "error" in value and status.isdigit()
    }
    expected = {(code, str(status)) for code, status in ERROR_CODES.items()}
    assert shown - expected == set()
    assert NO_OPERATION == {code for code, _ in expected - shown}


def test_limits_are_those_of_the_code(description: Description) -> None:
    """The figures in the document are the ones that the service goes by."""
    schemas = description.document["components"]["schemas"]
    asked_for = schemas["CreateChatCompletionRequest"]["properties"]
    assert asked_for["n"]["maximum"] == requests.MAX_CHOICES
    assert asked_for["model"]["maxLength"] == requests.MAX_MODEL
    assert asked_for["messages"]["maxItems"] == requests.MAX_MESSAGES
    metadata = schemas["Metadata"]
    assert metadata["maxProperties"] == requests.MAX_METADATA_PAIRS
    assert metadata["propertyNames"] == {"maxLength": requests.MAX_METADATA_KEY}
    assert metadata["additionalProperties"]["maxLength"] == requests.MAX_METADATA_VALUE
    assert schemas["CompletionState"]["enum"] == [state.value for state in State if state.is_final]
    assert schemas["RunningState"]["enum"] == [state.value for state in State if not state.is_final]
    listed = description.operations["GET", PATH]["parameters"]
    (states,) = (item["schema"] for item in listed if item.get("name") == "state")
    assert states["enum"] == [state.value for state in State]
    asking = description.operations["POST", PATH]["parameters"]
    (policies,) = (item["schema"] for item in asking if item.get("name") == "X-Client-Gone")
    assert policies["enum"] == list(ClientGone)
    (key,) = (item["schema"] for item in asking if item.get("name") == "Idempotency-Key")
    for text, is_key in (("!", True), ("~" * LONGEST_KEY, True), ("", False), ("a b", False)):
        assert is_key == is_claimable(text) == bool(re.search(key["pattern"], text))
    assert not re.search(key["pattern"], "~" * (LONGEST_KEY + 1))
    paging = description.at("#/components/parameters/Limit")["schema"]
    assert (paging["default"], paging["maximum"]) == (Limits().default, Limits().most)
    tree = description.operations["GET", "/v1/conversations/{conversation_id}"]["parameters"]
    (nodes,) = (item["schema"] for item in tree if item.get("name") == "limit")
    assert (nodes["default"], nodes["maximum"]) == (NODES.default, NODES.most)


@pytest.mark.parametrize(
    "fault",
    [
        {"unknown": 1},
        {"id": None},
        {"choices": [{"index": 0}]},
        {"usage": {"prompt_tokens": "3"}},
        {"state": "running"},
    ],
)
def test_a_wrong_answer_is_noticed(description: Description, fault: dict[str, Any]) -> None:
    """What holds the answers to the document can tell right from wrong."""
    pointer = "#/components/schemas/StoredChatCompletion"
    right = description.at(pointer)["example"]
    assert [] == description.complaints(right, pointer)
    assert description.complaints({**right, **fault}, pointer) != []


async def test_the_document_is_served_without_a_key_and_cached_by_version(
    make_service: ServiceMaker,
) -> None:
    """The document needs no key, has an ETag, and isn't sent to a client that has it already."""
    service = await make_service(QUICK, auth=KEYS)
    async with service.http.get(f"{service.url}/openapi.json") as response:
        assert (200, "application/json") == (response.status, response.content_type)
        assert await response.read() == DOCUMENT.read_bytes()
        etag = response.headers["ETag"]
    for known, status in ((etag, 304), (f'"other", W/{etag}', 304), ('"other"', 200)):
        headers = {"If-None-Match": known}
        async with service.http.get(f"{service.url}/openapi.json", headers=headers) as response:
            assert (response.status, response.headers["ETag"]) == (status, etag)


# --- real answers -----------------------------------------------------------------------------


async def running(service: Service) -> str:
    """The id of the one completion that runs, as soon as one does."""
    async with asyncio.timeout(5):
        while not service.relays:
            await asyncio.sleep(0.01)
    return service.relays[0].session.request.completion_id


SLOW = ScriptedAgentConfig(
    name="slow", kind="scripted", models=("slow",), first_token_delay_seconds=30
)


async def test_every_good_answer_is_as_described(
    make_service: ServiceMaker, database_url: str
) -> None:
    """Each call, answered by the whole service over PostgreSQL, in every way that goes well."""
    description = Description()
    store = await PostgresStore.open(database_url)
    service = await make_service(QUICK, SLOW, store=store, auth=KEYS, limits=LimitsConfig(9, 999))
    service.key = KEY

    async def ask(method: str, path: str, status: int = 200, **options: Any) -> Any:
        return await description.ask(service, method, path, status, **options)

    parameters = {"temperature": 0.5, "tools": [{"type": "function"}], "metadata": {"a": "b"}}
    plain = await ask("POST", PATH, **asked(n=2, **parameters))
    options = {"stream_options": {"include_usage": True}}
    stream = await ask("POST", PATH, **asked(stream=True, **options))
    assert stream.endswith(b"data: [DONE]\n\n")
    page = await ask("GET", f"{PATH}?limit=2&order=desc&model=demo&metadata[a]=b")
    assert [item["id"] for item in page["data"]] == [plain["id"]]
    assert 2 == len((await ask("GET", PATH))["data"])
    mine = f"{PATH}/{plain['id']}"
    await ask("GET", mine)
    assert (await ask("GET", f"{mine}?stream=true&include_usage=true")).endswith(b"[DONE]\n\n")
    await ask("POST", mine, json={"metadata": {"c": "d"}})
    await ask("GET", f"{mine}/messages")
    for talk in (await ask("GET", "/v1/conversations"))["data"]:
        assert (await ask("GET", f"/v1/conversations/{talk['id']}"))["nodes"]["data"]
    await ask("DELETE", mine)
    asking = asyncio.create_task(ask("POST", PATH, 409, **asked(model="slow")))
    slow = await running(service)
    assert [slow] == [item["id"] for item in (await ask("GET", f"{PATH}?state=pending"))["data"]]
    assert "pending" == (await ask("GET", f"{PATH}/{slow}"))["state"]
    await ask("POST", f"{PATH}/{slow}/cancel")
    await asking
    for path in ("/v1/models", "/v1/models/demo", "/healthz", "/readyz"):
        await ask("GET", path)
    document = await ask("GET", "/openapi.json")
    assert document == description.document
    await ask("GET", "/openapi.json", 304, headers={"If-None-Match": "*"})
    good = {answer for answer in description.answers if answer[1] in ("200", "304")}
    assert good - description.seen == set()
    await store.close()


async def test_readers_and_repeats_are_as_described(
    make_service: ServiceMaker, database_url: str
) -> None:
    """Whoever reads an answer again, or asks for it twice, whatever became of it."""
    description = Description()
    store = await PostgresStore.open(database_url)
    late = ScriptedAgentConfig(
        name="late", kind="scripted", fail_after_tokens=2, fail_with="truncate"
    )
    service = await make_service(
        QUICK, SLOW, late, faulty("incomplete"), store=store, readers=ReadersConfig(1)
    )

    async def ask(method: str, path: str, status: int, **options: Any) -> Any:
        return await description.ask(service, method, path, status, **options)

    first = {"Idempotency-Key": "k-1", "Last-Event-ID": ""}
    for _ in range(2):
        stream = await ask("POST", PATH, 200, **asked(stream=True), headers=first)
        assert stream.startswith(b"id: 1\ndata: ")
    await ask("POST", PATH, 422, **asked(stream=True, seed=1), headers=first)
    ahead = {"Last-Event-ID": "3"}
    await ask("POST", PATH, 409, **asked(stream=True), headers=ahead)
    for _ in range(2):
        headers = {"Idempotency-Key": "k-2"}
        body = await ask("POST", PATH, 502, **asked(model="late"), headers=headers)
    assert "failed" == body["completion"]["state"]
    await ask("POST", PATH, 502, **asked(model="incomplete"))
    (_, refused) = (await ask("GET", f"{PATH}?state=failed", 200))["data"]
    await ask("GET", f"{PATH}/{refused['id']}?stream=true", 502)
    (done,) = (await ask("GET", f"{PATH}?state=completed", 200))["data"]
    read = f"{PATH}/{done['id']}?stream=true"
    await ask("GET", f"{read}&starting_after=99", 400)
    await ask("GET", f"{PATH}/chatcmpl-1?stream=true", 404)
    headers = {"Idempotency-Key": "k-3", "X-Client-Gone": "cancel"}
    asking = asyncio.create_task(ask("POST", PATH, 200, **asked(model="slow"), headers=headers))
    slow = f"{PATH}/{await running(service)}?stream=true"
    await ask("GET", f"{slow}&starting_after=1", 409)
    await ask("GET", slow, 429)
    await ask("POST", PATH, 429, **asked(model="slow", stream=True), headers=headers)
    asking.cancel()
    await until(lambda: not service.relays)
    await ask("GET", slow, 499)
    await store.close()


FAULTS: dict[str, dict[str, Any]] = {
    "incomplete": {"fail_with": "truncate"},
    "malformed": {"fail_with": "malformed"},
    "reported": {"fail_with": "error"},
    "broken": {"fail_with": "reset"},
    "first": {"first_token_delay_seconds": 30, "fail_after_tokens": None},
}
IMPATIENT = Timeouts(first_token_seconds=0.05, idle_seconds=0.1)


def faulty(name: str) -> ScriptedAgentConfig:
    fields: dict[str, Any] = {"fail_after_tokens": 0, **FAULTS[name]}
    return ScriptedAgentConfig(name=name, kind="scripted", retries=0, timeouts=IMPATIENT, **fields)


async def test_failures_of_backends_are_as_described(make_service: ServiceMaker) -> None:
    """Whatever becomes of the backend, before the first word, after it, or in a plain answer."""
    description = Description()
    late = [
        ScriptedAgentConfig(
            name=f"late-{kind}",
            kind="scripted",
            timeouts=IMPATIENT,
            fail_after_tokens=2,
            fail_with=kind,
        )
        for kind in ("reset", "stall", "error", "truncate", "malformed")
    ]
    gone = OpenAIAgentConfig(
        name="gone", kind="openai", base_url="http://127.0.0.1:9/v1", api_key_env=None, retries=0
    )
    late.append(
        evolve(late[1], name="late-total", timeouts=Timeouts(total_seconds=0.1, idle_seconds=30))
    )
    service = await make_service(gone, *late, *(faulty(name) for name in FAULTS))
    expected = {"gone": 502, "first": 504, "late-stall": 504, "late-total": 504}
    for name in ("gone", *FAULTS, *(agent.name for agent in late)):
        status = expected.get(name, 502)
        body = await description.ask(service, "POST", PATH, status, **asked(model=name))
        assert ERROR_CODES[body["error"]["code"]] == status
        is_late = name.startswith("late")
        opened = 200 if is_late else status
        told = await description.ask(
            service, "POST", PATH, opened, **asked(model=name, stream=True)
        )
        assert is_late == isinstance(told, bytes)
    for item in (await description.ask(service, "GET", PATH, 200))["data"]:
        await description.ask(service, "GET", f"{PATH}/{item['id']}", 200)
    for talk in (await description.ask(service, "GET", "/v1/conversations", 200))["data"]:
        await description.ask(service, "GET", f"/v1/conversations/{talk['id']}?limit=1000", 200)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 503, 529])
async def test_errors_of_backends_are_as_described(
    make_service: ServiceMaker, backend: Backend, status: int
) -> None:
    """A backend's own status and words are passed on, in a shape that the document has."""
    description = Description()

    async def refuse(exchange: Exchange) -> None:
        error = {"message": "No.", "type": "odd", "code": 7, "more": "?"}
        await exchange.json(status, {"error": error}, **{"Retry-After": "30"})

    backend.script = refuse
    service = await make_service(agent_for(backend))
    for stream in (False, True):
        body = await description.ask(service, "POST", PATH, status, **asked(stream=stream))
        told = {"message": "No.", "type": "odd", "param": None, "code": "7", "more": "?"}
        assert {"error": told} == body
    (item, _) = (await description.ask(service, "GET", PATH, 200))["data"]
    assert "upstream_error" == item["error"]["kind"]


async def test_refusals_are_as_described(make_service: ServiceMaker, tmp_path: Path) -> None:
    """Each request that is refused before anything is asked of a backend or the database."""
    description = Description()
    server = ServerConfig(request_timeout_seconds=0.1, max_body_bytes=1000)
    service = await make_service(QUICK, server=server)
    talk = "/v1/conversations"

    async def stuck() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(1)

    for path in (PATH, f"{PATH}/chatcmpl-1"):
        await description.ask(service, "POST", path, 400, data=b"{")
        await description.ask(service, "POST", path, 408, data=stuck())
        await description.ask(service, "POST", path, 413, data=b"x" * 1001)
    for path in (PATH, f"{PATH}/chatcmpl-1/messages", talk, f"{talk}/conv_1"):
        await description.ask(service, "GET", f"{path}?limit=0", 400)
    await description.ask(service, "GET", f"{talk}/conv_1", 404)
    await description.ask(service, "GET", f"{PATH}/chatcmpl-1/messages", 404)
    for method in ("GET", "DELETE", "POST"):
        options = {"json": {"metadata": None}} if method == "POST" else {}
        await description.ask(service, method, f"{PATH}/chatcmpl-1", 404, **options)
    await description.ask(service, "POST", f"{PATH}/chatcmpl-1/cancel", 404)
    await description.ask(service, "GET", "/v1/models/other", 404)
    everything = {"Completions", "Stored completions", "Conversations", "Models"}
    for method, path, body in every(description, everything):
        foreign, packed = {"Origin": "https://other.example"}, {"Content-Encoding": "gzip"}
        await description.ask(service, method, path, 403, headers=foreign, **body)
        await description.ask(service, method, path, 415, headers=packed, **body)
    only = await make_service(ScriptedAgentConfig(name="demo", kind="scripted"))
    await description.ask(only, "POST", PATH, 404, **asked(model="other"))
    full = JournalConfig(directory=str(tmp_path / "full"), max_bytes=1)
    service = await make_service(SLOW, journal=full)
    asking = asyncio.create_task(service.post(model="slow").__aenter__())
    await running(service)
    await description.ask(service, "POST", PATH, 503, **asked(model="slow"))
    asking.cancel()
    service.app[STREAMS].is_draining = True
    await description.ask(service, "POST", PATH, 503, **asked())
    await description.ask(service, "GET", "/readyz", 503)


@pytest.mark.parametrize(
    ("limits", "used"),
    [
        (LimitsConfig(requests_per_minute=1), 1),
        (LimitsConfig(tokens_per_minute=1), 1),
        (LimitsConfig(max_concurrent_streams=1), 0),
    ],
)
async def test_limits_are_as_described(
    make_service: ServiceMaker, limits: LimitsConfig, used: int
) -> None:
    """Whichever limit refuses a request, the answer and its headers are those of the document."""
    description = Description()
    service = await make_service(QUICK, SLOW, limits=limits)
    for _ in range(used):
        await description.ask(service, "POST", PATH, 200, **asked())
    asking = None if used else asyncio.create_task(service.post(model="slow").__aenter__())
    if asking is not None:
        await running(service)
    await description.ask(service, "POST", PATH, 429, **asked())
    if asking is not None:
        asking.cancel()


class Broken(Kept):
    """A store that can't be asked: its database is away, or it has a bug."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def _raise(self, *_: Any) -> Any:
        raise self._error

    _fail: Any = _raise
    list_completions = view = list_prompt = set_metadata = delete = _fail
    list_conversations = view_conversation = _fail


def every(description: Description, tags: set[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """A good request for each operation with one of these tags: method, path, options."""
    requests = []
    for (method, template), operation in description.operations.items():
        if tags & set(operation["tags"]):
            body: dict[str, Any] = {}
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]
                body = {"json": next(iter(content["examples"].values()))["value"]}
            requests.append((method, re.sub(r"\{\w+\}", "x-1", template), body))
    return requests


@pytest.mark.parametrize(
    ("error", "status"), [(StoreUnavailable("away"), 503), (RuntimeError("a bug"), 500)]
)
async def test_broken_stores_are_as_described(
    make_service: ServiceMaker, log_lines: Any, error: Exception, status: int
) -> None:
    """Every call that reads what is stored says so when it can't."""
    description = Description()
    service = await make_service(QUICK, store=Broken(error))
    for method, path, body in every(description, {"Stored completions", "Conversations"}):
        await description.ask(service, method, path, status, **body)


async def test_every_call_wants_a_key_as_described(make_service: ServiceMaker) -> None:
    """401 is the answer of each operation that the document doesn't declare open to all."""
    description = Description()
    service = await make_service(QUICK, auth=KEYS)
    for method, path, body in every(
        description, {"Completions", "Stored completions", "Conversations", "Models"}
    ):
        await description.ask(service, method, path, 401, **body)
    for (_, path), operation in description.operations.items():
        assert (operation.get("security") == []) == (operation["tags"] == ["Service"])
        if operation["tags"] == ["Service"]:
            await description.ask(service, "GET", path, 200)


async def test_answers_to_invalid_http_are_as_described(make_service: ServiceMaker) -> None:
    """Headers that are too long or wrong are answered alike, whatever they are sent to."""
    description = Description()
    service = await make_service(QUICK)
    host, port = service.runner.addresses[0][:2]
    everything = {"Completions", "Stored completions", "Conversations", "Models", "Service"}
    for method, path, _ in every(description, everything):
        for header, status in (("X-A: " + "a" * 9000, 431), ("X-A\0: a", 400)):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode()
            )
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            assert int(first.split()[1]) == status
            headers = dict(line.split(": ", 1) for line in lines)
            description.check(method, path, status, headers, body)
            writer.close()
            await writer.wait_closed()


# --- Schemathesis -----------------------------------------------------------------------------


@pytest.mark.timeout(120)
async def test_fuzzing_finds_nothing(make_service: ServiceMaker, database_url: str) -> None:
    """Requests made from the document, good and bad, one after another and in sequences, get
    answers that the document has. The same requests each time; `make fuzz` makes others."""
    store = await PostgresStore.open(database_url)
    service = await make_service(QUICK, store=store, auth=KEYS)
    status, said = await fuzz(
        service.url, "--seed", "1", "--max-examples", "2", key=KEY, output=subprocess.PIPE
    )
    await store.close()
    assert 0 == status, said
