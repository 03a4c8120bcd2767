"""Records that PostgreSQL refuses, or chokes on, among good ones."""

import asyncio
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests.faults.oracle import QUERY, Row, Verdict, rows_from
from tests.faults.plans import COMPLETED, DIED, Plan
from tests.faults.scenario import scenario
from tests.faults.service import ROOT, Service
from tests.faults.stage import Stage
from tests.faults.upstream import Misdeed, chunk_of
from tests.service.stage.backend import Exchange

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
        assert 0 == await service.stop()
    service.kill()


# --- odd values in every place ------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        2**31,
        2**63,
        -(2**63) - 1,
        10**30,
        0.1,
        1e300,
        5e-324,
        "",
        "\0",
        "\ud800",
    ),
    *("␛0000", "x" * 3000, "\udfff\0" * 500, [], {}, [[]], {"\0": "\ud800"}, {"": {"": None}}),
    *([None, 1e308, "\0"], {"a" * 3000: 1}, "\\u0000", "NaN", [[[[[[{"x": [1]}]]]]]]),
)
"""What columns, indexes and JSON are known to stumble over."""
_CHUNK_FIELDS = ("id", "model", "created", "usage", "system_fingerprint", "vendor", "\0")
_CHOICE_FIELDS = ("index", "logprobs", "vendor", "\ud800", "finish_reason")
_DELTA_FIELDS = ("role", "refusal", "reasoning_content", "tool_calls", "function_call", "\0")
_REQUEST_FIELDS = ("temperature", "user", "seed", "stop", "tools", "store", "response_format", "\0")


@scenario("poison/odd values", rounds=2)
async def odd_values(stage: Stage) -> None:
    """Whatever values an upstream and a client send, in whatever place, the words are saved and
    nothing has to be set aside."""
    service = await stage.serve()
    plans = [
        stage.plan(
            "poison: odd values",
            "mid-stream",
            misdeed=_say_odd_things(stage.chance),
            words=5,
            breaks_at=3,
            interval_seconds=0.0,
            extra=_odd(stage.chance, _REQUEST_FIELDS, 3),
        )
        for _ in range(stage.many(120))
    ]
    await stage.play(service, plans)
    await stage.settle(service)
    letters = list((stage.journal / "dead-letters").glob("*.json"))
    if letters:
        stage.complain(f"set aside: {[letter.read_text()[:200] for letter in letters[:3]]}")
    for plan in plans:
        plan.seen.read()
        plan.finished = plan.seen.done
        is_refused = plan.seen.status == 400
        plan.refusals = frozenset((plan.seen.code or "",)) if is_refused else frozenset()
    keys = [plan.key for plan in plans]
    found = await asyncio.to_thread(stage.database.execute, QUERY, (keys, []))
    rows = {row.key: row for row in rows_from(found)}
    stage.table.add(_judge_odd(plan, rows.get(plan.key)) for plan in plans)
    if (status := await service.stop()) != 0:
        stage.complain(f"exit status {status}")


def _judge_odd(plan: Plan, row: Row | None) -> Verdict:
    """There is a row, it is as whole as the client was told, and holds what was shown."""
    seen = plan.seen
    verdict = Verdict(plan, shown=seen.word_count)
    if row is None:
        if not plan.refusals:
            verdict.wrong.append(f"no row; {bytes(seen.raw[:300])!r}")
            verdict.lost = verdict.shown
        return verdict
    if seen.done != (row.outcome.state == "completed"):
        verdict.wrong.append(f"shown [DONE]: {seen.done}, the row is {row.outcome}")
    kept = "".join(message.text for message in row.messages)
    verdict.lost = sum(plan.word(place) not in kept for place in range(plan.breaks_at))
    return verdict


def _odd(chance: random.Random, fields: Sequence[str], most: int) -> dict[str, Any]:
    chosen = chance.sample(fields, chance.randint(0, most))
    return {name: chance.choice(ODD) for name in chosen}


def _say_odd_things(chance: random.Random) -> Misdeed:
    payloads = []
    for _ in range(chance.randint(1, 3)):
        payload: Any = chunk_of(0, {"content": ""})
        payload["choices"][0]["delta"] |= _odd(chance, _DELTA_FIELDS, 2)
        payload["choices"][0] |= _odd(chance, _CHOICE_FIELDS, 1)
        payloads.append(payload | _odd(chance, _CHUNK_FIELDS, 2))

    async def say(exchange: Exchange, _moment: str) -> None:
        for payload in payloads:
            await exchange.event(payload)
        await exchange.finish()

    return say
