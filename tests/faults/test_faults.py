"""The fault matrix in short: every family of faults once, small, with one seed.

`make faults` plays all of it, larger and many times.
"""

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.faults import scenarios as scenarios  # puts them on the list
from tests.faults.compare import compare
from tests.faults.plans import COMPLETED, Plan, Reader
from tests.faults.run import play
from tests.faults.scenario import SCENARIOS, Scenario
from tests.faults.stage import Ground, Stage, ground

pytestmark = pytest.mark.faults

SEED = 20260101
SHORT = (
    "upstream",
    "client",
    "readers/first leaves",
    "readers/one comes back",
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


def sse(*events: bytes) -> bytes:
    body = b"".join(b"data: " + event + b"\n\n" for event in events)
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def piece(number: int) -> bytes:
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"content": f"w1.{number} "}, "finish_reason": None}],
        }
    ).encode()


ONE, TWO, THREE, FOUR = map(piece, range(4))
GONE = b'{"error":{"message":"","type":"","param":null,"code":"not_found"}}'
END, FAILED = b"[DONE]", b'{"error":{"message":"","type":"","param":null,"code":"draining"}}'


@pytest.mark.parametrize(
    ("position", "raw", "numbers"),
    [
        (0, sse(ONE, TWO, THREE, END), (0, 0, 0, 0)),
        (1, sse(TWO, THREE, END), (0, 0, 0, 0)),
        (3, sse(END), (0, 0, 0, 0)),
        (0, sse(ONE, THREE, END), (1, 0, 0, 0)),
        (0, sse(ONE, TWO, END), (1, 0, 0, 0)),
        (0, sse(ONE, ONE, TWO, THREE, END), (0, 1, 0, 0)),
        (1, sse(THREE, END), (1, 0, 0, 0)),
        (2, sse(TWO, THREE, END), (0, 1, 0, 0)),
        (0, sse(ONE, FOUR, THREE, END), (0, 0, 1, 0)),
        (0, sse(ONE, TWO, THREE, FOUR, END), (1, 0, 0, 0)),
        (0, sse(ONE, TWO, THREE, FAILED), (0, 0, 0, 1)),
        (0, sse(ONE, TWO, THREE), (0, 0, 0, 1)),
        (0, sse(ONE, TWO, THREE)[:-10], (0, 0, 0, 1)),
        (0, b"HTTP/1.1 404 X\r\nContent-Length: %d\r\n\r\n%b" % (len(GONE), GONE), (0, 0, 0, 1)),
    ],
)
def test_a_wrong_reader_would_be_seen(position: int, raw: bytes, numbers: tuple[int, ...]) -> None:
    """What a reader lost, had twice, had otherwise, or took for the end."""
    plan = Plan(number=1, fault="", moment="")
    plan.seen.raw += sse(ONE, TWO, THREE, END)
    plan.whole = Reader("from the start, after the fault", 0)
    plan.whole.seen.raw += plan.seen.raw
    reader = Reader("", position)
    reader.seen.raw += raw
    plan.readers = [reader, plan.whole]
    plan.seen.read()
    found = compare(plan, COMPLETED)
    assert (2, *numbers, 0) == found.numbers, found.said
