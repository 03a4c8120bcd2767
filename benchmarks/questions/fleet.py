"""Measures the price of a fleet: of `fleet.journal` off, follow and before_send, beside no fleet.

    python -m benchmarks.questions.fleet
    python -m benchmarks.questions.fleet --rounds 10 --journals off,follow --json

All serve at once, in front of one backend, one PostgreSQL and one Redis, and are loaded in turns, so that
a drift of the machine hits all. The others, who are silent meanwhile, renew their leases. CPU time is that
of the server's process, user and system; delays are from the backend's write to the client's read. Ratios
are each round's own, to `off`, and told as the median of the rounds with its quartiles. The first round
warms up and isn't counted.

    chunk     100 streams of 50 chunks a second, while all of them run: µs of CPU a chunk
    p50, p99  the delay of those chunks, ms, and what it is more than that with `off` in the same round
    request   one-word answers, one after the other on 16 connections, saves included: ms of CPU
    redis     CPU of the Redis meanwhile, µs a chunk
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from statistics import median, quantiles

from benchmarks.comparison.loads import again_and_again, spread
from benchmarks.contenders import Target
from benchmarks.stand.figures import print_table
from benchmarks.stand.fleet import FleetScene, fleet_scene, journals
from benchmarks.stand.machine import describe, settle
from benchmarks.stand.plan import Plan

_LIMIT_SECONDS = 20.0
_STEADY_SECONDS = (1.2, 3.4)
_REQUEST_SECONDS = 2.0
_BASE = "off"

Turn = dict[str, float]
Rounds = dict[str, list[Turn]]


async def _turn(scene: FleetScene, target: Target, streams: int, interval_us: int) -> Turn:
    """What one load of each kind found."""
    chunks = round(3.6e6 / interval_us)
    before = scene.engine_cpu()
    paced = await spread(
        target, Plan(chunks, interval_us), streams, 0.7, _LIMIT_SECONDS, _STEADY_SECONDS
    )
    engine = scene.engine_cpu() - before
    if paced.complete < streams:
        raise SystemExit(f"{streams - paced.complete} streams of {target.name} broke off")
    short = await again_and_again(target, Plan(1), 16, _REQUEST_SECONDS)
    figures, of_requests = paced.figures(), short.figures()
    return {
        "chunk": figures["steady_cpu_us_per_chunk"] or 0.0,
        "p50": figures["delay_p50_ms"] or 0.0,
        "p99": figures["delay_p99_ms"] or 0.0,
        "request": of_requests["cpu_ms_per_request"] or 0.0,
        "redis": engine / paced.chunks * 1e6,
    }


def _measure(options: argparse.Namespace) -> Rounds:
    with ExitStack() as stack:
        scene = stack.enter_context(fleet_scene())
        wanted = journals(options.journals)
        targets = [
            stack.enter_context(scene.replica(name, journal)) for name, journal in wanted.items()
        ]
        found: Rounds = {target.name: [] for target in targets}
        for number in range(options.rounds + 1):
            first = number % len(targets)
            for target in targets[first:] + targets[:first]:
                turn = asyncio.run(
                    _turn(scene, target, options.streams, round(options.interval * 1e6))
                )
                if number:
                    found[target.name].append(turn)
                print(f"round {number}, {target.name}: {json.dumps(turn)}", file=sys.stderr)
    return found


def _with_quartiles(values: Sequence[float]) -> tuple[float, str]:
    low, _, high = quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return median(values), f"{low:.2f} to {high:.2f}"


def _compared(
    found: Rounds, name: str, key: str, made: Callable[[float, float], float]
) -> tuple[float, str]:
    """A figure of each round beside that of the base."""
    pairs = zip(found[name], found[_BASE], strict=True)
    return _with_quartiles([made(turn[key], base[key]) for turn, base in pairs])


def result(found: Rounds) -> dict[str, Mapping[str, float | str]]:
    """Each one's medians; beside the base's where that was measured."""
    rows: dict[str, Mapping[str, float | str]] = {}
    for name, turns in found.items():
        row: dict[str, float | str] = {key: median(turn[key] for turn in turns) for key in turns[0]}
        if _BASE in found:
            for key in ("chunk", "request", "p99"):
                row[f"{key} ×"], row[f"{key} from"] = _compared(
                    found, name, key, lambda value, base: value / base
                )
            for key in ("p50", "p99"):
                row[f"{key} +"], row[f"{key} + from"] = _compared(
                    found, name, key, lambda value, base: value - base
                )
        rows[name] = row
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--journals", default="none,off,follow,before_send", metavar="A,B")
    parser.add_argument("--streams", type=int, default=100, help="at once")
    parser.add_argument("--interval", type=float, default=0.02, help="seconds between chunks")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    machine = describe()
    settle()
    found = _measure(options)
    load = f"{machine['load']}, {os.getloadavg()[0]:.1f} after it"
    if options.json:
        print(json.dumps({**machine, "load": load, "rounds": found}, indent=2))
        return
    rows = result(found)
    for title, keys in (
        ("medians", ("chunk", "p50", "p99", "request", "redis")),
        ("CPU, to off", ("chunk ×", "chunk from", "request ×", "request from")),
        ("delay, to off", ("p50 +", "p50 + from", "p99 +", "p99 + from", "p99 ×", "p99 from")),
    ):
        shown = {name: {key: row[key] for key in keys if key in row} for name, row in rows.items()}
        if any(shown.values()):
            print_table(f"{title}; {options.rounds} rounds, load {load}", shown)


if __name__ == "__main__":
    main()
