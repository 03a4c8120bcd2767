"""Tables."""

from benchmarks.comparison import Results
from benchmarks.figures import print_table


def print_all(results: Results) -> None:
    for case, contenders in results.rounds.items():
        rows = {
            name: {key: results.figure(case, name, key) for key in results.shown[case]}
            for name in contenders
        }
        print_table(f"\n{case}: {results.titles[case]}", rows)
