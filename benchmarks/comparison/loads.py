"""Loads a server as clients do, and records what came back. The workloads are made of these.

A `Load` is one turn: requests, their answers, the delay of every chunk, and the CPU time that the
server took for them.
"""

import asyncio
import gc
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import define, field

from benchmarks.contenders import Target
from benchmarks.stand.client import Answer, Connection, connect, wait_all
from benchmarks.stand.figures import percentile
from benchmarks.stand.machine import cpu_seconds
from benchmarks.stand.plan import Plan

_COOL_SECONDS = 0.3
"""After the last answer, for what the server still does about it: saving, above all."""
_CALM_SECONDS = 5.0

Figures = dict[str, float | None]


@define
class Load:
    """One turn of requests to one server.

    Attributes:
        expected: how many chunks were asked for.
        delays: nanoseconds from backend to client, of every chunk.
        cpu: seconds the server used, from the first request to the last answer's aftermath.
        seconds: how long that took.
        steady_cpu, steady_chunks: the same in a window in which streams neither began nor ended.
    """

    target: Target
    expected: int = 0
    answers: list[Answer] = field(factory=list)
    delays: "array[int]" = field(factory=lambda: array("q"))
    cpu: float = 0.0
    seconds: float = 0.0
    steady_cpu: float = 0.0
    steady_chunks: int = 0

    @property
    def chunks(self) -> int:
        return sum(answer.chunks for answer in self.answers)

    @property
    def complete(self) -> int:
        return sum(answer.is_complete for answer in self.answers)

    def figures(self) -> Figures:
        """CPU per chunk and per request, delays, times to the first word, completeness."""
        chunks = self.chunks
        has_cpu = self.target.pid is not None and chunks > 0
        delays = [value / 1e6 for value in self.delays]
        firsts = [answer.ttft_ms for answer in self.answers]
        wholes = [answer.whole_ms for answer in self.answers]
        ends = [answer.done_delay_ms for answer in self.answers]
        return {
            "cpu_us_per_chunk": self.cpu / chunks * 1e6 if has_cpu else None,
            "steady_cpu_us_per_chunk": (
                self.steady_cpu / self.steady_chunks * 1e6
                if has_cpu and self.steady_chunks
                else None
            ),
            "cpu_ms_per_request": self.cpu / len(self.answers) * 1e3 if has_cpu else None,
            "cpu_percent": self.cpu / self.seconds * 100 if has_cpu else None,
            "chunks_per_second": chunks / self.seconds,
            "requests_per_second": self.complete / self.seconds,
            "delay_p50_ms": percentile(delays, 50),
            "delay_p99_ms": percentile(delays, 99),
            "ttft_p50_ms": percentile(firsts, 50),
            "ttft_p99_ms": percentile(firsts, 99),
            "whole_p50_ms": percentile(wholes, 50),
            "whole_p99_ms": percentile(wholes, 99),
            "done_delay_p50_ms": percentile(ends, 50),
            "done_delay_p99_ms": percentile(ends, 99),
            "delivered_percent": chunks / self.expected * 100 if self.expected else None,
            "complete_percent": self.complete / max(1, len(self.answers)) * 100,
            "broken": float(sum(answer.is_broken for answer in self.answers)),
        }


@asynccontextmanager
async def counting(load: Load) -> AsyncIterator[None]:
    """Count the server's CPU time and the clock's during the block; the time to cool is counted
    as CPU, not as time. The client collects no garbage meanwhile."""
    gc.collect()
    gc.disable()
    before, started = _cpu(load.target), time.monotonic()
    try:
        yield
        load.seconds = time.monotonic() - started
        await asyncio.sleep(_COOL_SECONDS)
        load.cpu = _cpu(load.target) - before
    finally:
        gc.enable()


def _cpu(target: Target) -> float:
    return cpu_seconds(target.pid) if target.pid is not None else 0.0


async def calm(target: Target) -> bool:
    """Wait until a server has finished what earlier turns left it; false if it doesn't."""
    deadline = time.monotonic() + _CALM_SECONDS
    while time.monotonic() < deadline:
        before = _cpu(target)
        await asyncio.sleep(0.2)
        if _cpu(target) - before < 0.02:
            return True
    return False


async def spread(
    target: Target,
    plan: Plan,
    streams: int,
    over_seconds: float,
    limit_seconds: float,
    steady_seconds: tuple[float, float] | None = None,
) -> Load:
    """Streams that begin one after the other; cut off when the limit is reached.

    Args:
        over_seconds: the time within which they begin.
        limit_seconds: for everything.
        steady_seconds: begin and end of the window in which nothing begins or ends.
    """
    load, request = Load(target, streams * plan.chunks), plan.request()
    async with counting(load):
        connections = await connect(target.port, streams, load.delays)
        started = time.monotonic()
        watching = asyncio.create_task(_watch(load, steady_seconds)) if steady_seconds else None
        for number, connection in enumerate(connections):
            ahead = started + over_seconds * number / streams - time.monotonic()
            if ahead > 0.001:
                await asyncio.sleep(ahead)
            load.answers.append(connection.send(request))
        await wait_all(load.answers, limit_seconds - (time.monotonic() - started))
        if watching is not None:
            await watching
    _close(connections)
    return load


async def _watch(load: Load, window: tuple[float, float]) -> None:
    begin, end = window
    await asyncio.sleep(begin)
    cpu, chunks = _cpu(load.target), load.chunks
    await asyncio.sleep(end - begin)
    load.steady_cpu, load.steady_chunks = _cpu(load.target) - cpu, load.chunks - chunks


async def at_once(target: Target, plan: Plan, streams: int, limit_seconds: float) -> Load:
    """Requests sent together, on connections that are already open."""
    load, request = Load(target, streams * plan.chunks), plan.request()
    connections = await connect(target.port, streams, load.delays)
    await asyncio.sleep(_COOL_SECONDS)
    async with counting(load):
        load.answers = [connection.send(request) for connection in connections]
        await wait_all(load.answers, limit_seconds)
    _close(connections)
    return load


async def again_and_again(target: Target, plan: Plan, count: int, seconds: float) -> Load:
    """One request after the other on each of so many connections, for so long."""
    load, request = Load(target), plan.request()
    connections = await connect(target.port, count, load.delays)

    async def ask_until(connection: Connection, deadline: float) -> None:
        while time.monotonic() < deadline:
            answer = connection.send(request)
            load.answers.append(answer)
            await answer.finished.wait()
            if not answer.is_complete:
                return

    async with counting(load):
        deadline = time.monotonic() + seconds
        await asyncio.gather(*(ask_until(connection, deadline) for connection in connections))
    _close(connections)
    return load


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()
