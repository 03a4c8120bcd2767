"""What was asked is held no longer than it is needed, and is all there in the end."""

import gc
from typing import Any

import pytest

from service.settings.config import JournalConfig
from tests.service.conftest import Service, ServiceMaker, agent_for
from tests.service.stage.backend import Backend, Exchange

TEXT = "Once upon a time there was a long history. "
HISTORY = [{"role": "user", "content": f"{number}: {TEXT * 20}"} for number in range(40)]
TOOLS = [{"type": "function", "function": {"name": "f", "description": TEXT}}]
WANTED = {"messages": HISTORY, "tools": TOOLS, "temperature": 0.5}


async def waits(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.words("Hello")
    await exchange.client_closed.wait()


def held(messages: list[Any]) -> int:
    """How many lists in this process are these messages."""
    gc.collect()
    return sum([type(found) is list and found == messages for found in gc.get_objects()])


async def test_a_large_request_is_let_go_of_with_the_first_token_and_saved_whole(
    service: Service, backend: Backend
) -> None:
    """Neither the session nor anybody else holds it meanwhile; the record has all of it."""
    backend.script = waits
    async with service.post(**WANTED) as response:
        await response.content.readany()
        (relay,) = service.relays
        assert not relay.session.has_prompt
        assert () == relay.session.request.messages
        assert 2 == held(HISTORY)  # this test's, and what its backend was sent
        name = relay.session.request.completion_id
        async with service.http.get(f"{service.url}/v1/chat/completions/{name}") as shown:
            assert TOOLS == (await shown.json())["tools"]
        async with service.http.get(
            f"{service.url}/v1/chat/completions", params={"state": "streaming"}
        ) as listed:
            assert TOOLS == (await listed.json())["data"][0]["tools"]
    record = await service.kept.one()
    assert HISTORY == record.request.messages
    assert TOOLS == record.request.tools
    assert 0.5 == record.request.parameters["temperature"]
    assert record.usage is not None
    assert len(TEXT) * 20 * 40 / 4 < record.usage["prompt_tokens"]


@pytest.mark.parametrize("fields", [{"messages": HISTORY[:1]}, WANTED])
async def test_without_a_journal_all_is_held(
    make_service: ServiceMaker, backend: Backend, fields: dict[str, Any]
) -> None:
    """There is nowhere to read it from."""
    backend.script = waits
    service = await make_service(agent_for(backend), journal=JournalConfig(directory=None))
    async with service.post(**fields) as response:
        await response.content.readany()
        (relay,) = service.relays
        assert relay.session.has_prompt
        assert fields["messages"] == relay.session.request.messages
    assert fields["messages"] == (await service.kept.one()).request.messages


async def test_a_large_request_reaches_the_agent_that_is_asked_next(
    make_service: ServiceMaker, backend: Backend
) -> None:
    """Up to the first token it is there for every attempt."""
    asked: list[Any] = []

    async def refuses_once(exchange: Exchange) -> None:
        asked.append(exchange.body["messages"])
        if len(asked) == 1:
            await exchange.json(500, {"error": {"message": "No."}})
            return
        await exchange.start()
        await exchange.words("Hello")
        await exchange.finish()

    backend.script = refuses_once
    service = await make_service(agent_for(backend, retries=1))
    assert (await service.stream(**WANTED)).is_done
    assert [HISTORY, HISTORY] == asked
    assert HISTORY == (await service.kept.one()).request.messages


async def test_a_request_that_the_disk_does_not_give_back_costs_no_word(
    service: Service, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is saved all the same."""
    backend.script = waits
    async with service.post(**WANTED) as response:
        await response.content.readany()
        (relay,) = service.relays
        monkeypatch.setattr(relay._journal, "request", lambda _: None)
    record = await service.kept.one()
    assert () == record.request.messages
    assert record.choices[0].message["content"].startswith("Hello")
