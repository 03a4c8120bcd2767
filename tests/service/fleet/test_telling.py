"""What replicas tell each other: on the engine in memory, without services."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from db.fleet.memory import MemoryEngine, Shared
from service.fleet.listening import Listener
from service.fleet.others import Others, Told
from service.fleet.parts import Fleet
from service.settings.fleet import FleetConfig


async def nothing(owner: str, completion_id: str) -> bool | None:
    return None


def fleet_of(name: str, shared: Shared, slot: int | None = None) -> Fleet:
    config = FleetConfig("redis://nowhere", name)
    fleet = Fleet(config, slot, MemoryEngine(f"{name}{slot or 0}" * 4, shared))
    fleet.listen(nothing)
    return fleet


@pytest.fixture
async def fleets() -> AsyncIterator[tuple[Fleet, Fleet, Fleet]]:
    """Two workers of one service, and another replica; all have joined and listen."""
    shared = Shared()
    made = fleet_of("a", shared, 0), fleet_of("a", shared, 1), fleet_of("b", shared)
    for fleet in made:
        await fleet.membership.start()
        assert fleet.listener is not None
        fleet.listener.start()
    yield made
    for fleet in made:
        assert isinstance(fleet.listener, Listener)
        await fleet.listener.stop()
        await fleet.roster.stop()
        await fleet.membership.stop()


async def test_others_are_told_and_siblings_are_not_asked(
    fleets: tuple[Fleet, Fleet, Fleet],
) -> None:
    """A question with its arguments reaches whoever isn't a worker of this service."""
    a, sibling, b = fleets

    def tell(arguments: Sequence[Any]) -> str:
        return json.dumps({"got": arguments})

    for fleet in fleets:
        Others(fleet).answer("news", tell)
    assert Told((("b", {"got": [1, "x"]}),)) == await Others(a).tell("news", (1, "x"), 2)
    told = await Others(b).tell("news", (), 2)
    assert ["a.0", "a.1"] == sorted(name for name, _ in told.answers)
    assert (0, 1) == (sibling.standing().unanswered, sibling.standing().answered)


async def test_what_can_not_be_told_is_silence(fleets: tuple[Fleet, Fleet, Fleet]) -> None:
    """A mistake of the teller's, and a question that nobody knows: no answer, and no hanging."""
    a, _, b = fleets

    def fail(_: Sequence[Any]) -> str:
        raise ValueError("a mistake")

    Others(b).answer("news", fail)
    assert Told((), ("b",)) == await Others(a).tell("news", (), 0.2)
    assert (1, 0) == (b.standing().unanswered, b.standing().answered)
    assert Told((), ("b",)) == await Others(a).tell("olds", (), 2)
    assert (1, 1) == (b.standing().unanswered, b.standing().answered)


async def test_with_the_engine_away_nobody_waits(
    fleets: tuple[Fleet, Fleet, Fleet],
) -> None:
    """Who was seen last is named; that it isn't known who is there is told."""
    a, _, b = fleets
    assert isinstance(b.engine, MemoryEngine) and isinstance(a.engine, MemoryEngine)
    assert await a.roster.look(1)
    a.engine._shared.is_away = True
    await asyncio.sleep(1.05)
    told = await Others(a).tell("news", (), 2)
    assert Told((), ("b",), is_known=False) == told
    assert not (await Others(a).tell_of("anne", (), "news", ())).is_whole
    assert "fleet: the engine is away: the engine is away" in await a.degraded()
    a.engine._shared.is_away = False
