"""The models that can be asked for."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from attrs import evolve
from freezegun import freeze_time

from service.agents.directory import AgentDirectory
from service.settings.config import Timeouts
from tests.service.agents.conftest import (
    KEY,
    Backend,
    MakeAgent,
    error_json,
    scripted,
    unused_port,
)


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


async def test_models_are_cached_for_a_minute(backend: Backend, make_agent: MakeAgent) -> None:
    """A backend that can't be asked keeps its last list, and is asked again after some seconds."""
    agent = make_agent(models=("*",))
    with freeze_time(real_asyncio=True) as frozen:
        backend.answers(200, model_list({"id": "x"}))
        assert ["x"] == ids(await agent.models())
        backend.answers(500, b"")
        frozen.tick(59)
        assert ["x"] == ids(await agent.models())
        frozen.tick(2)
        assert ["x"] == ids(await agent.models())
        backend.answers(200, model_list({"id": "y"}))
        assert ["x"] == ids(await agent.models())
        frozen.tick(6)
        assert ["y"] == ids(await agent.models())
    assert 3 == len(backend.requests)


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
    assert ["x"] == ids(await agent.models())


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
