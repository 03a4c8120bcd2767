"""Measures what the journal costs: the service's CPU time per chunk without it and with it.

    python -m benchmarks.questions.journal_cost
    python -m benchmarks.questions.journal_cost --rounds 3 --json

`benchmarks/questions/pair.py` says how.
"""

from benchmarks.questions.pair import Variant, compare


def main() -> None:
    off = Variant(config={"journal": {"directory": None}})
    compare(__doc__ or "", {"journal off": off, "journal on": Variant()})


if __name__ == "__main__":
    main()
