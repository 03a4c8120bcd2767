"""A replica is cut from the engine, from PostgreSQL, from its clients, for longer than a lease: what is
sent is dropped, and nobody is told."""

import asyncio
from collections.abc import Collection

from tests.faults.plans import DIED, Outcome
from tests.fleet_faults.run import scenario
from tests.fleet_faults.scenarios.replicas import AFTER_A_DEATH, FENCED, NAMES, STREAMS
from tests.fleet_faults.stage import LEASE_SECONDS, Stage
from tests.fleet_faults.wires import CLIENTS, POSTGRES, REDIS

CUT_OFF = AFTER_A_DEATH | {"fleet_unavailable", "journal_full"}


@scenario("cut/from Redis", cuts=True)
async def from_redis(stage: Stage) -> None:
    """Others adopt what it runs; it is alive, and finds its lease gone once the cut is mended."""
    await _cut(stage, "cut: a replica from Redis", REDIS, also=(DIED, FENCED), due=CUT_OFF)


@scenario("cut/from PostgreSQL", cuts=True)
async def from_postgres(stage: Stage) -> None:
    """What ends there waits; the others show it all the same."""
    due = {"database_unavailable"}
    await _cut(stage, "cut: a replica from PostgreSQL", POSTGRES, also=(), due=due)


@scenario("cut/from its clients", cuts=True)
async def from_clients(stage: Stage) -> None:
    """They go on at the others; the answers go on, too."""
    await _cut(stage, "cut: a replica from its clients", CLIENTS, also=(), due=())


async def _cut(
    stage: Stage, fault: str, what: str, *, also: Collection[Outcome], due: Collection[str]
) -> None:
    await stage.raise_replicas(*NAMES)
    victim = stage.chance.choice(NAMES)
    for name in NAMES:
        for _ in range(stage.many(STREAMS)):
            # Whoever reads at the victim is told that it knows nothing, whoever runs the answer.
            stream = stage.stream(fault, name, also=also if name == victim else (), due=due)
            stage.play(stream)
    await stage.begun()
    stage.replicas[victim].cut(what)
    await asyncio.sleep(stage.chance.uniform(2, 3) * LEASE_SECONDS)
    stage.replicas[victim].mend(what)
    await stage.finish()
