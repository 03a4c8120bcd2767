"""Claims over several machines, each with a place of its own: who gets a key, and what is told without an
engine. What every place promises is in `tests/db/claims/test_contract.py`."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from attrs import evolve

from db.claims import Claim, ClaimsElsewhere, ClaimsUnavailable, MemoryClaims
from db.fleet import FleetUnavailable
from db.fleet.claims import FleetClaims
from db.fleet.memory import MemoryEngine, Shared
from tests.db.claims.claiming import DAY, NOON, make_claim
from tests.db.fleet.conftest import MakeEngine

Machine = tuple[FleetClaims, MemoryClaims]
MakeMachine = Callable[[], Machine]


@pytest.fixture
async def make_machine(make_engine: MakeEngine) -> AsyncIterator[MakeMachine]:
    """Another machine's claims, and its own place below them."""
    made: list[FleetClaims] = []

    def make() -> Machine:
        own = MemoryClaims(keep_seconds=lambda: DAY, clock=lambda: NOON)
        engine = make_engine()
        claims = FleetClaims(
            own, engine.claims, engine.token, keep_seconds=lambda: DAY, clock=lambda: NOON
        )
        made.append(claims)
        return claims, own

    yield make
    for claims in made:
        await claims.close()


def without_token(claim: Claim | None) -> Claim | None:
    return None if claim is None else evolve(claim, token="")


async def test_of_all_machines_one_gets_a_key(make_machine: MakeMachine) -> None:
    """However many ask at once, everybody is told the same completion, and its machine alone keeps it."""
    machines = [make_machine() for _ in range(4)]
    takes = [
        machine[0].take(make_claim(f"chatcmpl-{number}"))
        for number, machine in enumerate(machines * 5)
    ]
    (winner,) = {held.completion_id for held in await asyncio.gather(*takes)}
    key = make_claim().key
    kept = [await own.find(key) for _, own in machines]
    assert [winner] == [claim.completion_id for claim in kept if claim is not None]


async def test_a_claim_says_whose_it_is(make_machine: MakeMachine) -> None:
    """Elsewhere with its replica's token; at home without one, as it was."""
    (here, _), (there, own) = make_machine(), make_machine()
    claim = make_claim()
    assert claim == await here.take(claim)
    held = await there.take(make_claim("chatcmpl-2"))
    found = await there.find(claim.key)
    assert held == found and held.token
    assert claim == without_token(held) == await here.find(claim.key)
    assert await own.find(claim.key) is None


async def test_one_replaces_anothers_completion_that_said_nothing(
    make_machine: MakeMachine,
) -> None:
    """Wherever that ran; and where it ran, the new one is found as soon as the old one is asked about."""
    (here, _), (there, own) = make_machine(), make_machine()
    claim = make_claim("chatcmpl-1")
    await here.take(claim)
    second = make_claim("chatcmpl-2")
    assert second == await there.take(second, instead_of="chatcmpl-1")
    assert second == await own.find(claim.key)
    third = await here.take(make_claim("chatcmpl-3"), instead_of="chatcmpl-1")
    assert "chatcmpl-2" == third.completion_id


async def test_a_released_key_is_free_everywhere(make_machine: MakeMachine) -> None:
    """Also where nobody knew it."""
    (here, _), (there, _) = make_machine(), make_machine()
    claim = make_claim("chatcmpl-1")
    await here.take(claim)
    await here.release(claim)
    second = make_claim("chatcmpl-2")
    assert second == await there.take(second)


async def test_an_emptied_engine_is_told_again(
    make_machine: MakeMachine, make_engine: MakeEngine
) -> None:
    """What was claimed here, unless somebody else has the key by now."""
    (here, _), (there, _) = make_machine(), make_machine()
    claims = [make_claim(f"chatcmpl-{key}", key) for key in "ab"]
    for claim in claims:
        await here.take(claim)
        await make_engine().claims.release(claim)
    others = make_claim("chatcmpl-other", "b")
    assert others == await there.take(others)
    await here.tell_again()
    found = [await there.take(make_claim("chatcmpl-new", key)) for key in "ab"]
    assert ["chatcmpl-a", "chatcmpl-other"] == [claim.completion_id for claim in found]


# --- without an engine ----------------------------------------------------------------------------


async def test_a_key_that_is_known_needs_no_engine() -> None:
    """Its repeats are told as ever; any other key is neither taken nor free, and nothing of it is kept."""
    shared, own = Shared(), MemoryClaims(keep_seconds=lambda: DAY, clock=lambda: NOON)
    engine = MemoryEngine("a", shared)
    claims = FleetClaims(own, engine.claims, "a", keep_seconds=lambda: DAY, clock=lambda: NOON)
    known, fresh = make_claim("chatcmpl-1", "known"), make_claim("chatcmpl-2", "fresh")
    await claims.take(known)
    shared.is_away = True
    assert known == await claims.take(make_claim("chatcmpl-3", "known"))
    assert known == await claims.find(known.key)
    for call in (claims.take(fresh), claims.find(fresh.key)):
        with pytest.raises(ClaimsElsewhere, match="can't be told now"):
            await call
    with pytest.raises(ClaimsElsewhere):
        await claims.take(fresh, instead_of="chatcmpl-1")
    await claims.release(known)  # not told, and no error
    with pytest.raises(FleetUnavailable):
        await engine.claims.find(known.key, since=0)
    shared.is_away = False
    assert fresh == await claims.take(fresh)
    await claims.close()


async def test_what_the_machine_cant_keep_is_not_claimed() -> None:
    """Whose own place refuses asks no model, and leaves the key to others."""
    shared = Shared()
    here, there = MemoryEngine("a", shared), MemoryEngine("b", shared)

    class Full(MemoryClaims):
        async def take(self, claim: Claim, *, instead_of: str | None = None) -> Claim:
            raise ClaimsUnavailable("the disk is full")

    full = Full(keep_seconds=lambda: DAY, clock=lambda: NOON)
    claims = FleetClaims(full, here.claims, "a", keep_seconds=lambda: DAY, clock=lambda: NOON)
    claim = make_claim()
    with pytest.raises(ClaimsUnavailable, match="disk is full"):
        await claims.take(claim)
    assert await there.claims.find(claim.key, since=0) is None
