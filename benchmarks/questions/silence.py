"""Compares what an open, silent stream takes in memory, in this tree and in another.

    git worktree add --detach ../before 7115cb9
    python -m benchmarks.questions.silence ../before
    python -m benchmarks.questions.silence ../before --streams 1000 --rounds 5 --json
    python -m benchmarks.questions.silence ../before --streams 1000 --history-kb 32

Each round starts a fresh process of each, has it answer some requests, and opens streams that say a
word and are silent, which nobody else reads (`benchmarks/comparison/holding.py`, `idle`). Memory is
the growth of the proportional set size, per stream. The other tree's packages are this one's.
"""

import argparse
import asyncio
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.comparison.compare import Bench
from benchmarks.comparison.holding import Held, hold
from benchmarks.contenders import Target, our_config
from benchmarks.stand.figures import print_table
from benchmarks.stand.machine import settle
from benchmarks.stand.running import ROOT, scene, service

_KEEP_ALIVE_SECONDS = 15.0


def _kb_per_stream(bench: Bench, tree: Path, streams: int, held: Held) -> float:
    place = bench.place(_KEEP_ALIVE_SECONDS)
    program, environ = [str(tree / "run.py")], {"PYTHONPATH": str(tree)}
    with service(place.directory, our_config(place), program, environ) as (port, pid):
        figures = asyncio.run(hold(bench, Target("", port, pid), held, streams))
    if figures["complete_percent"] != 100:
        raise SystemExit("a stream broke off")
    return figures["kb_per_stream"] or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tree", type=Path, help="a checkout of another revision")
    parser.add_argument("--streams", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--history-kb", type=int, default=0, help="in each stream's request")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    settle()
    held = Held("", "", 0, (), history_bytes=options.history_kb * 1000)
    found: dict[str, list[float]] = {"other": [], "this": []}
    with ExitStack() as stack:
        on = stack.enter_context(scene())
        bench = Bench(on.directory, on.backend_port, on.server.dsn, lambda _: None)
        for _ in range(options.rounds):
            for name, tree in (("other", options.tree.resolve()), ("this", ROOT)):
                found[name].append(_kb_per_stream(bench, tree, options.streams, held))
                print(f"{name}: {found[name][-1]:.2f} KiB", file=sys.stderr)
    ratio = median(found["this"]) / median(found["other"])
    if options.json:
        print(json.dumps({**found, "ratio": ratio}, indent=2))
        return
    rows = {
        name: {"median": median(each), "min": min(each), "max": max(each)}
        for name, each in found.items()
    }
    print_table(f"KiB per stream, {options.streams:,} open; {options.rounds} rounds", rows)
    print(f"this, of the other: {ratio:.3f}")


if __name__ == "__main__":
    main()
