"""Readers that stay when the first client leaves, and clients that come back."""

import asyncio
import random

from tests.faults.client import Client, Connection, request_of
from tests.faults.plans import COMPLETED, LEFT, Outcome, Plan, Reader
from tests.faults.readers import id_shown, read, send
from tests.faults.scenario import scenario
from tests.faults.stage import WAIT_SECONDS, Stage

WORDS, INTERVAL_SECONDS = 100, 0.02
"""A stream that outlasts the wait."""


def _plan(stage: Stage, fault: str, moment: str, policy: str, truth: Outcome, **more: bool) -> Plan:
    return stage.plan(
        f"readers: {fault} ({policy})",
        moment,
        expected=frozenset((truth,)),
        model=policy,
        words=WORDS,
        interval_seconds=INTERVAL_SECONDS,
        breaks_at=stage.chance.randint(3, 20),
        **more,
    )


@scenario("readers/first leaves", rounds=4)
async def first_leaves(stage: Stage) -> None:
    """The first client goes while readers stay: the answer is theirs, whatever the policy."""
    service = await stage.serve()
    plans, tasks = [], []
    for policy in ("cancel", "wait", "finish"):
        for rudely in (False, True):
            moment = "RST" if rudely else "FIN"
            plan = _plan(stage, "the first leaves, others stay", moment, policy, COMPLETED)
            plan.joins_at = plan.breaks_at
            plans.append(plan)
            tasks.append(stage.start(service, plan, _leaves_to_others(rudely)))
    await asyncio.gather(*tasks)
    await stage.finish(service, plans)


def _leaves_to_others(rudely: bool) -> Client:
    async def client(port: int, plan: Plan) -> None:
        connection = await Connection.ask(port, plan)
        assert connection is not None

        async def others_read() -> None:
            while not (len(plan.readers) == 2 and all(each.seen.raw for each in plan.readers)):
                await asyncio.sleep(0.005)

        reading = asyncio.create_task(connection.read_to_the_end())
        async with asyncio.timeout(10):
            await others_read()
        connection.leave(rudely=rudely)
        plan.client_left = False  # somebody is there all the while
        await reading
        await connection.close()

    return client


@scenario("readers/one comes back", rounds=4)
async def one_comes_back(stage: Stage) -> None:
    """All leave under `wait`, and one comes back in time: by its position, or by asking again with its
    key, also where it never saw an id."""
    service = await stage.serve()
    plans, tasks = [], []

    def add(moment: str, truth: Outcome, client: Client, **more: bool) -> None:
        plan = _plan(stage, "all leave", moment, "wait", truth, is_followed=False, **more)
        plans.append(plan)
        tasks.append(stage.start(service, plan, client))

    for _ in range(stage.many(4)):
        add("one comes back", COMPLETED, _comes_back(stage.chance))
        add("one asks again", COMPLETED, _asks_again(stage.chance, has_id=True), has_key=True)
        add("asks again, no token yet", COMPLETED, _asks_again(stage.chance), has_key=True)
        add("nobody comes back", LEFT, _stays_away(stage.chance))
    for plan in plans:
        plan.first_pause_seconds = 0.3 if "no token" in plan.moment else 0.0
    await asyncio.gather(*tasks)
    await stage.finish(service, plans)


async def _all_leave(port: int, plan: Plan, chance: random.Random) -> None:
    """The first client goes in the middle, after a reader of its stream."""
    connection = await Connection.ask(port, plan)
    assert connection is not None
    await connection.read_until(b"w%d.%d" % (plan.number, plan.breaks_at))
    name = id_shown(plan)
    assert name is not None
    reader = Reader("leaves, too", 0, leaves_at=2)
    plan.readers.append(reader)
    await read(port, name, reader)
    connection.leave(rudely=chance.random() < 0.5)
    await connection.close()


def _in_time(chance: random.Random) -> float:
    return chance.uniform(0, 0.6 * WAIT_SECONDS)


def _comes_back(chance: random.Random) -> Client:
    pause = _in_time(chance)

    async def client(port: int, plan: Plan) -> None:
        await _all_leave(port, plan, chance)
        plan.client_left = False  # it is there again at the end
        await asyncio.sleep(pause)
        plan.seen.read()
        name = plan.seen.completion_id
        assert name is not None
        reader = Reader("comes back", len(plan.seen.chunks))
        plan.readers.append(reader)
        await read(port, name, reader)

    return client


def _asks_again(chance: random.Random, *, has_id: bool = False) -> Client:
    pause = _in_time(chance)

    async def client(port: int, plan: Plan) -> None:
        if has_id:
            await _all_leave(port, plan, chance)
        else:
            connection = await Connection.ask(port, plan)
            assert connection is not None
            await plan.asked.wait()
            connection.leave(rudely=chance.random() < 0.5)
            await connection.close()
        plan.client_left = False
        await asyncio.sleep(pause)
        reader = Reader("asks again", 0)
        plan.readers.append(reader)
        await send(port, request_of(plan), reader)

    return client


def _stays_away(chance: random.Random) -> Client:
    async def client(port: int, plan: Plan) -> None:
        await _all_leave(port, plan, chance)

    return client
