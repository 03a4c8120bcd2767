"""Defines the cases: what is asked of each contender, and how one turn of each is run.

They run in rounds, the contenders one after the other in each, so that a drift of the machine hits
all alike. Every turn stops by itself when a contender can't keep up. Cases that need a fresh
process, `idle` and `endings`, are in `benchmarks.comparison.holding`.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from attrs import frozen

from benchmarks.comparison.loads import Figures, Load, again_and_again, at_once, spread
from benchmarks.contenders import Target
from benchmarks.stand.client import steer
from benchmarks.stand.plan import Plan, Shape

Turn = Callable[[Target], Coroutine[Any, Any, Load]]


@frozen
class Case:
    """One way to load a server.

    Attributes:
        name: `paced-100`; the workload is what stands before the dash.
        title: what happens, in a phrase.
        run: one turn.
        rounds: how often; the figures are the medians.
        shown: the figures that the table shows.
    """

    name: str
    title: str
    run: Turn
    rounds: int
    shown: tuple[str, ...]

    @property
    def workload(self) -> str:
        return self.name.partition("-")[0]


_PACED = (
    "cpu_us_per_chunk",
    "steady_cpu_us_per_chunk",
    "cpu_percent",
    "delay_p50_ms",
    "delay_p99_ms",
    "ttft_p50_ms",
    "done_delay_p50_ms",
    "delivered_percent",
    "complete_percent",
)
_BURST = ("cpu_us_per_chunk", "chunks_per_second", "complete_percent")
_SHORT = ("cpu_ms_per_request", "requests_per_second", "whole_p50_ms", "whole_p99_ms")
_ARRIVAL = ("ttft_p50_ms", "ttft_p99_ms", "added_ttft_p50_ms", "added_ttft_p99_ms")

_INTERVAL_US = 20_000


def _paced(streams: int, chunks: int, rounds: int, shape: Shape = "paced") -> Case:
    plan = Plan(chunks, _INTERVAL_US, shape)
    seconds = chunks * _INTERVAL_US / 1e6
    over = min(1.0, seconds / 4)

    async def run(target: Target) -> Load:
        limit = over + seconds * 1.25 + 1
        return await spread(target, plan, streams, over, limit, (over + 0.5, seconds - 0.2))

    title, name = f"{streams:,} streams of {chunks} chunks, 50 a second, arriving apart", ""
    if shape == "unlike":
        title, name = f"{title}, with another `obfuscation` in each", "-unlike"
    return Case(f"paced-{streams}{name}", title, run, rounds, _PACED)


def _burst(shape: Shape, chunks: int, rounds: int) -> Case:

    async def run(target: Target) -> Load:
        plan = Plan(round(chunks * target.share), 0, shape)
        return await spread(target, plan, 2, 0.0, 6.0)

    writes = "300 chunks to a write" if shape == "big" else "one chunk to a write"
    title = f"2 streams of {chunks:,} chunks as fast as they are taken, {writes}"
    return Case(f"burst-{shape}", title, run, rounds, _BURST)


def _short(seconds: float, rounds: int) -> Case:
    async def run(target: Target) -> Load:
        return await again_and_again(target, Plan(1), 16, seconds)

    title = f"one-chunk answers, one after the other on 16 connections, for {seconds:g} s"
    return Case("short-16", title, run, rounds, _SHORT)


def _arrival(streams: int, rounds: int) -> Case:
    async def run(target: Target) -> Load:
        return await at_once(target, Plan(20, _INTERVAL_US), streams, 10.0)

    title = f"{streams} requests at once, answers of 20 chunks, 50 a second"
    return Case(f"arrival-{streams}", title, run, rounds, _ARRIVAL)


def cases(is_quick: bool) -> list[Case]:
    """All that run in rounds; a quick run has fewer and shorter ones."""
    if is_quick:
        return [
            _paced(100, 150, 1),
            _paced(100, 150, 1, "unlike"),
            _burst("big", 20_000, 1),
            _burst("small", 20_000, 1),
            _short(1.5, 1),
            _arrival(100, 2),
        ]
    return [
        _paced(10, 200, 2),
        _paced(100, 200, 4),
        _paced(100, 200, 2, "unlike"),
        _paced(1_000, 200, 1),
        _burst("big", 30_000, 3),
        _burst("small", 30_000, 3),
        _short(2.0, 3),
        _arrival(100, 15),
        _arrival(200, 5),
    ]


async def measured(case: Case, target: Target, upstream_port: int) -> Figures:
    """One turn's figures, with how late the backend was."""
    await steer(upstream_port, "/lag")
    load = await case.run(target)
    lag = await steer(upstream_port, "/lag")
    figures = load.figures()
    figures["upstream_lag_ms"] = float(lag.partition(b":")[2].strip(b" }"))
    return figures
