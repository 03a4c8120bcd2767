"""The models that can be asked for."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from attrs import evolve
from freezegun import freeze_time

from service.agents.directory import AgentDirectory
from service.agents.openai import models
from service.settings.config import Timeouts
from tests.service.agents.conftest import (
    KEY,
    Backend,
    MakeAgent,
    error_json,
    scripted,
    unused_port,
)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A list is waited for, however busy the machine is; undone where it is told what that means."""
    with monkeypatch.context() as patience:
        patience.setattr(models, "_PATIENCE_SECONDS", 30.0)
        yield patience


def model_list(*entries: Any) -> bytes:
    return json.dumps({"object": "list", "data": entries}).encode()


def ids(models: list[dict[str, Any]]) -> list[str]:
    return [model["id"] for model in models]


async def test_a_backends_models_are_listed_as_they_are(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """The backend's own objects keep their fields and get what they lack."""
    backend.answers(200, model_list({"id": "x", "created": 5, "vendor": 1}, {"id": "y"}))
    assert [
        {"id": "x", "object": "model", "created": 5, "owned_by": "o", "vendor": 1},
        {"id": "y", "object": "model", "created": 0, "owned_by": "o"},
    ] == await make_agent().models()
    (request,) = backend.requests
    assert ("GET", "/v1/models") == (request.method, request.path)
    assert request.headers["Authorization"] == f"Bearer {KEY}"


async def test_only_models_that_the_agent_serves_are_listed(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """Patterns filter the backend's list; literal names are there though the backend hides them."""
    backend.answers(200, model_list({"id": "gpt-5"}, {"id": "whisper"}, {"id": "extra"}))
    agent = make_agent(models=("hidden", "gpt-*", "extra"))
    assert ["hidden", "extra", "gpt-5"] == ids(await agent.models())


async def test_an_agent_with_a_model_of_its_own_is_listed(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """Such an agent can be asked for by its name, so its name is a model."""
    backend.answers(200, model_list({"id": "llama3"}))
    assert ["o", "llama3"] == ids(await make_agent(parameters={"model": "llama3"}).models())


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
async def test_a_backend_without_a_good_list_adds_literal_names_alone(
    backend: Backend, make_agent: MakeAgent, status: int, body: bytes
) -> None:
    """Literal names are those of the configuration, without its patterns."""
    backend.answers(status, body)
    assert ["a"] == ids(await make_agent(models=("a", "b-*")).models())


async def test_an_absent_backend_doesnt_hide_the_others_models(make_agent: MakeAgent) -> None:
    """The absent backend's own literal names are listed too."""
    absent = make_agent(base_url=f"http://127.0.0.1:{unused_port()}/v1", models=("a",))
    directory = AgentDirectory([absent, scripted(name="demo")])
    assert ["a", "demo"] == ids(await directory.models())


async def test_a_list_is_asked_for_anew_after_a_minute(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """What is known is given at once, and the new list comes behind it; a backend that can't be
    asked keeps its last one, and is asked again after some seconds."""
    agent = make_agent(models=("*",))

    async def listed(count: int) -> list[str]:
        """What a caller gets, once that many questions have been answered."""
        models = ids(await agent.models())
        while len(backend.requests) < count or agent._models._asking is not None:
            await asyncio.sleep(0.001)
        return models

    with freeze_time(real_asyncio=True) as frozen:
        backend.answers(200, model_list({"id": "x"}))
        assert ["x"] == await listed(1)
        backend.answers(500, b"")
        frozen.tick(59)
        assert ["x"] == await listed(1)
        frozen.tick(2)
        assert ["x"] == await listed(2)
        backend.answers(200, model_list({"id": "y"}))
        assert ["x"] == await listed(2)
        frozen.tick(6)
        assert ["x"] == await listed(3)
        assert ["y"] == await listed(3)


async def test_callers_at_the_same_time_share_one_question(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """Pages that load together get the same whole list, for one request to the backend."""
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
    assert [["x"]] * 3 == [ids(models) for models in await asyncio.gather(*asking)]
    assert 1 == len(backend.requests)


async def test_a_caller_that_leaves_takes_the_list_from_nobody_else(
    backend: Backend, make_agent: MakeAgent
) -> None:
    """A page that is closed while the list is on its way doesn't spoil the next one's."""
    go_on = asyncio.Event()

    async def slowly(_request: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return web.Response(body=model_list({"id": "x"}))

    backend.answer = slowly
    agent = make_agent()
    asking = asyncio.create_task(agent.models())
    while not backend.requests:
        await asyncio.sleep(0.001)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    other = asyncio.create_task(agent.models())
    go_on.set()
    assert ["x"] == ids(await other)
    assert 1 == len(backend.requests)


async def test_a_backend_that_says_nothing_is_waited_for_once_and_briefly(
    backend: Backend, make_agent: MakeAgent, _patience: pytest.MonkeyPatch
) -> None:
    """The first caller waits a second at most, the others not at all; and the list is there as soon
    as it has come."""
    _patience.undo()
    go_on = asyncio.Event()

    async def slowly(_request: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return web.Response(body=model_list({"id": "x"}))

    backend.answer = slowly
    agent, loop = make_agent(models=("a", "*")), asyncio.get_running_loop()
    began = loop.time()
    assert ["a"] == ids(await agent.models())
    assert 0.9 < loop.time() - began < 4
    began = loop.time()
    assert [["a"]] * 9 == [ids(await agent.models()) for _ in range(9)]
    assert loop.time() - began < 0.5
    go_on.set()
    async with asyncio.timeout(5):
        while ["a", "x"] != ids(await agent.models()):
            await asyncio.sleep(0.01)
    assert 1 == len(backend.requests)


async def test_agents_are_asked_for_their_models_together(
    backend: Backend, make_agent: MakeAgent, _patience: pytest.MonkeyPatch
) -> None:
    """Several that say nothing cost what one costs, and their order stays that of the agents."""

    async def never(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    backend.answer = never
    _patience.undo()
    silent = [make_agent(name=f"s{number}", models=(f"s{number}",)) for number in range(4)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    directory = AgentDirectory([*silent, scripted(name="demo")])
    assert ["s0", "s1", "s2", "s3", "demo"] == ids(await directory.models())
    assert loop.time() - began < 2.5


@pytest.mark.parametrize(
    "body",
    [
        {"object": "list", "data": [None, {"id": "x"}, 5, {"id": ""}, [], {"id": None}, "y"]},
        [{"id": "x"}, "y"],
        ["x", None, "y", ""],
        {"models": [{"name": "x", "model": "x"}, {"model": "y", "id": None}]},
        {"data": None, "models": ["x", "y"]},
        {"models": ["x", "y"], "object": "list"},
    ],
)
async def test_the_good_entries_of_any_list_are_listed(
    backend: Backend, make_agent: MakeAgent, body: Any
) -> None:
    """The list may be bare, of another name, and have anything in it."""
    backend.answers(200, json.dumps(body).encode())
    assert ["x", "y"] == ids(await make_agent().models())


async def test_a_list_without_end_is_read_up_to_a_bound(
    backend: Backend, make_agent: MakeAgent, _patience: pytest.MonkeyPatch
) -> None:
    """What is no list by then is none; nothing waits for its end."""
    _patience.undo()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"[" * (1 << 16))

    backend.answer = endless
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert ["a"] == ids(await make_agent(models=("a",)).models())
    assert loop.time() - began < 4


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, error_json(message=f"No {KEY}."), "No ***."),
        (503, error_json(message="Loading model"), "Loading model"),
        (200, b"<html>", "The answer is no list of models."),
    ],
)
async def test_the_log_has_the_reason_why_nothing_was_listed(
    backend: Backend, make_agent: MakeAgent, log_lines: Any, status: int, body: bytes, reason: str
) -> None:
    """The reason is the backend's own, without our key."""
    backend.answers(status, body)
    await make_agent().models()
    (line,) = log_lines
    assert ("models not listed", reason) == (line["event"], line["reason"])


async def test_a_refused_connection_is_no_time_out_in_the_log(
    make_agent: MakeAgent, log_lines: Any
) -> None:
    """Nobody listens there, which the line says."""
    await make_agent(base_url=f"http://127.0.0.1:{unused_port()}/v1").models()
    (line,) = log_lines
    assert line["reason"].startswith("connection refused (ClientConnectorError: ")


async def test_both_kinds_of_agents_have_what_the_service_reads(make_agent: MakeAgent) -> None:
    """Timeouts, retries, fallbacks and `client_gone` are those of the configuration."""
    common = {
        "timeouts": Timeouts(idle_seconds=1),
        "retries": 4,
        "fallbacks": ("x",),
    }
    for agent in (scripted(**common), make_agent(**common)):
        assert {name: getattr(agent, name) for name in common} == common
        assert agent.client_gone is None
    assert evolve(Timeouts(), idle_seconds=1) == common["timeouts"]
