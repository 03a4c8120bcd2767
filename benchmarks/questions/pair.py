"""Compares two of our services that differ in one thing: CPU time per chunk of each.

Both run on one backend and one PostgreSQL. They are loaded in turns, so that a drift of the machine
hits both; each turn's CPU time (user and system, of the process, from /proc) is divided by the
chunks that its clients read. A turn includes whatever a stream costs besides its chunks: request,
commit, end. The first round warms up and isn't counted. Don't compare with other machines.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from statistics import mean, median
from typing import Any

from attrs import Factory, frozen

from benchmarks.comparison.loads import at_once
from benchmarks.contenders import Target
from benchmarks.stand.figures import print_table
from benchmarks.stand.machine import settle
from benchmarks.stand.plan import Plan
from benchmarks.stand.running import scene, service


@frozen
class Variant:
    """What sets one of the two apart."""

    config: Mapping[str, Any] = Factory(dict)
    environ: Mapping[str, str] = Factory(dict)


def compare(description: str, variants: Mapping[str, Variant]) -> None:
    """Read the command line, measure, and print a table or JSON; the ratio is the last's to the
    first's. A stream that breaks off ends the program with status 1."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--streams", type=int, default=50, help="streams at once")
    parser.add_argument("--words", type=int, default=200, help="chunks per answer")
    parser.add_argument("--interval", type=float, default=0.02, help="seconds between chunks")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    settle()
    started = time.monotonic()
    costs = _costs(options, variants)
    rows = {
        name: {
            "mean": round(mean(values), 1),
            "median": round(median(values), 1),
            "min": round(min(values), 1),
            "max": round(max(values), 1),
        }
        for name, values in costs.items()
    }
    first, *_, last = map(median, costs.values())
    result = {
        "rounds": options.rounds,
        "cpu_us_per_chunk": rows,
        "added_us_per_chunk": round(last - first, 1),
        "ratio": round(last / first, 3),
        "seconds": round(time.monotonic() - started, 1),
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    chunks = options.streams * options.words
    print_table(
        f"CPU of the service per chunk, microseconds; {options.rounds} rounds of {chunks} chunks",
        rows,
    )
    print(f"ratio of the medians {result['ratio']}, {result['added_us_per_chunk']:+} µs per chunk")


def _costs(options: argparse.Namespace, variants: Mapping[str, Variant]) -> dict[str, list[float]]:
    """Each round's microseconds per chunk."""
    costs: dict[str, list[float]] = {name: [] for name in variants}
    plan = Plan(options.words, round(options.interval * 1e6))
    with ExitStack() as stack:
        on = stack.enter_context(scene())
        targets = []
        for number, (name, variant) in enumerate(variants.items()):
            started = service(
                on.directory / str(number), {**on.config, **variant.config}, environ=variant.environ
            )
            targets.append(Target(name, *stack.enter_context(started)))
        for number in range(options.rounds + 1):
            for target in targets if number % 2 else targets[::-1]:
                cost = _turn(target, plan, options.streams)
                if number:
                    costs[target.name].append(cost)
    return costs


def _turn(target: Target, plan: Plan, streams: int) -> float:
    """Microseconds of CPU per chunk."""
    load = asyncio.run(at_once(target, plan, streams, 120.0))
    if load.complete < streams:
        raise SystemExit("a stream broke off")
    return load.cpu / load.chunks * 1e6
