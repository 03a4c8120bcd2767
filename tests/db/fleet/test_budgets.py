"""What callers may use over all replicas, held against each engine, and against one process's `Budget`."""

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.fleet.budgets import Amounts, Standing, Used
from db.fleet.memory_budgets import MemoryBudgets
from db.fleet.redis_budgets import RedisBudgets
from db.fleet.redis_link import RedisLink
from service.callers.limits import Account, Budget
from service.settings.access import LimitsConfig
from tests.db.fleet.conftest import MakeEngine
from tests.redis_servers import RedisServer

NOTHING = Used()
SLACK = 0.5
"""Seconds that a call may take on a machine that is busy."""


async def test_requests_are_counted_over_all_replicas(make_engine: MakeEngine) -> None:
    """Of a limit each replica takes its part, and who is over it anywhere is so everywhere."""
    one, two = make_engine().budgets, make_engine().budgets
    amounts = Amounts(requests=3)
    found = [await each.admit("anne", amounts, NOTHING) for each in (one, two, one, two, one)]
    assert [None, None, None, "requests", "requests"] == [each.refusal for each in found]
    assert 20 == pytest.approx(found[0].requests_full_in, abs=SLACK)
    assert 60 == pytest.approx(found[-1].requests_full_in, abs=SLACK)
    assert (await two.admit("bob", amounts, NOTHING)).refusal is None


async def test_tokens_are_charged_after_the_fact(make_engine: MakeEngine) -> None:
    """Past zero too; then no stream begins anywhere, and a repeat, which needs none, is let in."""
    one, two = make_engine().budgets, make_engine().budgets
    amounts = Amounts(requests=1000, tokens=100)
    used = Used(tokens=150)
    assert (await one.admit("anne", amounts, NOTHING, stream="a:1")).refusal is None
    settled = await one.settle({"anne": (amounts, used)})
    assert 90 == pytest.approx(settled["anne"].tokens_full_in, abs=SLACK)
    assert "tokens" == (await two.admit("anne", amounts, NOTHING, stream="b:1")).refusal
    assert (await two.admit("anne", amounts, NOTHING)).refusal is None


async def test_telling_twice_charges_once(make_engine: MakeEngine) -> None:
    """However often a sum is told, and in whatever order its tellings arrive."""
    one = make_engine().budgets
    amounts = Amounts(requests=60, tokens=60)
    for used in (Used(2, 10), Used(2, 10), Used(3, 15), Used(2, 10), Used(3, 20, 2, 15)):
        standing = (await one.settle({"anne": (amounts, used)}))["anne"]
    assert (3, 20) == pytest.approx((standing.requests_full_in, standing.tokens_full_in), abs=SLACK)


async def test_what_was_confirmed_is_not_charged_to_an_engine_that_lost_it(
    make_engine: MakeEngine,
) -> None:
    """A replica that has been there for a year doesn't bill the year at once."""
    one = make_engine().budgets
    amounts = Amounts(tokens=60)
    used = Used(tokens=1_000_007, known_tokens=1_000_000)
    assert 7 == pytest.approx(
        (await one.settle({"anne": (amounts, used)}))["anne"].tokens_full_in, abs=SLACK
    )


async def test_streams_are_counted_over_all_replicas(make_engine: MakeEngine) -> None:
    """One that ends makes room for one anywhere; the same one twice is one."""
    one, two = make_engine().budgets, make_engine().budgets
    amounts = Amounts(streams=2)
    assert 1 == (await one.admit("anne", amounts, NOTHING, stream="a:1")).streams
    assert 1 == (await one.admit("anne", amounts, NOTHING, stream="a:1")).streams
    assert 2 == (await two.admit("anne", amounts, NOTHING, stream="b:1")).streams
    full = await one.admit("anne", amounts, NOTHING, stream="a:2")
    assert ("streams", 2) == (full.refusal, full.streams)
    await two.settle({"anne": (amounts, Used(ended=("b:1",)))})
    assert (await one.admit("anne", amounts, NOTHING, stream="a:2")).refusal is None


async def test_a_refused_request_uses_nothing_up(make_engine: MakeEngine) -> None:
    """Refused for its stream, it isn't a request; refused as a request, it takes no stream."""
    budgets = make_engine().budgets
    amounts = Amounts(requests=2, streams=1)
    await budgets.admit("anne", amounts, NOTHING, stream="a:1")
    for number in range(5):
        refused = await budgets.admit("anne", amounts, NOTHING, stream=f"a:1{number}")
        assert "streams" == refused.refusal
        assert 30 == pytest.approx(refused.requests_full_in, abs=SLACK)
    assert (await budgets.admit("anne", amounts, NOTHING)).refusal is None
    roomy = Amounts(requests=2, streams=9)
    assert "requests" == (await budgets.admit("anne", roomy, NOTHING, stream="a:2")).refusal
    assert 1 == (await budgets.settle({"anne": (roomy, NOTHING)}))["anne"].streams


async def test_a_stream_whose_lease_ran_out_gives_its_place_back(make_engine: MakeEngine) -> None:
    """Unless it was renewed; and one that was renewed too late counts again."""
    budgets, later = make_engine().budgets, make_engine().budgets
    amounts = Amounts(streams=2)
    for name in ("a:1", "a:2"):
        await budgets.admit("anne", amounts, NOTHING, stream=name, lease_seconds=0.3)
    await budgets.renew({"anne": ["a:1"], "bob {x}": ["a:3"]}, 30)
    assert "streams" == (await later.admit("anne", amounts, NOTHING, stream="b:1")).refusal
    await asyncio.sleep(0.4)
    assert 2 == (await later.admit("anne", amounts, NOTHING, stream="b:1")).streams
    await budgets.renew({"anne": ["a:1", "a:2"]}, 30)
    assert 3 == (await later.settle({"anne": (amounts, NOTHING)}))["anne"].streams


async def test_other_amounts_apply_at_once(make_engine: MakeEngine) -> None:
    """What was used of the ones before stays used; without a limit nothing is counted."""
    budgets = make_engine().budgets

    async def full_in(requests: int | None) -> float:
        amounts = Amounts(requests=requests)
        return (await budgets.settle({"anne": (amounts, NOTHING)}))["anne"].requests_full_in

    for _ in range(6):
        await budgets.admit("anne", Amounts(requests=10), NOTHING)
    found = [await full_in(limit) for limit in (20, 10, None, 10)]
    assert [18, 36, 0, 0] == pytest.approx(found, abs=SLACK)


# --- against one process's own --------------------------------------------------------------------

ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0, 30)),
        st.tuples(st.just("admit"), st.booleans()),
        st.tuples(st.just("charge"), st.integers(0, 300)),
        st.tuples(st.just("resize"), st.tuples(*[st.none() | st.integers(1, 200)] * 2)),
    ),
    max_size=40,
)


def limits_of(limits: tuple[int | None, int | None]) -> LimitsConfig:
    return LimitsConfig(limits[0], limits[1], None)


class Alone:
    """What one process counts by itself, asked the same things."""

    def __init__(self, limits: tuple[int | None, int | None]) -> None:
        self.account = Account(limits_of(limits))

    def admit(self, now: float, *, stream: bool) -> Standing:
        refusal = None
        if stream and self.account.tokens.wait_seconds(now):
            refusal = "tokens"
        elif self.account.requests.wait_seconds(now):
            refusal = "requests"
        else:
            self.account.requests.take(1, now)
        return Standing(refusal, 0, *self.full_in(now))  # type: ignore[arg-type]

    def full_in(self, now: float) -> tuple[float, float]:
        def one(budget: Budget) -> float:
            return 0.0 if budget.per_minute is None else budget.full_in_seconds(now)

        return one(self.account.requests), one(self.account.tokens)


@given(ACTS, st.tuples(*[st.none() | st.integers(1, 200)] * 2))
def test_the_twin_counts_as_one_process_does(
    acts: list[Any], limits: tuple[int | None, int | None]
) -> None:
    """Whatever is asked in whatever order: the same is refused, and the same is left."""
    now, used = 1000.0, 0
    alone = Alone(limits)
    shared = MemoryBudgets("a", {}, lambda: now)

    async def play() -> None:
        nonlocal now, used, limits
        for number, (act, told) in enumerate(acts):
            if act == "wait":
                now += told
            elif act == "admit":
                stream = str(number) if told else None
                ours = alone.admit(now, stream=told)
                theirs = await shared.admit(
                    "anne", Amounts(*limits), Used(tokens=used), stream=stream
                )
                assert ours.refusal == theirs.refusal
                assert ours.requests_full_in == pytest.approx(theirs.requests_full_in, abs=1e-6)
            elif act == "charge":
                used += told
                alone.account.tokens.take(told, now)
                settled = await shared.settle({"anne": (Amounts(*limits), Used(tokens=used))})
                standing = settled["anne"]
                expected = alone.full_in(now)
                assert expected == pytest.approx(
                    (standing.requests_full_in, standing.tokens_full_in), abs=1e-6
                )
            else:
                await shared.settle({"anne": (Amounts(*limits), Used(tokens=used))})
                limits = told
                alone.account.resize(limits_of(limits), now)
                await shared.settle({"anne": (Amounts(*limits), Used(tokens=used))})

    asyncio.run(play())


SERVERS_ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.booleans()),
        st.tuples(st.just("charge"), st.integers(0, 300)),
        st.tuples(st.just("resize"), st.tuples(*[st.integers(1, 20)] * 2)),
    ),
    max_size=25,
)


@settings(max_examples=15, deadline=None)
@given(SERVERS_ACTS, st.tuples(*[st.integers(1, 20)] * 2), st.integers(0, 10**9))
def test_the_script_counts_as_one_process_does(
    redis_for_all: RedisServer, acts: list[Any], limits: tuple[int, int], number: int
) -> None:
    """The same on the server's clock, as near as the time that calls take: with at most twenty a minute,
    what comes back within a sequence is a small part of one."""
    owner, alone, used = f"anne {number}", Alone(limits), 0

    async def play() -> None:
        nonlocal limits, used
        link = RedisLink(redis_for_all.url)
        budgets = RedisBudgets(link, "a")
        try:
            for position, (act, told) in enumerate(acts):
                amounts, begun = Amounts(*limits), time.monotonic()
                if act == "resize":
                    limits, amounts = told, Amounts(*told)
                    alone.account.resize(limits_of(limits), time.monotonic())
                elif act == "charge":
                    used += told
                    alone.account.tokens.take(told, time.monotonic())
                if act == "admit":
                    stream = str(position) if told else None
                    theirs = await budgets.admit(owner, amounts, Used(tokens=used), stream=stream)
                    ours = alone.admit(time.monotonic(), stream=told)
                    assert ours.refusal == theirs.refusal
                else:
                    told = {owner: (amounts, Used(tokens=used))}
                    theirs = (await budgets.settle(told))[owner]
                expected = alone.full_in(time.monotonic())
                slack = 0.05 + 20 * (time.monotonic() - begun)
                assert expected == pytest.approx(
                    (theirs.requests_full_in, theirs.tokens_full_in), abs=slack
                )
            await link.client.flushall()
        finally:
            await link.close()

    asyncio.run(play())


async def test_every_key_of_an_owner_lives_for_a_limited_time(own_redis: RedisServer) -> None:
    """In one slot, whatever the owner is called."""
    link = RedisLink(own_redis.url)
    budgets = RedisBudgets(link, "a")
    amounts = Amounts(60, 60, 5)
    await budgets.admit("{a}{b} c", amounts, Used(1, 1), stream="a:1")
    await budgets.renew({"{a}{b} c": ["a:1"]}, 30)
    keys = sorted(key.decode() for key in await link.client.keys("*"))
    try:
        tag = "{%7Ba%7D%7Bb%7D%20c}"
        expected = [f"verbatim:1:{kind}" for kind in (f"charged:{tag}:a", f"limit:{tag}")]
        assert [*expected, f"verbatim:1:streams:{tag}"] == keys
        for key in keys:
            assert 0 < await link.client.pttl(key) <= 3_600_000
    finally:
        await link.close()
