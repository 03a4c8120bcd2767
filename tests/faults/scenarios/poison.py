"""Records that PostgreSQL refuses, or chokes on, among good ones."""

import asyncio
import re
import subprocess
import sys

from tests.faults.plans import COMPLETED, DIED, Plan
from tests.faults.scenario import scenario
from tests.faults.service import ROOT, Service
from tests.faults.stage import Stage

_FORBID = """
CREATE FUNCTION forbid_{name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.client_key = ANY ('{{{keys}}}') THEN
        RAISE EXCEPTION 'not this one' USING ERRCODE = '{code}';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER forbid BEFORE INSERT ON conversations
    FOR EACH ROW EXECUTE FUNCTION forbid_{name}();
"""


def _story(code: str, *, killed: bool) -> None:
    what = f"SQLSTATE {code}{' + SIGKILL' if killed else ''}"

    @scenario(f"poison/{what}", rounds=1)
    async def play(stage: Stage) -> None:
        await _play(stage, code, what, killed=killed)


for _code in ("22023", "23514"):
    for _killed in (False, True):
        _story(_code, killed=_killed)


async def _play(stage: Stage, code: str, what: str, *, killed: bool) -> None:
    """Five of thirty records are refused. The others are committed, those five are set aside; once
    the reason is gone, a command saves them."""
    plans = [
        stage.plan(
            f"poison: {what}",
            "neighbours",
            expected=frozenset((COMPLETED, DIED)) if killed else frozenset((COMPLETED,)),
            may_vanish=killed,
        )
        for _ in range(stage.many(30, least=10))
    ]
    poisoned = stage.chance.sample(plans, 5)
    for plan in poisoned:
        plan.moment = "the poisoned ones"
    name = f"{poisoned[0].number}"
    keys = ",".join(plan.key for plan in poisoned)
    forbid = _FORBID.format(name=name, keys=keys, code=code)
    await stage.harm(stage.database.execute, forbid)
    try:
        service = await stage.serve()
        tasks = [stage.start(service, plan) for plan in plans]
        if killed:
            await asyncio.sleep(stage.chance.uniform(0.4, 0.7))
            service.kill()
            await asyncio.gather(*tasks)
            service = await stage.serve()
        await asyncio.gather(*tasks)
        await stage.settle(service)
        await stage.judge([plan for plan in plans if plan not in poisoned])
    finally:
        drop = f"DROP TRIGGER forbid ON conversations; DROP FUNCTION forbid_{name}"
        await stage.harm(stage.database.execute, drop)
    letters = sorted((stage.journal / "dead-letters").glob("*.json"))
    ids = {plan.seen.completion_id for plan in poisoned if plan.seen.completion_id}
    if not ids <= {path.stem for path in letters}:
        stage.complain(f"{len(letters)} dead letters for {len(ids)} poisoned records")
    await stage.harm(_retry, stage, len(letters))
    await stage.finish(service, poisoned)


def _retry(stage: Stage, expected: int) -> None:
    command = [sys.executable, "-m", "db.dead_letters", str(stage.journal), "retry"]
    done = subprocess.run(
        [*command, "--database", stage.database.dsn],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    saved = len(re.findall(": saved", done.stdout))
    if done.returncode != 0 or saved != expected:
        stage.complain(f"dead letters: {saved} of {expected} saved: {done.stdout}{done.stderr}")


# --- nothing is refused, it is only too much ---------------------------------------------------


@scenario("poison/enormous history", rounds=1)
async def enormous_history(stage: Stage) -> None:
    """One request with as many messages as are allowed. However long PostgreSQL takes over it,
    its neighbours are saved meanwhile or soon after."""
    service = await stage.serve(first_token_seconds=20, server__max_body_bytes=10 * 1024 * 1024)
    fault = "poison: 10,000 messages in one request"
    huge = stage.plan(fault, "the enormous one", words=5, history=9_000)
    await stage.play(service, [huge])
    neighbours = [stage.plan(fault, "neighbours", words=5) for _ in range(stage.many(10))]
    await stage.play(service, neighbours)
    await _all_saved(stage, service, neighbours, [huge])


@scenario("poison/enormous batch", rounds=1)
async def enormous_batch(stage: Stage) -> None:
    """Many large requests that wait for the database together are not too much for it together."""
    await stage.harm(stage.database.stop)
    service = await stage.serve(first_token_seconds=20, database__commit_timeout_seconds=0.05)
    fault = "poison: 25 requests of 8 MB"
    large = [stage.plan(fault, "the enormous ones", words=5, ballast=8_000_000) for _ in range(25)]
    for plan in large:
        await stage.play(service, [plan])
    neighbours = [stage.plan(fault, "neighbours", words=5) for _ in range(stage.many(10))]
    await stage.play(service, neighbours)
    await stage.harm(stage.database.start)
    await _all_saved(stage, service, neighbours, large)


async def _all_saved(
    stage: Stage, service: Service, neighbours: list[Plan], large: list[Plan]
) -> None:
    """A kill instead of a clean stop if they aren't: what blocks a save would block that too."""
    complaints = len(stage.table.complaints)
    await stage.settle(service, patience_seconds=60)
    await stage.judge([*large, *neighbours])
    if len(stage.table.complaints) == complaints:
        assert await service.stop() == 0
    service.kill()
