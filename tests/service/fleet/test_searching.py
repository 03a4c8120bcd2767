"""Looking for what runs elsewhere: late news is waited for, and a forgetful engine isn't believed."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from db.fleet import FleetUnavailable, Run
from db.fleet.membership import Membership
from db.fleet.memory import MemoryEngine, Shared
from db.fleet.outbox import Outbox
from db.fleet.redis import RedisEngine
from db.fleet.redis_link import RedisLink
from service.edge.errors import ApiError
from service.fleet import searching
from service.fleet.elsewhere import Elsewhere
from service.fleet.parts import Fleet
from service.fleet.searching import Search
from service.settings.fleet import FleetConfig
from tests.redis_servers import RedisServer

LEASE_SECONDS = 0.3
RUN = Run("chatcmpl-1", "alice", "b", "token-b")


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "LOOK_SECONDS", 0.1)


@pytest.fixture
async def engine() -> AsyncIterator[MemoryEngine]:
    made = MemoryEngine("token-a", Shared())
    yield made
    await made.close()


@pytest.fixture
async def search(engine: MemoryEngine) -> AsyncIterator[Search]:
    membership = Membership(engine, "a", LEASE_SECONDS)
    await membership.start()
    yield Search(engine, membership, Outbox(engine, "a"), LEASE_SECONDS)
    await membership.stop()


async def test_what_begins_while_it_is_looked_for_is_found(
    engine: MemoryEngine, search: Search
) -> None:
    """Others hear of a completion a moment after its client."""
    looking = asyncio.create_task(search.find(RUN.completion_id))
    await asyncio.sleep(0.05)
    await engine.append([], [RUN])
    found = await looking
    assert found is not None
    assert "token-b" == found.token


async def test_what_nobody_runs_is_not_there(search: Search) -> None:
    """And that is sure, as long as the engine keeps what it is told."""
    assert await search.find("chatcmpl-unknown") is None


async def test_an_engine_that_forgot_is_not_believed(engine: MemoryEngine, search: Search) -> None:
    """Until everybody has had the time to tell it again."""
    assert await search.find("chatcmpl-unknown") is None
    engine._shared.losses += 1
    with pytest.raises(FleetUnavailable):
        await search.find("chatcmpl-unknown")
    async with asyncio.timeout(10):
        while True:
            try:
                assert await search.find("chatcmpl-unknown") is None
                break
            except FleetUnavailable:
                await asyncio.sleep(0.05)


class EmptiedBetween(MemoryEngine):
    """Loses everything right after it was asked who runs something."""

    async def find(self, completion_id: str) -> Run | None:
        run = await super().find(completion_id)
        self._shared.logs.clear()
        self._shared.losses += 1
        return run


async def test_an_engine_that_is_emptied_between_two_questions_is_not_believed() -> None:
    """Who runs it was known, and a moment later not even that it does."""
    engine = EmptiedBetween("token-a", Shared())
    config = FleetConfig(url="redis://127.0.0.1:1", replica="a", lease_seconds=LEASE_SECONDS)
    fleet = Fleet(config, None, engine)
    await engine.lost_at()
    await engine.append([], [RUN])
    await fleet.membership.start()
    try:
        with pytest.raises(ApiError) as told:
            await Elsewhere(fleet).find(RUN.owner, RUN.completion_id)
        assert "fleet_unavailable" == told.value.failure.code
    finally:
        await fleet.membership.stop()


async def test_who_has_joined_an_emptied_engine_again_still_does_not_believe_it(
    own_redis: RedisServer,
) -> None:
    """Whoever runs what is looked for may not have told it yet."""
    engine = RedisEngine(RedisLink(own_redis.url), "token-a")
    membership = Membership(engine, "a", LEASE_SECONDS)
    await membership.start()
    search = Search(engine, membership, Outbox(engine, "a"), LEASE_SECONDS)
    try:
        assert await search.find(RUN.completion_id) is None
        await engine.append([], [RUN])
        await engine._link.call(engine._client.flushall())
        await engine.join("a", 30)
        with pytest.raises(FleetUnavailable, match="may have lost"):
            await search.find(RUN.completion_id)
        await engine.append([], [RUN])
        found = await search.find(RUN.completion_id)
        assert found is not None
        assert "token-b" == found.token
    finally:
        await membership.stop()
        await engine.close()
