"""The fault matrix in short: every family of faults once, small, with one seed.

`make faults` plays all of it, larger and many times.
"""

import asyncio
from collections.abc import Iterator

import pytest

from tests.faults import scenarios as scenarios  # puts them on the list
from tests.faults.plans import Plan
from tests.faults.run import play
from tests.faults.scenario import SCENARIOS, Scenario
from tests.faults.stage import Ground, Stage, ground

pytestmark = pytest.mark.faults

SEED = 20260101
SHORT = (
    "upstream",
    "client",
    "kill/ten times",
    "drain/twice",
    "database/stopped/mid-stream/killed",
    "journal/flipped bits",
    "poison/SQLSTATE 22023",
)
BY_NAME = {one.name: one for one in SCENARIOS}


@pytest.fixture(scope="module")
def place() -> Iterator[Ground]:
    """One server for all."""
    with ground() as made:
        yield made


@pytest.fixture
def clean(place: Ground) -> Iterator[Ground]:
    """The ground, with nothing in its table."""
    place.table.clear()
    yield place


@pytest.mark.parametrize("name", SHORT)
async def test_nothing_is_lost(clean: Ground, name: str) -> None:
    """Every word that a client was shown is in PostgreSQL, once, with a truthful state."""
    await play(clean, BY_NAME[name], seed=SEED, scale=0.25)
    table = clean.table
    assert [] == [*map(str, table.failures), *table.complaints]
    assert table.total[0] > 0


async def test_a_loss_would_be_seen(clean: Ground) -> None:
    """The matrix can fail: without a journal, a kill loses words, and it says so."""

    async def without_journal(stage: Stage) -> None:
        service = await stage.serve(journal__directory=None)
        plans = [stage.plan("kill", "", may_vanish=True, words=100) for _ in range(5)]
        tasks = [stage.start(service, plan) for plan in plans]
        await asyncio.sleep(0.8)
        service.kill()
        await asyncio.gather(*tasks)
        await stage.judge(plans)

    await play(clean, Scenario("kill/no journal", without_journal, 1), seed=SEED)
    _, shown, lost, *_ = clean.table.total
    assert 0 < lost <= shown


async def test_a_lie_would_be_seen(clean: Ground) -> None:
    """The oracle can fail: rows that were tampered with are found out, each in its own way."""

    async def tampered(stage: Stage) -> None:
        service = await stage.serve()
        plans = [stage.plan("tampered", "", words=5) for _ in range(10)]
        plans = [plan for plan in plans if plan.is_plain][: len(TAMPERING)]
        for number, plan in enumerate(plans):
            plan.moment = str(number)
        await stage.play(service, plans)
        await stage.settle(service)
        for plan in plans:
            plan.seen.read()
        for plan, statement in zip(plans, TAMPERING, strict=True):
            identity = (plan.seen.completion_id,)
            stage.database.execute(f"{statement} WHERE completion_id = %s", identity)
        await stage.judge(plans)

    await play(clean, Scenario("tampered", tampered, 1), seed=SEED)
    table = clean.table
    assert [] == table.complaints
    assert {verdict.plan.moment for verdict in table.failures} == set("01234")
    assert {
        (True, False, True),
        (True, True, True),
        (False, False, True),
    } == {(row.lost > 0, row.duplicates > 0, row.wrong > 0) for row in table.rows.values()}


TAMPERING = (
    "UPDATE messages SET content_raw = NULL, content = regexp_replace(content, '[^ ]+ $', '')",
    "UPDATE messages SET content_raw = NULL, content = replace(content, '.3 ', '.1 ')",
    "UPDATE messages SET state = 'partial'",
    "UPDATE completions SET state = 'failed'",
    "DELETE FROM messages",
)


@pytest.mark.parametrize(
    ("raw", "broken"),
    [
        (b": keep-alive\n\ndata: [DONE]\n\n", "neither event nor ping"),
        (b"data: [DONE]\n\ndata: {}\n\n", "bytes after the end"),
        (b"data: {oops}\n\n", "bad JSON"),
        (b"data: [DONE]\n", "ends within an event"),
        (b"event: x\ndata: [DONE]\n\n", "neither event nor ping"),
    ],
)
def test_bad_bytes_would_be_seen(raw: bytes, broken: str) -> None:
    """The client's reader knows a bad stream when it sees one."""
    plan = Plan(number=1, fault="", moment="")
    plan.seen.raw += (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b"
        % (len(raw), raw)
    )
    plan.seen.read()
    assert any(broken in said for said in plan.seen.broken), plan.seen.broken
