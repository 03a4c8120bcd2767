"""Measures what a stream costs when 10 to 5,000 are open, of our service alone.

`python -m benchmarks --growth`. The backend's chunks per second stay the same at every level, only
spread over more streams, so that whatever grows is the price of a stream being open. Each level is
a fresh process.
"""

import asyncio
from array import array
from pathlib import Path

from benchmarks.comparison.compare import Bench, Results, warm_up
from benchmarks.comparison.holding import Held, hold, open_streams
from benchmarks.comparison.loads import Figures, calm
from benchmarks.contenders import CONTENDERS, Target
from benchmarks.stand.client import steer, wait_all
from benchmarks.stand.figures import percentile, short
from benchmarks.stand.machine import cpu_seconds
from benchmarks.stand.plan import Plan

LEVELS = (10, 100, 1_000, 5_000)
_CHUNKS_PER_SECOND = 2_000
_WINDOW_SECONDS = 5.0
_PROBES = 30
_PING_SECONDS = 3.0
_ENDLESS = 9_000_000

_SHOWN = (
    "cpu_us_per_chunk",
    "delay_p50_ms",
    "delay_p99_ms",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "kb_per_stream",
    "cpu_us_per_ping",
    "done_delay_p99_ms",
    "complete_percent",
)


def grow(bench: Bench, results: Results, levels: tuple[int, ...] = LEVELS) -> None:
    """All levels; the results' case is called `growth`, its contenders are the levels."""
    title = f"ours, {_CHUNKS_PER_SECOND:,} chunks a second over so many open streams"
    results.describe("growth", title, _SHOWN)
    for streams in levels:
        bench.tell(f"growth, {streams} streams")
        case = Held("growth", "", streams, (), _PING_SECONDS, 2 * _PING_SECONDS, end_seconds=1.0)
        with CONTENDERS["ours"].running(bench.place(_PING_SECONDS)) as target:
            figures = asyncio.run(hold(bench, target, case, streams))
            asyncio.run(calm(target))
            figures |= asyncio.run(_streaming(bench, target, streams))
        results.add("growth", f"{streams:,} streams", figures)


async def _streaming(bench: Bench, target: Target, streams: int) -> Figures:
    """CPU and delay per chunk while they stream, and how long a newcomer waits for its word."""
    assert target.pid is not None
    await warm_up(target)
    delays = array("q")
    plan = Plan(_ENDLESS, round(streams / _CHUNKS_PER_SECOND * 1e6))
    connections, answers = await open_streams(target, plan, streams, delays)
    await asyncio.sleep(1.0)
    del delays[:]
    chunks, cpu = sum(answer.chunks for answer in answers), cpu_seconds(target.pid)
    await asyncio.sleep(_WINDOW_SECONDS)
    cpu = cpu_seconds(target.pid) - cpu
    chunks = sum(answer.chunks for answer in answers) - chunks
    in_ms = [value / 1e6 for value in delays]
    firsts = await _probe(target)
    await steer(bench.upstream_port, "/end?within_ms=1000")
    await wait_all(answers, 30.0)
    for connection in connections:
        connection.close()
    return {
        "cpu_us_per_chunk": cpu / chunks * 1e6,
        "delay_p50_ms": percentile(in_ms, 50),
        "delay_p99_ms": percentile(in_ms, 99),
        "ttft_p50_ms": percentile(firsts, 50),
        "ttft_p99_ms": percentile(firsts, 99),
        "complete_percent": sum(answer.is_complete for answer in answers) / streams * 100,
    }


async def _probe(target: Target) -> list[float | None]:
    """The times to the first word of some short answers, one after the other."""
    firsts = []
    for _ in range(_PROBES):
        (connection,), (answer,) = await open_streams(target, Plan(1), 1)
        await answer.finished.wait()
        connection.close()
        firsts.append(answer.ttft_ms)
    return firsts


def plot_growth(path: Path, results: Results) -> None:
    """One line per figure over the number of streams."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"})
    from matplotlib import pyplot

    levels = [int(name.split()[0].replace(",", "")) for name in results.rounds["growth"]]
    panels = (
        ("cpu_us_per_chunk", "CPU per chunk, µs"),
        ("delay_p50_ms", "delay per chunk p50, ms"),
        ("ttft_p50_ms", "time to first token p50, ms"),
        ("kb_per_stream", "KiB per open stream"),
    )
    figure, axes = pyplot.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
    for axis, (name, title) in zip(axes, panels, strict=True):
        values = [results.figure("growth", each, name) for each in results.rounds["growth"]]
        axis.plot(levels, values, marker="o", color="#c2410c")
        for level, value in zip(levels, values, strict=True):
            axis.annotate(short(value), (level, value), (0, 6), textcoords="offset points")
        axis.set_xscale("log")
        axis.set_ylim(0, max(value or 0 for value in values) * 1.3)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
