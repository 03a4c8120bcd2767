"""Clients that leave, stop reading, or ask for the stop of their own stream."""

import asyncio

from tests.faults.client import Client, cancels, leaves, stalls
from tests.faults.plans import COMPLETED, LEFT, STOPPED, Outcome
from tests.faults.scenario import scenario
from tests.faults.service import Service
from tests.faults.stage import SEND_TIMEOUT_SECONDS, Stage

BEFORE, MID, LAST = "before first token", "mid-stream", "before [DONE]"


@scenario("client", rounds=4)
async def leave_everywhere(stage: Stage) -> None:
    """Every way of going, at every moment, under both policies, all at once."""
    service = await stage.serve()
    plans, tasks = [], []

    def add(fault: str, moment: str, policy: str, truth: set[Outcome], client: Client) -> None:
        words = stage.chance.randint(10, 30)
        plan = stage.plan(
            f"client: {fault} ({policy})",
            moment,
            expected=frozenset(truth),
            model=policy,
            words=words,
            breaks_at=stage.chance.randint(1, words - 5),
            first_pause_seconds=0.4 if moment == BEFORE else 0.0,
            last_pause_seconds=0.3 if moment == LAST else 0.0,
            stream=moment != BEFORE or stage.chance.random() < 0.7,
            is_followed=False,
        )
        plans.append(plan)
        tasks.append(stage.start(service, plan, client))

    for policy in ("cancel", "finish"):
        for rudely in (False, True):
            for moment in (BEFORE, MID, LAST):
                truth = {LEFT} if policy == "cancel" else {COMPLETED}
                if moment == LAST:
                    truth.add(COMPLETED)
                client = leaves(moment, stage.chance, rudely=rudely)
                add("RST" if rudely else "FIN", moment, policy, truth, client)
        for moment in (MID, LAST):
            stop = cancels(moment, stage.chance, leaves_too=False)
            add("cancel endpoint", moment, policy, {STOPPED, COMPLETED}, stop)
            race = cancels(moment, stage.chance, leaves_too=True)
            truth = {STOPPED, COMPLETED} | ({LEFT} if policy == "cancel" else set())
            add("cancel races with leaving", moment, policy, truth, race)
    await asyncio.gather(*tasks)
    await stage.finish(service, plans)


@scenario("client/stalled", rounds=2)
async def stall(stage: Stage) -> None:
    """A reader that stops reading has left after `send_timeout_seconds`; others don't wait."""
    await _stall(stage, "stalled", await stage.serve())


@scenario("client/stalled, impatient", rounds=1)
async def stall_longer_than_idle(stage: Stage) -> None:
    """The same where the model's idle deadline is shorter than the stall: it isn't the model that
    keeps silent."""
    service = await stage.serve(idle_seconds=2 * SEND_TIMEOUT_SECONDS)
    await _stall(stage, "stalled, idle deadline shorter", service)


async def _stall(stage: Stage, fault: str, service: Service) -> None:
    plans, tasks = [], []
    for policy, truth in (("cancel", LEFT), ("finish", COMPLETED)):
        plan = stage.plan(
            f"client: {fault} ({policy})",
            MID,
            expected=frozenset((truth,)),
            model=policy,
            words=600,
            padding=16_000,
            interval_seconds=0.0,
            is_followed=False,
        )
        plans.append(plan)
        client = stalls(SEND_TIMEOUT_SECONDS + 2.0, stage.chance)
        tasks.append(stage.start(service, plan, client))
    neighbours = [stage.plan("client: neighbour of a stalled one", MID) for _ in range(8)]
    await asyncio.gather(*tasks, stage.play(service, neighbours))
    await stage.finish(service, [*plans, *neighbours])
