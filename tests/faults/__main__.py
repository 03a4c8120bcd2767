"""The fault matrix: whatever dies, every word that a client was shown is in PostgreSQL, once, with
a truthful state.

    python -m tests.faults                       # all of it, some minutes
    python -m tests.faults --seed 7 --only kill  # a part of it, as another run had it

A real service process, a real PostgreSQL, an upstream that misbehaves and clients that check
every byte. Each scenario is played in rounds; what is decided by chance comes from the seed, the
scenario's name and the round, so `--only` doesn't change it. When the kernel lets whom run, and
so where exactly a kill strikes, no seed can repeat.
"""

import argparse
import json
import secrets
import signal
import sys
import time

from tests.faults import scenarios as scenarios  # puts them on the list
from tests.faults.run import play_all
from tests.faults.scenario import SCENARIOS
from tests.faults.stage import ground
from tests.faults.table import Table

_FAILURES_SHOWN = 3
"""In words, of each row of the table; JSON has them all."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, help="repeat a run; the end of each says its own")
    parser.add_argument("--runs", type=float, default=1.0, help="times the usual number of rounds")
    parser.add_argument("--only", metavar="NAME", help="scenarios with this in their name")
    parser.add_argument("--list", action="store_true", help="print the scenarios' names")
    parser.add_argument("--json", action="store_true", help="print JSON at the end, no table")
    options = parser.parse_args()
    chosen = [one for one in SCENARIOS if (options.only or "") in one.name]
    if options.list or not chosen:
        print("\n".join(one.name for one in SCENARIOS))
        return 0 if options.list else 2
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    started = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - started:6.1f}  {line}", file=sys.stderr, flush=True)

    # A supervisor's SIGTERM, too, must leave nothing running.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with ground() as made:
        try:
            play_all(made, chosen, seed=seed, runs=options.runs, tell=tell)
        except KeyboardInterrupt:
            made.table.complaints.append("interrupted")
    seconds = time.monotonic() - started
    if options.json:
        print(json.dumps({"seed": seed, "seconds": seconds, **made.table.as_json()}, indent=2))
    else:
        report(made.table, seed, seconds)
    return 0 if made.table.is_clean else 1


def report(table: Table, seed: int, seconds: float) -> None:
    """The table, what went wrong, and how to repeat it."""
    print("\n".join(["", *table.lines(), ""]))
    for (fault, moment), verdicts in table.failures_by_row().items():
        for verdict in verdicts[:_FAILURES_SHOWN]:
            print(f"WRONG  {verdict}")
        if len(verdicts) > _FAILURES_SHOWN:
            print(f"WRONG  {fault} × {moment}: {len(verdicts) - _FAILURES_SHOWN} more")
    for complaint in table.complaints:
        print(f"WRONG  {complaint}")
    for reason in table.skipped:
        print(f"skipped: {reason}")
    print(f"{table.total[0]} streams in {seconds:.0f} s; repeat with --seed {seed}")


if __name__ == "__main__":
    sys.exit(main())
