"""Looking for what runs elsewhere: late news is waited for, and a forgetful engine isn't believed."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from db.fleet import FleetUnavailable, Run
from db.fleet.membership import Membership
from db.fleet.memory import MemoryEngine, Shared
from db.fleet.outbox import Outbox
from service.fleet.searching import Search

LEASE_SECONDS = 0.3
RUN = Run("chatcmpl-1", "alice", "b", "token-b")


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
    await engine.leave("a")
    with pytest.raises(FleetUnavailable):
        await search.find("chatcmpl-unknown")
    async with asyncio.timeout(10):
        while True:
            try:
                assert await search.find("chatcmpl-unknown") is None
                break
            except FleetUnavailable:
                await asyncio.sleep(0.05)
