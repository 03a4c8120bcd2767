"""The service process is killed, or told to stop, at the worst of times."""

import asyncio
import signal

from tests.faults.plans import COMPLETED, DIED, DRAINED, Plan
from tests.faults.scenario import scenario
from tests.faults.stage import DRAIN_SECONDS, Stage

STREAMS = 50
KILLED = frozenset((COMPLETED, DIED))


@scenario("kill/ten times", rounds=1)
async def kill_ten_times(stage: Stage) -> None:
    """SIGKILL at a random moment with 50 streams at 50 chunks/s, ten times in a row on the same
    directory. Each successor recovers while the next streams already run."""
    plans: list[Plan] = []
    service = await stage.serve()
    for _ in range(stage.many(10, least=2)):
        batch = [_killed(stage, "at a random moment") for _ in range(stage.many(STREAMS))]
        tasks = [stage.start(service, plan) for plan in batch]
        await asyncio.sleep(stage.chance.uniform(0.1, 1.8))
        service.kill()
        await asyncio.gather(*tasks)
        plans += batch
        service = await stage.serve()
    await stage.finish(service, plans)


def _killed(stage: Stage, moment: str, **fields: object) -> Plan:
    return stage.plan(
        "service: SIGKILL",
        moment,
        expected=KILLED,
        may_vanish=True,
        **{"words": stage.chance.randint(1, 100), **fields},
    )


@scenario("kill/endings", rounds=4)
async def kill_at_the_endings(stage: Stage) -> None:
    """SIGKILL while 50 streams end at once, so that some are just being committed."""
    service = await stage.serve()
    plans = [_killed(stage, "as 50 streams end", words=30) for _ in range(stage.many(STREAMS))]
    tasks = [stage.start(service, plan, within_seconds=0.02) for plan in plans]
    async with asyncio.timeout(20):
        while not all(plan.finished for plan in plans):
            await asyncio.sleep(0.001)
    await asyncio.sleep(stage.chance.uniform(0, 0.06))
    service.kill()
    await asyncio.gather(*tasks)
    await stage.finish(await stage.serve(), plans)


@scenario("kill/recovery", rounds=2)
async def kill_the_recovery(stage: Stage) -> None:
    """A large journal, and a recovery that is killed again and again before it may end."""
    await stage.harm(stage.database.stop)
    service = await stage.serve()
    plans = [
        _killed(stage, "during recovery", words=40, padding=2000, interval_seconds=0.01)
        for _ in range(stage.many(120))
    ]
    tasks = [stage.start(service, plan, within_seconds=0.8) for plan in plans]
    await asyncio.sleep(1.2)
    service.kill()
    await asyncio.gather(*tasks)
    await stage.harm(stage.database.start)
    for _ in range(4):
        service = stage.launch()
        while not (service.find("recovering") or service.find("serving")):
            assert service.popen.poll() is None
            await asyncio.sleep(0.002)
        await asyncio.sleep(stage.chance.uniform(0, 0.25))
        service.kill()
    await stage.finish(await stage.serve(), plans)


@scenario("kill/two successors", rounds=2)
async def two_successors(stage: Stage) -> None:
    """Two processes start at once on what a killed one left; each journal has one adopter."""
    await stage.harm(stage.database.stop)
    first = await stage.serve()
    plans = [_killed(stage, "two successors at once") for _ in range(stage.many(30))]
    tasks = [stage.start(first, plan) for plan in plans]
    await asyncio.sleep(stage.chance.uniform(0.5, 1.2))
    first.kill()
    await asyncio.gather(*tasks)
    await stage.harm(stage.database.start)
    successors = [stage.launch(), stage.launch()]
    await asyncio.gather(*(service.ready() for service in successors))
    adopted = _adopted(stage)
    await asyncio.wait_for(adopted, 30)
    assert 0 == await successors[0].stop()
    await stage.finish(successors[1], plans)


async def _adopted(stage: Stage) -> None:
    while len(stage.journals()) > 2:
        await asyncio.sleep(0.05)


@scenario("drain/once", rounds=2)
async def drain(stage: Stage) -> None:
    """SIGTERM under load: what can end in the grace ends, the rest is told why; nobody new."""
    await _drain(stage, "SIGTERM")


@scenario("drain/twice", rounds=2)
async def drain_twice(stage: Stage) -> None:
    """A second SIGTERM ends the grace and corrupts nothing."""
    await _drain(stage, "SIGTERM twice", again=True)


@scenario("drain/killed", rounds=2)
async def drain_killed(stage: Stage) -> None:
    """A SIGKILL in the middle of the drain, as an impatient supervisor's."""
    await _drain(stage, "SIGTERM, then SIGKILL", kill=True)


async def _drain(stage: Stage, moment: str, *, again: bool = False, kill: bool = False) -> None:
    service = await stage.serve()
    truth = {COMPLETED, DRAINED} | ({DIED} if kill else set())
    fields = {"expected": frozenset(truth), "refusals": frozenset(("draining",))}
    plans = [
        stage.plan(
            "service: drain",
            moment,
            **fields,
            may_vanish=kill,
            words=stage.chance.randint(10, 200),
            stream=stage.chance.random() < 0.9,
        )
        for _ in range(stage.many(STREAMS))
    ]
    tasks = [stage.start(service, plan, within_seconds=0.4) for plan in plans]
    await asyncio.sleep(0.6)
    service.popen.send_signal(signal.SIGTERM)
    late = [
        stage.plan("service: drain", "asked during it", **fields, may_vanish=True)
        for _ in range(stage.many(10))
    ]
    tasks += [stage.start(service, plan, within_seconds=DRAIN_SECONDS) for plan in late]
    await asyncio.sleep(stage.chance.uniform(0.05, 0.8))
    if again:
        service.popen.send_signal(signal.SIGTERM)
    if kill:
        service.kill()
    await asyncio.gather(*tasks)
    if not kill and (status := await service.exited()) != 0:
        stage.complain(f"exit status {status} after a drain")
    if not kill and stage.journals():
        stage.complain("a drain left a journal behind")
    await stage.finish(await stage.serve(), [*plans, *late])
