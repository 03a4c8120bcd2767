"""The engine is killed, failed over, frozen, emptied, full. Nobody's answer may notice: all of them end as
the backend ends them, and are found everywhere in the end."""

import asyncio

from tests.fleet_faults.run import scenario
from tests.fleet_faults.scenarios.replicas import NAMES, STREAMS
from tests.fleet_faults.stage import LEASE_SECONDS, Stage

AWAY = frozenset(
    (
        "fleet_unavailable",
        "answer_unavailable",
        "journal_full",
        "idempotency_pending",
        "position_ahead",
    )
)
"""What those are told who read, or ask with a key, while the engine can't be asked, or takes nothing
and falls behind the client that was there."""


async def _begin(stage: Stage, fault: str) -> None:
    await stage.raise_replicas(*NAMES)
    for name in NAMES:
        for _ in range(stage.many(STREAMS)):
            stage.play(stage.stream(fault, name, due=AWAY), within_seconds=2.0)
    await stage.begun(0.4)


@scenario("engine/killed and restarted")
async def killed(stage: Stage) -> None:
    """It comes back with nothing."""
    await _begin(stage, "Redis: killed, comes back empty")
    await stage.harm(stage.engine.kill)
    await asyncio.sleep(stage.chance.uniform(0.2, 1.5) * LEASE_SECONDS)
    await stage.harm(stage.engine.start)
    await stage.finish()


@scenario("engine/frozen and let go")
async def frozen(stage: Stage) -> None:
    """It answers nobody for 8 s, and then all that was asked, late."""
    await _begin(stage, "Redis: frozen for 8 s")
    await stage.harm(stage.engine.freeze)
    await asyncio.sleep(8)
    await stage.harm(stage.engine.thaw)
    await stage.finish()


@scenario("engine/emptied")
async def emptied(stage: Stage) -> None:
    """FLUSHALL, twice."""
    await _begin(stage, "Redis: emptied")
    for _ in range(2):
        await stage.harm(stage.engine.empty)
        await asyncio.sleep(stage.chance.uniform(0, LEASE_SECONDS))
    await stage.finish()


@scenario("engine/out of memory")
async def full(stage: Stage) -> None:
    """It refuses what writes, and answers what reads."""
    await _begin(stage, "Redis: out of memory")
    await stage.harm(stage.engine.fill)
    await asyncio.sleep(stage.chance.uniform(0.5, 2) * LEASE_SECONDS)
    await stage.harm(stage.engine.free)
    await stage.finish()


@scenario("engine/failed over", engine="sentinel")
async def failed_over(stage: Stage) -> None:
    """Its replica becomes the master by an operator's command, which loses what was acknowledged."""
    await _begin(stage, "Sentinel: planned failover")
    await stage.harm(stage.engine.fail_over)
    await stage.finish()


@scenario("engine/master killed", engine="sentinel")
async def master_killed(stage: Stage) -> None:
    """The sentinels find that out, and make its replica the master."""
    await _begin(stage, "Sentinel: master killed")
    await stage.harm(stage.engine.kill, 0)
    await stage.finish()


@scenario("engine/node killed", engine="cluster")
async def node_killed(stage: Stage) -> None:
    """A third of the slots is away, and comes back empty."""
    await _begin(stage, "Cluster: a node killed")
    number = stage.chance.randrange(3)
    await stage.harm(stage.engine.kill, number)
    await asyncio.sleep(stage.chance.uniform(0.5, 1.5) * LEASE_SECONDS)
    await stage.harm(stage.engine.start, number)
    await stage.finish()
