"""What operators do: restart one replica after the other, and run two versions beside each other."""

import asyncio

from tests.faults.plans import DRAINED
from tests.fleet_faults.replica import OTHER_VERSION
from tests.fleet_faults.run import scenario
from tests.fleet_faults.scenarios.replicas import NAMES, STREAMS
from tests.fleet_faults.stage import Stage

STOPPING = frozenset(("draining", "answer_unavailable", "idempotency_pending"))


@scenario("deploy/rolling")
async def rolling(stage: Stage) -> None:
    """SIGTERM with a drain, and a new process, one replica after the other, while people come all the
    time: nobody is hurt."""
    await stage.raise_replicas(*NAMES)
    coming = asyncio.create_task(_come(stage, "deploy: rolling restart"))
    for replica in list(stage.replicas.values()):
        await asyncio.sleep(stage.chance.uniform(0.3, 1.0))
        if status := await replica.drain():
            stage.complain(f"{replica.name}: exit status {status} after SIGTERM")
        await replica.start()
    coming.cancel()
    await asyncio.gather(coming, return_exceptions=True)
    await stage.finish()


async def _come(stage: Stage, fault: str) -> None:
    while True:
        up = [name for name, replica in stage.replicas.items() if replica.is_up]
        for name in up:
            stream = stage.stream(fault, name, due=STOPPING, words=stage.chance.randint(20, 80))
            stage.play(stream)
        await asyncio.sleep(1 / max(stage.scale, 0.01))


@scenario("deploy/impatient drain")
async def impatient(stage: Stage) -> None:
    """A second SIGTERM ends the grace: what ran is stored as far as it came, and everybody is told."""
    await stage.raise_replicas(*NAMES)
    victim = stage.chance.choice(NAMES)
    for name in NAMES:
        for _ in range(stage.many(STREAMS)):
            also = (DRAINED,) if name == victim else ()
            fault = "deploy: SIGTERM twice, no grace"
            stage.play(stage.stream(fault, name, also=also, due=STOPPING))
    await stage.begun()
    replica = stage.replicas[victim]
    ending = asyncio.create_task(replica.drain())
    await asyncio.sleep(0.2)
    replica.process.popen.terminate()
    if status := await ending:
        stage.complain(f"{victim}: exit status {status} after SIGTERM")
    await replica.start()
    await stage.finish()


@scenario("deploy/two versions")
async def two_versions(stage: Stage) -> None:
    """A replica of another version beside two: each leaves alone what the other wrote, and what has ended
    is read everywhere."""
    await stage.raise_replicas("a", "b")
    await stage.raise_replicas("c", program=OTHER_VERSION)
    for name in NAMES:
        for _ in range(stage.many(STREAMS)):
            stream = stage.stream("deploy: two versions", name, due=("runs_elsewhere",))
            # What runs at another version can't be read along; clients ask where it runs.
            stage.play(stream, readable_at=NAMES[:2] if name != "c" else NAMES[2:])
    await stage.finish()
