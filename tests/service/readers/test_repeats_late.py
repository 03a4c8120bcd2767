"""Asking twice for what is neither here nor gone: it is looked for until that is known."""

import asyncio
from typing import Any

import pytest

from db.store import Replayable
from service.endpoints import repeats
from service.settings.config import DatabaseConfig
from service.stream import unsaved
from tests.service.conftest import Kept, Service, ServiceMaker, agent_for
from tests.service.readers.conftest import Told, asked, until
from tests.service.stage.backend import Backend

KEY = {"Idempotency-Key": "k-1"}


class Late(Kept):
    """A store that finds what is there at the second question only, as if it had come in between."""

    def __init__(self) -> None:
        super().__init__()
        self.questions = 0

    async def replayable(self, *of: Any, **options: Any) -> Replayable | None:
        self.questions += 1
        return await super().replayable(*of, **options) if self.questions > 1 else None


async def test_what_is_stored_while_it_is_looked_for_is_found(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """As by whoever brings back what a killed process left: before it is taken for lost."""
    service = await make_service(agent_for(backend), store=Late())
    told.say("Hello")
    told.do("finish")
    async with asked(service, headers=KEY) as first:
        await first.whole()
    await until(lambda: service.kept.records and not service.relays)
    async with asked(service, headers=KEY) as second:
        assert first.events == (await second.whole()).events
    assert 1 == told.asked


class Stuck(Kept):
    """A store that takes nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.lets = asyncio.Event()

    async def save(self, records: Any) -> None:
        await self.lets.wait()
        await super().save(records)


async def test_an_answer_too_large_to_be_held_until_its_commit_is_not_lost(
    make_service: ServiceMaker, backend: Backend, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its repeat is told to come again."""
    monkeypatch.setattr(unsaved, "MOST_CHARACTERS", 3)
    monkeypatch.setattr(repeats, "_PATIENCE_SECONDS", 0.1)
    store, database = Stuck(), DatabaseConfig(commit_timeout_seconds=0.05)
    service = await make_service(agent_for(backend), store=store, database=database)
    told.say("Hello")
    told.do("finish")
    async with asked(service, headers=KEY) as first:
        await first.whole()
    await until(lambda: not service.relays)
    async with asked(service, headers=KEY) as second:
        assert 409 == second.response.status
        assert "idempotency_pending" == (await second.whole()).json()["error"]["code"]
    store.lets.set()
    await until(lambda: service.kept.records)
    async with asked(service, headers=KEY) as third:
        assert first.events == (await third.whole()).events
    assert 1 == told.asked


async def test_a_plain_repeat_that_waited_for_nothing_may_be_sent_again(
    service: Service, told: Told
) -> None:
    """The answer that it waited for failed before its first token, which frees the key."""

    async def ask() -> Any:
        async with asked(service, headers=KEY, stream=False) as response:
            await response.whole()
            return response

    first = asyncio.create_task(ask())
    await until(lambda: told.asked)
    second = asyncio.create_task(ask())
    (relay,) = service.relays
    await until(lambda: relay.readers.count == 2)
    told.do("cut")
    headers = [(await each).response.headers.get("x-should-retry") for each in (first, second)]
    assert headers[0] == headers[1] != "false"
    assert first.result().json() == second.result().json()
    told.say("Hello")
    told.do("finish")
    assert 200 == (await ask()).response.status
    assert 2 == told.asked
