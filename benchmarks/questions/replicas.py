"""Measures what three replicas carry beside one, and whether the arithmetic of docs/scaling.md holds.

    python -m benchmarks.questions.replicas                                  # three beside one
    python -m benchmarks.questions.replicas --streams 1000 --rate 4 --rounds 1
    python -m benchmarks.questions.replicas --streams 10000 --rate 0.5 --seconds 20 --rounds 1

In each round so many streams of so many chunks a second run on one replica, and then, as many on each, on
three at once, all in front of one backend, one PostgreSQL and one Redis. Counted is CPU time of all
replicas' processes, never the clock: two cores can't show what eight would, but chunks for a second of CPU
given can be compared. With 1.0 three replicas carry three times as much on three times the CPU.

With `--streams` they are spread over the three alone, and CPU of replicas and Redis, and memory, are put
beside what `benchmarks.scaling` computes.
"""

import argparse
import asyncio
import json
import os
import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median, quantiles

from benchmarks.comparison.loads import spread
from benchmarks.contenders import Target
from benchmarks.scaling import Assumptions, Units, need
from benchmarks.stand.client import connect, steer, wait_all
from benchmarks.stand.figures import print_table
from benchmarks.stand.fleet import FleetScene, fleet_scene
from benchmarks.stand.machine import cpu_seconds, describe, memory_bytes, settle
from benchmarks.stand.plan import Plan

_STREAMS_EACH, _INTERVAL_US = 40, 20_000
_STEADY_SECONDS = (1.2, 3.6)
_LIMIT_SECONDS = 60.0
_ENDLESS = 9_000_000
_REPLICAS = 3
_OPEN_AT_ONCE = 50


async def _together(targets: Sequence[Target]) -> float:
    """Chunks for a second of their CPU."""
    loads = await asyncio.gather(
        *(
            spread(
                target,
                Plan(200, _INTERVAL_US),
                _STREAMS_EACH,
                0.7,
                _LIMIT_SECONDS,
                _STEADY_SECONDS,
            )
            for target in targets
        )
    )
    if any(load.complete < _STREAMS_EACH for load in loads):
        raise SystemExit("a stream broke off")
    return sum(load.steady_chunks for load in loads) / sum(load.steady_cpu for load in loads)


def _three_beside_one(options: argparse.Namespace, targets: Sequence[Target]) -> None:
    ratios: list[float] = []
    found: list[tuple[float, float]] = []
    for number in range(options.rounds + 1):
        one = asyncio.run(_together([targets[number % _REPLICAS]]))
        three = asyncio.run(_together(targets))
        print(f"round {number}: {one:,.0f} {three:,.0f}", file=sys.stderr)
        if number:
            found.append((one, three))
            ratios.append(_REPLICAS * three / one)
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    row = {
        "one, chunks for a CPU second": median(one for one, _ in found),
        "three": median(three for _, three in found),
        "three carry, times one": median(ratios),
        "from": low,
        "to": high,
    }
    print_table(f"three replicas beside one; {options.rounds} rounds", {options.journal: row})


async def _many(scene: FleetScene, targets: Sequence[Target], options: argparse.Namespace) -> None:
    """So many streams over all of them: what they took, beside what was computed."""
    pids = [target.pid for target in targets if target.pid is not None]
    memory = sum(map(memory_bytes, pids))
    delays, count = array("q"), options.streams // _REPLICAS
    plan = Plan(_ENDLESS, round(1e6 / options.rate))
    answers, connections = [], []
    cpu, engine = sum(map(cpu_seconds, pids)), scene.engine_cpu()
    for number in range(0, count, _OPEN_AT_ONCE):  # a connection that asks for nothing is closed
        for target in targets:
            for connection in await connect(
                target.port, min(_OPEN_AT_ONCE, count - number), delays
            ):
                connections.append(connection)
                answers.append(connection.ask(plan))
                await asyncio.sleep(0.002)
    for answer in answers:
        await answer.started.wait()
    began = sum(map(cpu_seconds, pids)) - cpu
    await asyncio.sleep(2.0)
    grown = sum(map(memory_bytes, pids)) - memory
    cpu, engine, before = sum(map(cpu_seconds, pids)), scene.engine_cpu(), len(delays)
    await asyncio.sleep(options.seconds)
    used, of_engine = sum(map(cpu_seconds, pids)) - cpu, scene.engine_cpu() - engine
    chunks = len(delays) - before
    lag_ms = json.loads(await steer(scene.on.backend_port, "/lag"))["lag_ms"]
    await steer(scene.on.backend_port, f"/end?within_ms={len(answers) * 4}")
    is_over = await wait_all(answers, _LIMIT_SECONDS + len(answers) * 0.02)
    broken = [answer for answer in answers if not answer.is_complete]
    kinds = Counter((each.status, each.chunks > 0, each.trouble[:120]) for each in broken)
    for connection in connections:
        connection.close()
    found = {
        "chunks a second": chunks / options.seconds,
        "cores of replicas": used / options.seconds,
        "cores of Redis": of_engine / options.seconds,
        "memory of open streams, MiB": grown / 2**20,
        "CPU to begin one, ms": began / len(answers) * 1e3,
    }
    _print_beside(options, len(answers), found)
    print(f"not complete: {len(broken)} of {len(answers)}; all ended: {is_over}; late {lag_ms} ms")
    for kind, many in kinds.most_common(5):
        print(f"{many} with status, any chunk, trouble: {kind}")


def _print_beside(options: argparse.Namespace, streams: int, found: dict[str, float]) -> None:
    units = Units()
    given = Assumptions(
        chunks_per_second=options.rate,
        answer_chunks=options.rate * 1e9,  # nothing begins or ends while it is counted
        journal=options.journal,
        use=1.0,
    )
    computed = need(units, given, streams)
    chunks = streams * options.rate / _REPLICAS
    calls = min(chunks, 50.0)
    chunk_us = units.chunk_us + units.line_us + units.call_us * calls / chunks
    expected = {
        "chunks a second": computed.chunks,
        "cores of replicas": computed.chunks * chunk_us / 1e6,
        "cores of Redis": computed.chunks * units.redis_chunk_us / 1e6,
        "memory of open streams, MiB": computed.stream_gib * 1024,
        "CPU to begin one, ms": units.request_ms,
    }
    rows = {
        key: {
            "computed": expected[key],
            "measured": found[key],
            "ratio": found[key] / expected[key],
        }
        for key in found
    }
    print_table(f"{streams} streams over {_REPLICAS} replicas, {options.journal}", rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--journal", default="follow", help="off, follow or before_send")
    parser.add_argument("--streams", type=int, default=0, help="over all three, instead")
    parser.add_argument("--rate", type=float, default=4.0, help="chunks a second of each of these")
    parser.add_argument("--seconds", type=float, default=10.0, help="that these are counted")
    options = parser.parse_args()
    machine = describe()
    settle()
    with fleet_scene() as scene, ExitStack() as stack:
        targets = [
            stack.enter_context(scene.replica(f"r{number}", options.journal))
            for number in range(_REPLICAS)
        ]
        for _ in range(options.rounds if options.streams else 1):
            if options.streams:
                asyncio.run(_many(scene, targets, options))
            else:
                _three_beside_one(options, targets)
    print(f"load {machine['load']}, {os.getloadavg()[0]:.1f} after it")


if __name__ == "__main__":
    main()
