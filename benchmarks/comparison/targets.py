"""Judges a run by the project's targets."""

import math
from collections.abc import Iterator

from attrs import frozen

from benchmarks.comparison.compare import Results

_DELIVERED = 99.0


@frozen
class Target:
    """One promise.

    Attributes:
        what: in words, with the limit.
        found: the figure that the limit is for, None if the run had nothing to say.
        limit: at most this.
        made_of: the figures behind it.
    """

    what: str
    found: float | None
    limit: float
    made_of: str

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        return "ok" if self.found <= self.limit else "missed"


def targets(results: Results) -> list[Target]:
    """All promises, in the order of the workloads."""
    return [*_paced(results), *_burst(results), *_arrival(results), *_absolute(results)]


def _ratio(results: Results, what: str, limit: float, case: str, figure: str, other: str) -> Target:
    ours, theirs = (results.figure(case, name, figure) for name in ("ours", other))
    if ours is None or theirs is None:
        return Target(what, None, limit, "")
    # What nginx adds to an arrival may be too little to be seen, and then be negative.
    found = ours / theirs if theirs > 0 else math.inf
    return Target(what, found, limit, f"{ours:.3g} / {theirs:.3g}, {case}")


def _paced(results: Results) -> Iterator[Target]:
    for other, limit, words in (
        ("nginx", 3.0, "3 × nginx's"),
        ("litellm", 1 / 15, "1/15 of LiteLLM's"),
        ("textbook", 1 / 3, "1/3 of the textbook's"),
    ):
        what = f"paced: CPU per chunk ≤ {words}"
        yield _ratio(results, what, limit, _fair_case(results, other), "cpu_us_per_chunk", other)
    steady = "steady_cpu_us_per_chunk"
    for other, limit, words in (
        ("aiohttp", 1.15, "1.15 × aiohttp's"),
        ("nginx", 1.6, "1.6 × nginx's"),
    ):
        what = f"paced: steady CPU per chunk ≤ {words}"
        yield _ratio(results, what, limit, "paced-100", steady, other)
    with_it, without = (
        results.figure("paced-100", name, "cpu_us_per_chunk") for name in ("ours", "bare")
    )
    what = "paced: journal and persistence ≤ 15 % of CPU per chunk"
    if with_it is None or without is None:
        yield Target(what, None, 0.15, "")
    else:
        made_of = f"({with_it:.3g} - {without:.3g}) / {with_it:.3g}, paced-100"
        yield Target(what, (with_it - without) / with_it, 0.15, made_of)


def _fair_case(results: Results, other: str) -> str:
    """paced-100, or fewer streams if the other didn't deliver everything there: an answer cut off
    halfway would charge its request to half the chunks."""
    delivered = results.figure("paced-100", other, "delivered_percent")
    if (delivered is None or delivered < _DELIVERED) and "paced-10" in results.rounds:
        return "paced-10"
    return "paced-100"


def _burst(results: Results) -> Iterator[Target]:
    for shape, words in (("big", "many chunks to a write"), ("small", "one chunk to a write")):
        what = f"burst, {words}: CPU per chunk ≤ 2 × nginx's"
        yield _ratio(results, what, 2.0, f"burst-{shape}", "cpu_us_per_chunk", "nginx")
        what = f"burst, {words}: CPU per chunk ≤ aiohttp's"
        yield _ratio(results, what, 1.0, f"burst-{shape}", "cpu_us_per_chunk", "aiohttp")


def _arrival(results: Results) -> Iterator[Target]:
    case, figure = "arrival-100", "added_ttft_p99_ms"
    what = "arrival: added TTFT p99 ≤ {}"
    yield _ratio(results, what.format("4 × nginx's"), 4.0, case, figure, "nginx")
    yield _ratio(results, what.format("1/20 of LiteLLM's"), 1 / 20, case, figure, "litellm")


def _absolute(results: Results) -> Iterator[Target]:
    found = results.figure("short-16", "ours", "cpu_ms_per_request")
    yield Target("short: ≤ 1.0 ms of CPU per request, its save included", found, 1.0, "short-16")
    idle = next((case for case in results.rounds if case.startswith("idle-")), "")
    found = results.figure(idle, "ours", "kb_per_stream")
    yield Target("idle: ≤ 40 KiB per open stream", found, 40.0, idle)
    what = "idle: memory of an open stream ≤ aiohttp's"
    yield _ratio(results, what, 1.0, idle, "kb_per_stream", "aiohttp")
