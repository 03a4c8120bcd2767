"""The fleet's fault matrix: whatever happens to a machine, to the engine that machines share, or to a cable
between them, no word that was shown is lost, and no answer has two owners.

    python -m tests.fleet_faults                           # all of it, some twenty minutes
    python -m tests.fleet_faults --seed 7 --only replica   # a part of it, as another run had it

Three real service processes, a real PostgreSQL, a real Redis, cluster or Sentinel trio, a backend that
tells each word apart, and clients that read each answer at several replicas and go on elsewhere after a
cut. What is decided by chance comes from the seed, the scenario's name, the mode and the round, so
`--only` doesn't change it. When the kernel lets whom run, no seed can repeat.
"""

import argparse
import json
import secrets
import signal
import sys
import time

from tests.fleet_faults import scenarios as scenarios  # puts them on the list
from tests.fleet_faults.namespaces import enter
from tests.fleet_faults.run import MODES, SCENARIOS, play_all
from tests.fleet_faults.stage import ground
from tests.fleet_faults.table import Table

_FAILURES_SHOWN = 40


def main() -> int:
    options = _options()
    chosen = [one for one in SCENARIOS if (options.only or "") in one.name]
    if options.list or not chosen:
        print("\n".join(one.name for one in SCENARIOS))
        return 0 if options.list else 2
    is_inside = not options.proxies and enter(sys.argv[1:])
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    started = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - started:6.1f}  {line}", file=sys.stderr, flush=True)

    # A supervisor's SIGTERM, too, must leave nothing running.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    modes = MODES if options.journal is None else (options.journal,)
    with ground(has_namespaces=is_inside) as made:
        try:
            play_all(
                made,
                chosen,
                modes=modes,
                seed=seed,
                runs=options.runs,
                scale=options.scale,
                tell=tell,
            )
        except KeyboardInterrupt:
            made.table.complaints.append("interrupted")
    seconds = time.monotonic() - started
    if options.json:
        print(json.dumps({"seed": seed, "seconds": seconds, **made.table.as_json()}, indent=2))
    else:
        report(made.table, seed, seconds)
    return 0 if made.table.is_clean else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fleet_faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, help="repeat a run; the end of each says its own")
    parser.add_argument("--runs", type=int, default=1, help="rounds of each scenario and mode")
    parser.add_argument("--scale", type=float, default=1.0, help="times the streams of each round")
    parser.add_argument("--only", metavar="NAME", help="scenarios with this in their name")
    parser.add_argument("--journal", choices=("off", *MODES), help="in this mode only")
    parser.add_argument("--proxies", action="store_true", help="cut by proxies, not in namespaces")
    parser.add_argument("--list", action="store_true", help="print the scenarios' names")
    parser.add_argument("--json", action="store_true", help="print JSON at the end, no table")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def report(table: Table, seed: int, seconds: float) -> None:
    """The table, what went wrong, and how to repeat it."""
    print("\n".join(["", *table.lines(), ""]))
    for failure in table.failures[:_FAILURES_SHOWN]:
        print(f"WRONG  {failure}")
    if len(table.failures) > _FAILURES_SHOWN:
        print(f"WRONG  {len(table.failures) - _FAILURES_SHOWN} more")
    for complaint in table.complaints:
        print(f"WRONG  {complaint}")
    for note in table.notes:
        print(f"note: {note}")
    print(f"{table.total[1]} streams in {seconds:.0f} s; repeat with --seed {seed}")


if __name__ == "__main__":
    sys.exit(main())
