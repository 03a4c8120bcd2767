"""Holds streams open in silence: memory for each, CPU for a ping, and how they end together.

These are `idle` and `endings` of the comparison, and a part of `benchmarks.comparison.growth`.
Memory can only be measured in a fresh process, so every turn starts one.
"""

import asyncio
import time
from array import array
from collections.abc import Sequence

from attrs import frozen

from benchmarks.comparison.compare import Bench, Results, warm_up
from benchmarks.comparison.loads import Figures
from benchmarks.contenders import Contender, Missing, Target
from benchmarks.stand.client import Answer, Connection, connect, steer, wait_all
from benchmarks.stand.figures import percentile
from benchmarks.stand.machine import cpu_seconds, memory_bytes
from benchmarks.stand.plan import Plan
from benchmarks.stand.running import DidNotStart

_OPEN_AT_ONCE = 50
_OPEN_SECONDS = 60.0
_END_SECONDS = 30.0


@frozen
class Held:
    """A case of streams that are held open.

    Attributes:
        streams: how many, for those that can.
        ping_seconds: the keep-alive interval, for those that have one.
        window_seconds: how long they are left alone and counted; 0: not at all.
        end_seconds: the time within which the backend ends them.
        history_bytes: what each one's request says besides.
    """

    name: str
    title: str
    streams: int
    shown: tuple[str, ...]
    ping_seconds: float = 15.0
    window_seconds: float = 0.0
    end_seconds: float = 0.2
    history_bytes: int = 0

    @property
    def workload(self) -> str:
        return self.name.partition("-")[0]


_IDLE = ("streams", "kb_per_stream", "cpu_us_per_ping", "pings_per_second", "cpu_percent")
_ENDINGS = ("streams", "done_delay_p50_ms", "done_delay_p99_ms", "complete_percent")


def held_cases(is_quick: bool) -> list[Held]:
    idle, endings = (500, 500) if is_quick else (5_000, 2_000)
    history = idle // 5
    return [
        Held(
            f"idle-{idle}",
            f"{idle:,} open, silent streams, a ping every 4 s from those that ping",
            idle,
            (*_IDLE, "complete_percent"),
            ping_seconds=4.0,
            window_seconds=4.0 if is_quick else 8.0,
        ),
        Held(
            f"idle-{history}-history",
            f"{history:,} open, silent streams, 32 KB of history in each one's request",
            history,
            ("streams", "kb_per_stream", "complete_percent"),
            history_bytes=32_000,
        ),
        Held(f"endings-{endings}", f"{endings:,} streams end within 0.2 s", endings, _ENDINGS),
    ]


def hold_all(
    bench: Bench, contenders: Sequence[Contender], cases: Sequence[Held], results: Results
) -> None:
    """Every case with every contender, each in a process of its own."""
    for case in cases:
        results.describe(case.name, case.title, case.shown)
        for contender in contenders:
            bench.tell(f"{case.name}, {contender.name}")
            try:
                with contender.running(bench.place(case.ping_seconds)) as target:
                    streams = min(case.streams, contender.idle_streams)
                    figures = asyncio.run(hold(bench, target, case, streams))
            except (DidNotStart, Missing):
                continue  # noted when the others were started
            results.add(case.name, contender.name, figures)
            if streams < case.streams:
                results.note(f"{contender.name} holds {streams} streams: {contender.why_no_more}")


async def hold(bench: Bench, target: Target, case: Held, streams: int) -> Figures:
    """Open so many streams, leave them alone, end them."""
    assert target.pid is not None
    await warm_up(target)
    memory, started = memory_bytes(target.pid), time.monotonic()
    plan = Plan(2, shape="held", history_bytes=case.history_bytes)
    connections, answers = await open_streams(target, plan, streams)
    opened = sum(answer.chunks > 0 for answer in answers)
    figures: Figures = {"streams": float(opened), "open_seconds": time.monotonic() - started}
    await asyncio.sleep(0.5)
    if case.window_seconds:
        figures |= await _left_alone(target, answers, case.window_seconds)
    figures["kb_per_stream"] = (memory_bytes(target.pid) - memory) / max(1, opened) / 1024
    await steer(bench.upstream_port, f"/end?within_ms={case.end_seconds * 1000:.0f}")
    await wait_all(answers, _END_SECONDS)
    delays = [answer.done_delay_ms for answer in answers]
    figures["done_delay_p50_ms"] = percentile(delays, 50)
    figures["done_delay_p99_ms"] = percentile(delays, 99)
    complete = sum(answer.is_complete for answer in answers)
    figures["complete_percent"] = complete / streams * 100
    for connection in connections:
        connection.close()
    return figures


async def open_streams(
    target: Target, plan: Plan, streams: int, delays: "array[int] | None" = None
) -> tuple[list[Connection], list[Answer]]:
    """Streams that have all said a word, or had a minute to."""
    connections = await connect(target.port, streams, array("q") if delays is None else delays)
    answers: list[Answer] = []
    deadline = asyncio.get_running_loop().time() + _OPEN_SECONDS
    for start in range(0, streams, _OPEN_AT_ONCE):
        asked = [connection.ask(plan) for connection in connections[start : start + _OPEN_AT_ONCE]]
        answers += asked
        try:
            async with asyncio.timeout_at(deadline):
                for answer in asked:
                    await answer.started.wait()
        except TimeoutError:
            break
    return connections, answers


async def _left_alone(target: Target, answers: Sequence[Answer], seconds: float) -> Figures:
    assert target.pid is not None
    pings, cpu = sum(answer.pings for answer in answers), cpu_seconds(target.pid)
    await asyncio.sleep(seconds)
    pings = sum(answer.pings for answer in answers) - pings
    cpu = cpu_seconds(target.pid) - cpu
    return {
        "cpu_us_per_ping": cpu / pings * 1e6 if pings else None,
        "pings_per_second": pings / seconds,
        "cpu_percent": cpu / seconds * 100,
    }
