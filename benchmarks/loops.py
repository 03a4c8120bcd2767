"""What uvloop gains: the service's CPU time per chunk on it and on asyncio's own event loop.

    python -m benchmarks.loops
    python -m benchmarks.loops --rounds 3 --json

Two services, alike but for the loop, side by side on one backend and one PostgreSQL. Load goes to
them in turns, so that both see the same weather; each turn's CPU time (user and system, of the
process, from /proc) is divided by the chunks that its clients read. The first round warms up and
isn't counted. Compare the two, not with other machines.
"""

import argparse
import asyncio
import json
import os
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contenders import Target
from benchmarks.figures import print_table
from benchmarks.loads import at_once
from benchmarks.machine import settle
from benchmarks.plan import Plan
from benchmarks.running import ROOT, Server, agent, service, upstream


def _turn(target: Target, plan: Plan, streams: int) -> float:
    """CPU microseconds per chunk of one turn."""
    load = asyncio.run(at_once(target, plan, streams, 120.0))
    if load.complete < streams:
        raise SystemExit("a stream broke off")
    return load.cpu / load.chunks * 1e6


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
    if find_spec("uvloop") is None:
        raise SystemExit("uvloop isn't installed: .venv/bin/python -m pip install '.[fast]'")
    settle()
    costs: dict[str, list[float]] = {"asyncio": [], "uvloop": []}
    plan = Plan(options.words, round(options.interval * 1e6))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        server = Server(directory / "postgres")
        stack.callback(server.stop)
        backend_port = stack.enter_context(upstream())
        config: dict[str, Any] = {"database": {"url": server.dsn}, "agents": [agent(backend_port)]}
        without = directory / "without"
        without.mkdir()
        (without / "uvloop.py").write_text("raise ImportError\n")
        services = {
            "asyncio": stack.enter_context(
                service(
                    directory / "asyncio",
                    config,
                    environ={"PYTHONPATH": os.pathsep.join((str(without), str(ROOT)))},
                )
            ),
            "uvloop": stack.enter_context(service(directory / "uvloop", config)),
        }
        for number in range(options.rounds + 1):
            order = list(services) if number % 2 else list(services)[::-1]
            for name in order:
                cost = _turn(Target(name, *services[name]), plan, options.streams)
                if number:
                    costs[name].append(cost)
    rows = {
        name: {
            "median": round(median(values), 1),
            "min": round(min(values), 1),
            "max": round(max(values), 1),
        }
        for name, values in costs.items()
    }
    ratio = round(median(costs["uvloop"]) / median(costs["asyncio"]), 3)
    if options.json:
        print(json.dumps({"rounds": options.rounds, "cpu_us_per_chunk": rows, "ratio": ratio}))
        return
    print_table(f"CPU of the service per chunk, microseconds; {options.rounds} rounds", rows)
    print(f"ratio of the medians {ratio}")


if __name__ == "__main__":
    main()
