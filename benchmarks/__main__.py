"""Compares our service with nginx, a textbook service, one in Rust and LiteLLM under one load.

Backend, client and PostgreSQL share one core, the server that is measured has one of its own.
Every answer's chunks are counted and timed one by one; CPU time is the server's own, from /proc.

workloads:
  paced     10, 100 and 1,000 streams of 50 chunks a second, arriving apart
  burst     answers as fast as they are taken, many chunks to a write and one
  short     one-chunk answers one after the other, on connections that stay open
  arrival   100 and 200 requests at once
  idle      5,000 open, silent streams: memory, and what a ping costs
  endings   2,000 streams that end together

contenders:
  ours      this service, journal and PostgreSQL on
  bare      the same, nothing kept: what persistence costs
  aiohttp   forty lines that pass bytes on: the framework's part of what ours costs
  nginx     proxy_pass, unbuffered: the floor (left out if it isn't installed)
  textbook  FastAPI, openai SDK, asyncpg, the answer saved at its end
  rust      rig-core, axum, sqlx, saved at the end and when it breaks off (left out without cargo)
  litellm   LiteLLM's proxy, nothing kept
  ogx       OGX, its completions stored; only when it is named

The last four are installed or built into var/bench/ when they are first asked for.
What a fleet costs (off, follow, before_send) is a question of its own, which compares services of
ours: `python -m benchmarks.questions.fleet`.

examples:
  make bench                                         everything, about twenty minutes
  make bench ARGS="--quick --contenders ours,nginx"  a minute
  make bench ARGS="--growth --contenders ours --workloads none"
  make bench ARGS="--workloads paced --contenders ours --profile"
"""

import argparse
import json
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.comparison.compare import Bench, Results, compare
from benchmarks.comparison.growth import grow, plot_growth
from benchmarks.comparison.holding import held_cases, hold_all
from benchmarks.comparison.profiling import profile
from benchmarks.comparison.report import plot, print_all, write_markdown
from benchmarks.comparison.workloads import cases
from benchmarks.contenders import CONTENDERS, Contender, Missing
from benchmarks.stand.machine import describe, settle
from benchmarks.stand.running import Server, upstream

WORKLOADS = ("paced", "burst", "short", "arrival", "idle", "endings")


def main() -> None:
    options = _flags()
    if options.read:
        saved = json.loads(options.read.read_text("utf-8"))
        _write(options, Results.from_json(saved), saved["machine"], saved["command"])
        return
    contenders, results = _chosen(options.contenders), Results()
    machine = describe() | _versions(contenders)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    settle()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # what runs is stopped too
    try:
        _run(options, contenders, results)
    finally:
        if results.rounds:  # also what a run that was stopped has found
            _write(options, results, machine, command)


def _run(options: argparse.Namespace, contenders: Sequence[Contender], results: Results) -> None:
    started = time.monotonic()

    def tell(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", file=sys.stderr, flush=True)

    asked = options.workloads.split(",")
    wanted = [case for case in cases(options.quick) if case.workload in asked]
    held = [case for case in held_cases(options.quick) if case.workload in asked]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        server = Server(directory / "postgres")
        stack.callback(server.stop)
        bench = Bench(directory, stack.enter_context(upstream()), server.dsn, tell)
        if options.profile:
            for contender in contenders:
                profile(bench, contender, wanted)
            return
        if wanted:
            compare(bench, contenders, wanted, results)
        hold_all(bench, contenders, held, results)
        if options.growth:
            grow(bench, results)
    tell("done")


def _write(
    options: argparse.Namespace, results: Results, machine: dict[str, str], command: str
) -> None:
    print_all(results, machine)
    if options.json:
        value = {"machine": machine, "command": command, **results.as_json()}
        options.json.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    if options.markdown:
        write_markdown(options.markdown, results, machine, command)
    if options.plot:
        plot(options.plot, results)
        if "growth" in results.rounds:
            plot_growth(options.plot.with_stem(f"{options.plot.stem}-growth"), results)


def _versions(contenders: Sequence[Contender]) -> dict[str, str]:
    found = {}
    for contender in contenders:
        try:
            found[contender.name] = f"{contender.version()} ({contender.what})"
        except Missing as missing:
            found[contender.name] = str(missing)
    return found


def _chosen(names: str) -> list[Contender]:
    asked = names.split(",")
    if unknown := [name for name in asked if name not in CONTENDERS]:
        raise SystemExit(f"unknown contender {unknown[0]}; there are {', '.join(CONTENDERS)}")
    return [contender for name, contender in CONTENDERS.items() if name in asked]


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workloads", default=",".join(WORKLOADS), metavar="A,B", help="default: all")
    default = ",".join(name for name, each in CONTENDERS.items() if not each.is_on_demand)
    add("--contenders", default=default, metavar="A,B", help=f"default: {default}")
    add("--quick", action="store_true", help="fewer rounds, shorter streams: two or three minutes")
    add("--growth", action="store_true", help="our figures with 10 to 5,000 open streams too")
    add("--profile", action="store_true", help="no figures: py-spy's top ten functions instead")
    add("--json", type=Path, metavar="FILE", help="write every round's figures")
    add("--markdown", type=Path, metavar="FILE", help="write the tables between its markers")
    add("--plot", type=Path, metavar="FILE", help="draw the figures (FILE-growth: the growth)")
    add("--read", type=Path, metavar="FILE", help="run nothing: show what --json wrote")
    options = parser.parse_args()
    unknown = set(options.workloads.split(",")) - {*WORKLOADS, "none"}
    if unknown:
        parser.error(f"unknown workload {min(unknown)}; there are {', '.join(WORKLOADS)}, none")
    if sys.platform != "linux":
        parser.error("the figures come from Linux's /proc")
    return options


if __name__ == "__main__":
    main()
