"""Limits and claims over all replicas, also while one dies or the engine is away: a limit is a limit, and
of two who ask with one key exactly one asks the model."""

import asyncio
import time
from collections.abc import Sequence

from tests.faults.plans import DIED
from tests.faults.seen import Seen
from tests.fleet_faults.run import scenario
from tests.fleet_faults.scenarios.replicas import AFTER_A_DEATH, NAMES, STREAMS
from tests.fleet_faults.stage import LEASE_SECONDS, Stage
from tests.fleet_faults.trips import Trip, asking, exchange

MOST_REQUESTS, MOST_STREAMS = 12, 6


async def _ask(stage: Stage, fault: str, names: Sequence[str], *, words: int) -> list[bool]:
    """A request at each of these replicas, at once; whether it was admitted. None has a key."""

    async def ask(name: str) -> bool:
        stream = stage.stream(fault, name, words=words, has_key=False)
        trip, seen = Trip(stream.plan, "asks"), Seen()
        await exchange(stage.replicas[name].address, asking(trip), seen)
        seen.read()
        trip.take(seen)
        trip.seens.append(seen)
        stream.trips.append(trip)
        return seen.status == 200

    return list(await asyncio.gather(*map(ask, names)))


@scenario("limits/requests", modes=("follow",))
async def requests(stage: Stage) -> None:
    """Three times as many requests as a minute allows, at all replicas at once."""
    fault = "limits: requests a minute"
    stage.limits = {"requests_per_minute": MOST_REQUESTS}
    await stage.raise_replicas(*NAMES)
    began = time.monotonic()
    admitted = await _ask(stage, fault, NAMES * MOST_REQUESTS, words=3)
    _hold_requests(stage, fault, sum(admitted), began)
    await stage.stop()


@scenario("limits/requests, engine away", modes=("follow",))
async def requests_without_engine(stage: Stage) -> None:
    """The same while the engine is away: each replica has its share."""
    fault = "limits: requests a minute, Redis killed"
    stage.limits = {"requests_per_minute": MOST_REQUESTS}
    await stage.raise_replicas(*NAMES)
    await asyncio.sleep(LEASE_SECONDS)  # each knows how many they are
    await stage.harm(stage.engine.kill)
    await asyncio.sleep(0.2)
    began = time.monotonic()
    admitted = await _ask(stage, fault, NAMES * MOST_REQUESTS, words=3)
    _hold_requests(stage, fault, sum(admitted), began)
    await stage.harm(stage.engine.start)
    await stage.stop()


def _hold_requests(stage: Stage, fault: str, admitted: int, began: float) -> None:
    # The cell-rate algorithm gives back one each so many seconds meanwhile.
    allowed = MOST_REQUESTS + int((time.monotonic() - began) * MOST_REQUESTS / 60)
    said = f"{admitted} requests admitted, {allowed} allowed"
    stage.hold_limit(fault, max(0, admitted - allowed), said)
    if not admitted:
        stage.complain(f"{fault}: nobody was admitted")


@scenario("limits/streams, a replica killed", modes=("follow",))
async def streams(stage: Stage) -> None:
    """Streams at once over all replicas; one that is killed gives its places back within a lease or so."""
    fault = "limits: streams at once, a replica killed"
    stage.limits = {"max_concurrent_streams": MOST_STREAMS}
    await stage.raise_replicas(*NAMES)
    asked = asyncio.create_task(_ask(stage, fault, NAMES * MOST_STREAMS, words=400))
    await asyncio.sleep(3)
    running = sum(stream.plan.told > 0 for stream in stage.streams)
    exceeded = max(0, running - MOST_STREAMS)
    said = f"{running} streams at once, {MOST_STREAMS} allowed"
    told = [stream for stream in stage.streams if stream.plan.told > 0]
    stage.hold_limit(fault, exceeded, said)
    victim = told[0].at if told else NAMES[0]
    freed = sum(stream.at == victim for stream in told)
    stage.replicas[victim].kill(for_good=True)
    await _places_come_back(stage, fault, victim, freed)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


async def _places_come_back(stage: Stage, fault: str, victim: str, freed: int) -> None:
    others = [name for name in NAMES if name != victim]
    until = time.monotonic() + 3 * LEASE_SECONDS + 5
    began = 0
    waiting: list[asyncio.Task[list[bool]]] = []
    while began < freed and time.monotonic() < until:
        count = len(stage.streams)
        waiting.append(asyncio.create_task(_ask(stage, fault, others, words=400)))
        await asyncio.sleep(1)
        began += sum(stream.plan.told > 0 for stream in stage.streams[count:])
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    said = f"{began} streams took the places of {freed}"
    stage.hold_limit(fault, max(0, began - freed), said)
    if began < freed:
        stage.complain(f"{fault}: {began} of {freed} places came back")


@scenario("claims/asked at two replicas at once")
async def claimed(stage: Stage) -> None:
    """With one key, at two replicas, at the same instant: the model is asked once, and both get the
    same."""
    await _claimed(stage, "claims: one key, two replicas", is_killed=False)


@scenario("claims/holder killed")
async def claim_holder_killed(stage: Stage) -> None:
    """The same, and one of the two is killed: the answer isn't asked for anew once it has begun."""
    await _claimed(stage, "claims: one key, a replica killed", is_killed=True)


async def _claimed(stage: Stage, fault: str, *, is_killed: bool) -> None:
    await stage.raise_replicas(*NAMES)
    victim = stage.chance.choice(NAMES)
    for number in range(stage.many(2 * STREAMS)):
        name, other = NAMES[number % 3], NAMES[(number + 1) % 3]
        is_hit = is_killed and victim in (name, other)
        stream = stage.stream(
            fault,
            name,
            also=(DIED,) if is_hit else (),
            due=AFTER_A_DEATH if is_killed else (),
            dies=is_hit,
            has_key=True,
        )
        stage.play(stream, asks_also_at=other)
    await stage.begun()
    if is_killed:
        stage.replicas[victim].kill(for_good=True)
    await stage.finish()
