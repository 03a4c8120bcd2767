"""What the journal costs: the service's CPU time per chunk with it and without it.

    python -m benchmarks.journal_cost
    python -m benchmarks.journal_cost --rounds 3 --json

Two services, alike but for `journal.directory`, run side by side on one backend and one
PostgreSQL. Load goes to them in turns, so that both see the same weather; each turn's CPU time
(user and system, of the process, from /proc) is divided by the chunks that its clients read. A
turn includes whatever a stream costs besides its chunks: request, commit, end. The first round
warms up and isn't counted. Compare the two, not with other machines.
"""

import argparse
import asyncio
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.contenders import Target
from benchmarks.figures import print_table
from benchmarks.loads import at_once
from benchmarks.machine import settle
from benchmarks.plan import Plan
from benchmarks.running import Server, agent, service, upstream


def _turn(target: Target, plan: Plan, streams: int) -> float:
    """Microseconds of CPU per chunk."""
    load = asyncio.run(at_once(target, plan, streams, 120.0))
    if load.complete < streams:
        raise SystemExit("a stream broke off")
    return load.cpu / load.chunks * 1e6


def _costs(options: argparse.Namespace) -> dict[str, list[float]]:
    """Each round's microseconds per chunk, without the journal and with it."""
    costs: dict[str, list[float]] = {"journal off": [], "journal on": []}
    plan = Plan(options.words, round(options.interval * 1e6))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        server = Server(directory / "postgres")
        stack.callback(server.stop)
        backend_port = stack.enter_context(upstream())
        common: dict[str, Any] = {
            "database": {"url": server.dsn},
            "agents": [agent(backend_port)],
        }
        off = {**common, "journal": {"directory": None}}
        services = {
            "journal off": stack.enter_context(service(directory / "off", off)),
            "journal on": stack.enter_context(service(directory / "on", common)),
        }
        for number in range(options.rounds + 1):
            order = list(services) if number % 2 else list(services)[::-1]
            for name in order:
                cost = _turn(Target(name, *services[name]), plan, options.streams)
                if number:
                    costs[name].append(cost)
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--streams", type=int, default=50, help="streams at once")
    parser.add_argument("--words", type=int, default=200, help="chunks per answer")
    parser.add_argument("--interval", type=float, default=0.02, help="seconds between chunks")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    settle()
    started = time.monotonic()
    costs = _costs(options)
    rows = {
        name: {
            "mean": round(mean(values), 1),
            "median": round(median(values), 1),
            "min": round(min(values), 1),
            "max": round(max(values), 1),
        }
        for name, values in costs.items()
    }
    without, with_it = (median(costs[name]) for name in ("journal off", "journal on"))
    result = {
        "rounds": options.rounds,
        "cpu_us_per_chunk": rows,
        "added_us_per_chunk": round(with_it - without, 1),
        "ratio": round(with_it / without, 3),
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
    print(f"ratio of the medians {result['ratio']}, +{result['added_us_per_chunk']} µs per chunk")


if __name__ == "__main__":
    main()
