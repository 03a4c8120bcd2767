"""Records that PostgreSQL refuses, or chokes on, among good ones."""

import asyncio
import re
import subprocess
import sys

from tests.faults.plans import COMPLETED, DIED
from tests.faults.scenario import scenario
from tests.faults.service import ROOT
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
