"""What an ended stream held is free at once, by its reference counts: no cycle waits for the collector."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from service.agents import scripted
from service.agents.openai.answer import OpenAIAnswer
from service.agents.openai.decoder import SseDecoder
from service.agents.openai.reads import EventReader
from service.settings.config import ScriptedAgentConfig, Timeouts
from service.stream.attempts import Attempts
from service.stream.client import ClientSide
from service.stream.moments import Moments
from service.stream.relay import Relay
from service.stream.writers import SseWriter
from statemachine import StreamSession, Transcript
from tests.service.conftest import Service, ServiceMaker, agent_for
from tests.service.stage.backend import Backend, Exchange

A_STREAMS_OWN = {
    Attempts,
    ClientSide,
    EventReader,
    Moments,
    OpenAIAnswer,
    Relay,
    SseDecoder,
    SseWriter,
    StreamSession,
    Transcript,
    scripted._Answer,
}


others: list[object] = []
"""What tests before this one left behind, kept so that nothing new is taken for it."""


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    others[:] = in_memory()
    gc.disable()
    yield
    gc.enable()
    others.clear()


def in_memory() -> list[object]:
    return [it for it in gc.get_objects() if type(it) in A_STREAMS_OWN]


def held() -> set[str]:
    """The kinds of this test's stream's own objects that are still in memory."""
    known = set(map(id, others))
    return {type(it).__name__ for it in in_memory() if id(it) not in known}


async def is_free(service: Service, state: str) -> None:
    """Wait until the one stream has ended in this state, and check that nothing of it is left."""
    assert state == (await service.kept.one()).state.value
    async with asyncio.timeout(5):
        while service.relays:
            await asyncio.sleep(0.01)
    for _ in range(20):
        if not held():
            break
        await asyncio.sleep(0.05)
    assert set() == held()


async def stop(service: Service) -> None:
    """Have the one running completion cancelled by its id."""
    (completion_id,) = [relay.session.request.completion_id for relay in service.relays]
    url = f"{service.url}/v1/chat/completions/{completion_id}/cancel"
    async with service.http.post(url) as response:
        assert 200 == response.status


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("fate", "state"),
    [
        ("finish", "completed"),
        ("error", "failed"),
        ("cut", "failed"),
        ("reset", "failed"),
        ("garbled", "failed"),
        ("leave", "client_gone"),
        ("stop", "client_gone"),
    ],
)
async def test_a_stream_from_a_backend_is_free_once_it_has_ended(
    service: Service, backend: Backend, fate: str, state: str
) -> None:
    """However it ended, and though aiohttp keeps the error of a connection that broke."""
    may_end = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        for word in "abcdef":
            await exchange.words(word)
            await asyncio.sleep(0.005)  # so that some take the shortcut
        await may_end.wait()
        match fate:
            case "finish":
                await exchange.finish()
            case "error":
                await exchange.event({"error": "No."})
            case "cut":
                await exchange.cut()
            case "reset":
                await exchange.reset()
            case "garbled":
                await exchange.raw(b"zz\r\nhello\r\n")

    backend.script = script
    async with service.post() as response:
        seen = b""
        while b'"f"' not in seen:
            seen += await response.content.readany()
        assert {"Attempts", "OpenAIAnswer", "Relay", "StreamSession"} <= held()
        match fate:
            case "leave":
                response.close()
            case "stop":
                await stop(service)
            case _:
                may_end.set()
                await response.read()
    await is_free(service, state)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("fate", ["refuse", "reset", "hang"])
async def test_a_stream_whose_attempts_all_failed_is_free(
    backend: Backend, make_service: ServiceMaker, fate: str
) -> None:
    """Errors that were raised on the way to no first token keep nothing of it."""

    async def script(exchange: Exchange) -> None:
        match fate:
            case "refuse":
                await exchange.json(500, {"error": "No."})
            case "reset":
                await exchange.start()
                await exchange.reset()
            case "hang":
                await exchange.start()
                await exchange.client_closed.wait()

    backend.script = script
    timeouts = Timeouts(first_token_seconds=0.2)
    service = await make_service(agent_for(backend, retries=1, timeouts=timeouts))
    assert (await service.stream()).status >= 500
    await is_free(service, "failed")


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "completed"),
        ({"fail_after_tokens": 2, "fail_with": "reset"}, "failed"),
        ({"fail_after_tokens": 2, "fail_with": "stall"}, "client_gone"),
    ],
)
async def test_a_stream_from_the_built_in_agent_is_free_once_it_has_ended(
    make_service: ServiceMaker, fields: Any, state: str
) -> None:
    """The answer's generator is closed with it, also in the middle of a wait."""
    agent = ScriptedAgentConfig(
        name="demo", kind="scripted", reply="a b c", tokens_per_second=20, **fields
    )
    service = await make_service(agent)
    async with service.post(model="demo") as response:
        seen = b""
        while b'" b"' not in seen:
            seen += await response.content.readany()
        assert "_Answer" in held()
        if state == "client_gone":
            response.close()
        else:
            await response.read()
    await is_free(service, state)
