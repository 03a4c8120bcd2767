"""Compares this tree with another: CPU for a request, for 100 at once, for a chunk, and for a start.

    git worktree add --detach ../before 83e57f8
    python -m benchmarks.questions.builds ../before
    python -m benchmarks.questions.builds ../before --rounds 12 --only short,arrival

Both serve at once, with all on, in front of one backend and one PostgreSQL, and are loaded in turns, so
that a drift of the machine hits both. Each figure is CPU time of the server's process; the ratio is
this tree's to the other's within a round, and the median of the rounds is told with its quartiles. The
first round warms up and isn't counted. The other tree's packages are this one's.

    short    one-word answers, one after the other on 16 connections, saves included: ms a request
    arrival  100 requests at once, up to the last first token: ms
    paced    100 streams of 50 chunks a second, while all of them run: µs a chunk
    start    until the port answers: ms, and MB then
"""

import argparse
import asyncio
import json
import sys
from array import array
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

from benchmarks.comparison.compare import Bench
from benchmarks.comparison.loads import again_and_again, spread
from benchmarks.contenders import Target, our_config
from benchmarks.stand.client import connect
from benchmarks.stand.figures import print_table
from benchmarks.stand.machine import cpu_seconds, memory_bytes, settle
from benchmarks.stand.plan import Plan
from benchmarks.stand.running import ROOT, scene, service

_AT_ONCE, _ARRIVAL_SECONDS = 100, 20.0
_KEEP_ALIVE_SECONDS = 15.0

Figures = dict[str, float]


async def _short(target: Target) -> Figures:
    load = await again_and_again(target, Plan(1), 16, 2.0)
    return {"short": load.figures()["cpu_ms_per_request"] or 0.0}


async def _arrival(target: Target) -> Figures:
    assert target.pid is not None
    connections = await connect(target.port, _AT_ONCE, array("q"))
    await asyncio.sleep(0.3)
    request, before = Plan(20, 20_000).request(), cpu_seconds(target.pid)
    answers = [connection.send(request) for connection in connections]
    async with asyncio.timeout(_ARRIVAL_SECONDS):
        for answer in answers:
            await answer.started.wait()
        used = cpu_seconds(target.pid) - before
        for answer in answers:
            await answer.finished.wait()
    for connection in connections:
        connection.close()
    return {"arrival": used * 1000}


async def _paced(target: Target) -> Figures:
    load = await spread(target, Plan(150, 20_000), _AT_ONCE, 0.7, 6.0, (1.2, 2.8))
    return {"paced": load.figures()["steady_cpu_us_per_chunk"] or 0.0}


LOADS: dict[str, Callable[[Target], Awaitable[Figures]]] = {
    "short": _short,
    "arrival": _arrival,
    "paced": _paced,
}


def _serve(stack: ExitStack, bench: Bench, tree: Path) -> tuple[Target, Figures]:
    """A service of the tree, and what its start took."""
    place = bench.place(_KEEP_ALIVE_SECONDS)
    program, environ = [str(tree / "run.py")], {"PYTHONPATH": str(tree)}
    port, pid = stack.enter_context(service(place.directory, our_config(place), program, environ))
    took = {"start": cpu_seconds(pid) * 1000, "start, MB": memory_bytes(pid) / 1e6}
    return Target(str(tree), port, pid), took


def _measure(bench: Bench, trees: list[Path], names: list[str], rounds: int) -> list[list[Figures]]:
    """Each round's figures of each tree."""
    found: list[list[Figures]] = []
    with ExitStack() as stack:
        targets = [_serve(stack, bench, tree)[0] for tree in trees]
        for number in range(rounds + 1):
            turn: list[Figures] = [{} for _ in trees]
            order = (0, 1) if number % 2 else (1, 0)
            for name in names:
                for which in order:
                    if name in LOADS:
                        turn[which] |= asyncio.run(_load(name, targets[which]))
            if "start" in names:
                for which in order:
                    with ExitStack() as brief:
                        turn[which] |= _serve(brief, bench, trees[which])[1]
            if number:
                found.append(turn)
            print(f"round {number}: {json.dumps(turn)}", file=sys.stderr)
    return found


async def _load(name: str, target: Target) -> Figures:
    return await LOADS[name](target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tree", type=Path, help="a checkout of another revision")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", default="short,arrival,paced,start", help="some of them")
    options = parser.parse_args()
    settle()
    with ExitStack() as stack:
        on = stack.enter_context(scene())
        bench = Bench(on.directory, on.backend_port, on.server.dsn, lambda _: None)
        trees = [options.tree.resolve(), ROOT]
        found = _measure(bench, trees, options.only.split(","), options.rounds)
    rows: dict[str, dict[str, float]] = {}
    for name in found[0][0]:
        ratios = [after[name] / before[name] for before, after in found]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        other, this = (median([turn[which][name] for turn in found]) for which in (0, 1))
        rows[name] = {
            "other": other,
            "this": this,
            "ratio": median(ratios),
            "from": low,
            "to": high,
        }
    print_table(f"CPU of this tree and of the other; {options.rounds} rounds", rows)


if __name__ == "__main__":
    main()
