"""What every place for claims promises, held against each of them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from db.claims import Claims, ClaimsUnavailable, MemoryClaims
from db.fleet.claims import FleetClaims
from db.fleet.memory import MemoryEngine, Shared
from db.fleet.redis import RedisEngine
from db.fleet.redis_link import RedisLink
from tests.db.claims.claiming import DAY, NOON, Clock, make_claim, sqlite_claims


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept_for() -> list[float]:
    """How many seconds claims are kept: a list of one, which a test may change."""
    return [DAY]


@pytest.fixture(params=["memory", "sqlite", "synced", "fleet", "redis"])
async def claims(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, kept_for: list[float]
) -> AsyncIterator[Claims]:
    made: Claims
    engine: MemoryEngine | RedisEngine | None = None
    if request.param == "memory":
        made = MemoryClaims(keep_seconds=lambda: kept_for[0], clock=clock)
    else:
        made = sqlite_claims(
            tmp_path,
            keep_seconds=lambda: kept_for[0],
            clock=clock,
            is_synced=request.param == "synced",
        )
    if request.param in ("fleet", "redis"):
        engine = MemoryEngine("a", Shared())
        if request.param == "redis":
            engine = RedisEngine(RedisLink(request.getfixturevalue("own_redis").url), "a")
        made = FleetClaims(made, engine.claims, "a", keep_seconds=lambda: kept_for[0], clock=clock)
    made.start()
    yield made
    await made.close()
    if engine is not None:
        await engine.close()


async def test_a_free_key_is_taken(claims: Claims) -> None:
    """Whoever asks first holds the key, and what they said comes back as it was."""
    claim = make_claim(holder="", claimed_at=NOON + 0.123456789)
    assert await claims.find(claim.key) is None
    assert claim == await claims.take(claim)
    assert claim == await claims.find(claim.key)


async def test_a_held_key_stays_with_its_completion(claims: Claims) -> None:
    """Whoever asks later is told who holds the key, and changes nothing."""
    first = await claims.take(make_claim("chatcmpl-1"))
    second = make_claim("chatcmpl-2", body=b"another", holder="elsewhere", claimed_at=NOON + 5)
    assert first == await claims.take(second)
    assert first == await claims.find(first.key)


async def test_taking_twice_is_taking_once(claims: Claims) -> None:
    """A take that is repeated, because its answer was lost, gives what the first one did."""
    first = await claims.take(make_claim("chatcmpl-1"))
    assert first == await claims.take(make_claim("chatcmpl-1", claimed_at=NOON + 5))
    swapped = await claims.take(make_claim("chatcmpl-2"), instead_of="chatcmpl-1")
    again = await claims.take(make_claim("chatcmpl-2"), instead_of="chatcmpl-1")
    assert "chatcmpl-2" == swapped.completion_id == again.completion_id


async def test_of_many_at_once_one_wins(claims: Claims) -> None:
    """However many ask at the same moment, one completion holds the key and all are told so."""
    takes = [claims.take(make_claim(f"chatcmpl-{number}")) for number in range(50)]
    assert 1 == len({held.completion_id for held in await asyncio.gather(*takes)})


async def test_keys_are_apart(claims: Claims) -> None:
    """Another owner's key is another key: neither is in the other's way."""
    mine, yours = make_claim("chatcmpl-1", "mine"), make_claim("chatcmpl-2", "yours")
    assert [mine, yours] == [await claims.take(mine), await claims.take(yours)]
    await claims.release(mine)
    assert [None, yours] == [await claims.find(mine.key), await claims.find(yours.key)]


async def test_a_completion_is_replaced_only_by_its_name(claims: Claims) -> None:
    """`instead_of` takes the key from that completion and from no other."""
    first = await claims.take(make_claim("chatcmpl-1"))
    second = make_claim("chatcmpl-2", claimed_at=NOON + 5)
    assert first == await claims.take(second, instead_of="chatcmpl-9")
    assert second == await claims.take(second, instead_of="chatcmpl-1")
    assert second == await claims.find(second.key)


async def test_of_many_that_replace_the_same_one_wins(claims: Claims) -> None:
    """Two repeats that find the same answer failed ask a model once."""
    await claims.take(make_claim("chatcmpl-old"))
    takes = [
        claims.take(make_claim(f"chatcmpl-{number}"), instead_of="chatcmpl-old")
        for number in range(50)
    ]
    (winner,) = {held.completion_id for held in await asyncio.gather(*takes)}
    assert winner != "chatcmpl-old"


async def test_a_free_key_needs_nobody_to_replace(claims: Claims) -> None:
    """A claim that expired or was released meanwhile leaves nothing to replace."""
    claim = make_claim("chatcmpl-2")
    assert claim == await claims.take(claim, instead_of="chatcmpl-1")


async def test_a_released_key_is_free(claims: Claims) -> None:
    """Whoever held it is forgotten, and the next takes it."""
    first = await claims.take(make_claim("chatcmpl-1"))
    await claims.release(first)
    assert await claims.find(first.key) is None
    second = make_claim("chatcmpl-2")
    assert second == await claims.take(second)


async def test_only_the_holder_releases(claims: Claims) -> None:
    """A release that comes late takes the key from nobody, and one of nothing is no error."""
    first, second = make_claim("chatcmpl-1"), make_claim("chatcmpl-2")
    await claims.release(first)
    await claims.take(first)
    await claims.take(second, instead_of="chatcmpl-1")
    await claims.release(first)
    assert second == await claims.find(second.key)


async def test_a_claim_expires(claims: Claims, clock: Clock) -> None:
    """After so many seconds the key is free; until then it isn't."""
    first, second = make_claim("chatcmpl-1"), make_claim("chatcmpl-2", claimed_at=NOON + DAY)
    await claims.take(first)
    clock.now = NOON + DAY - 1
    assert first == await claims.find(first.key) == await claims.take(second)
    clock.now = NOON + DAY
    assert await claims.find(first.key) is None
    assert second == await claims.take(second)
    clock.now = NOON + DAY + 1
    assert second == await claims.find(second.key)


async def test_how_long_is_asked_each_time(claims: Claims, kept_for: list[float]) -> None:
    """A change while the service runs holds for the claims that are there."""
    claim = await claims.take(make_claim(claimed_at=NOON - 60))
    kept_for[0] = 60.0
    assert await claims.find(claim.key) is None
    kept_for[0] = 61.0
    assert claim == await claims.find(claim.key)


async def test_a_cancelled_call_can_be_repeated(claims: Claims) -> None:
    """A take whose caller went away was made or not; the release after it undoes it either way."""
    first = make_claim("chatcmpl-1")
    for _ in range(20):
        taking = asyncio.create_task(claims.take(first))
        await asyncio.sleep(0)
        taking.cancel()
        await claims.release(first)
        assert await claims.find(first.key) is None
    assert first == await claims.take(first)


async def test_after_the_end_nothing_is_kept(claims: Claims) -> None:
    """Who asks a place that is closed is told so, and closing it twice is no error."""
    claim = make_claim()
    await claims.close()
    await claims.close()
    for call in (claims.take(claim), claims.find(claim.key), claims.release(claim)):
        with pytest.raises(ClaimsUnavailable, match="the service is stopping"):
            await call
