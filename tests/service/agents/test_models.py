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
    }
    for agent in (scripted(**common), make_agent(**common)):
        assert {name: getattr(agent, name) for name in common} == common
        assert agent.client_gone is None
    assert evolve(Timeouts(), idle_seconds=1) == common["timeouts"]
