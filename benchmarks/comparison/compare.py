"""Runs the cases against the contenders and collects the figures.

`Results` is what everything else is made from: the JSON file, the tables, the targets, the plot.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from attrs import define, field

from benchmarks.comparison.loads import Figures, at_once, calm
from benchmarks.comparison.workloads import Case, measured
from benchmarks.contenders import Contender, Missing, Place, Target
from benchmarks.stand.plan import Plan
from benchmarks.stand.running import DidNotStart

Tell = Callable[[str], None]

DIRECT = "direct"
"""The backend itself, asked without anything in between: what there is to add to."""

_KEEP_ALIVE_SECONDS = 15.0
_ENOUGH_PERCENT = 90.0


@define
class Results:
    """Figures by case, contender and round."""

    rounds: dict[str, dict[str, list[Figures]]] = field(factory=dict)
    titles: dict[str, str] = field(factory=dict)
    shown: dict[str, tuple[str, ...]] = field(factory=dict)
    notes: list[str] = field(factory=list)

    def add(self, case: str, contender: str, figures: Figures) -> None:
        self.rounds.setdefault(case, {}).setdefault(contender, []).append(figures)

    def describe(self, name: str, title: str, shown: tuple[str, ...]) -> None:
        self.titles[name], self.shown[name] = title, shown

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def figure(self, case: str, contender: str, name: str) -> float | None:
        """The median over the rounds."""
        rounds = self.rounds.get(case, {}).get(contender, [])
        known = [value for figures in rounds if (value := figures.get(name)) is not None]
        return median(known) if known else None

    def as_json(self) -> dict[str, Any]:
        """Everything, with the medians beside the rounds; `from_json` reads it."""
        return {
            "notes": self.notes,
            "cases": {
                case: {
                    "title": self.titles[case],
                    "shown": self.shown[case],
                    "contenders": {
                        name: {
                            "median": {key: self.figure(case, name, key) for key in rounds[0]},
                            "rounds": rounds,
                        }
                        for name, rounds in contenders.items()
                    },
                }
                for case, contenders in self.rounds.items()
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Results":
        results = cls(notes=value["notes"])
        for name, case in value["cases"].items():
            results.describe(name, case["title"], tuple(case["shown"]))
            for contender, figures in case["contenders"].items():
                for each in figures["rounds"]:
                    results.add(name, contender, each)
        return results


@define
class Bench:
    """What all contenders share: a directory, the backend, PostgreSQL."""

    directory: Path
    upstream_port: int
    dsn: str
    tell: Tell
    _places: int = 0

    def place(self, keep_alive_seconds: float = _KEEP_ALIVE_SECONDS) -> Place:
        self._places += 1
        directory = self.directory / f"contender-{self._places}"
        return Place(directory, self.upstream_port, self.dsn, keep_alive_seconds, self.tell)


class Entrant:
    """A contender that runs, and is started anew when it can't be brought to rest."""

    def __init__(self, bench: Bench, contender: Contender) -> None:
        self._bench, self._contender = bench, contender
        self.most_rounds = contender.most_rounds
        self._stack = ExitStack()
        self.target = Target(contender.name, 0, None)

    def start(self) -> None:
        """Raises `Missing` if it can't be had."""
        place = self._bench.place()
        self.target = self._stack.enter_context(self._contender.running(place))
        asyncio.run(warm_up(self.target))

    def stop(self) -> None:
        self._stack.close()

    def rest(self) -> None:
        """Wait until it has done what earlier turns left it, however it gets there."""
        if not asyncio.run(calm(self.target)):
            self._bench.tell(f"{self._contender.name} is still busy: started anew")
            self.stop()
            self.start()


class Direct(Entrant):
    """The backend, asked without anything in between."""

    def __init__(self, bench: Bench) -> None:
        self.target = Target(DIRECT, bench.upstream_port, None)
        self.most_rounds = 100

    def start(self) -> None:
        asyncio.run(warm_up(self.target))

    def stop(self) -> None:
        pass

    def rest(self) -> None:
        pass


def compare(
    bench: Bench, contenders: Sequence[Contender], cases: Sequence[Case], results: Results
) -> None:
    """All cases in rounds, the contenders in turn; the order rotates."""
    with ExitStack() as stack:
        entrants: list[Entrant] = []
        for entrant in (Direct(bench), *(Entrant(bench, each) for each in contenders)):
            try:
                stack.callback(entrant.stop)
                entrant.start()
                entrants.append(entrant)
            except (DidNotStart, Missing) as missing:
                results.note(f"left out: {missing}")
                bench.tell(results.notes[-1])
        for case in cases:
            results.describe(case.name, case.title, case.shown)
            overwhelmed: list[Entrant] = []
            for number in range(case.rounds):
                bench.tell(f"{case.name}, round {number + 1} of {case.rounds}")
                shift = number % len(entrants)
                for entrant in entrants[shift:] + entrants[:shift]:
                    if number >= entrant.most_rounds or entrant in overwhelmed:
                        continue
                    figures = asyncio.run(measured(case, entrant.target, bench.upstream_port))
                    results.add(case.name, entrant.target.name, figures)
                    if (figures["delivered_percent"] or 100.0) < _ENOUGH_PERCENT:
                        overwhelmed.append(entrant)  # more rounds would say the same
                    entrant.rest()
            note_added(results, case.name)


async def warm_up(target: Target) -> None:
    """Imports, pools, prepared statements: what a first request pays for all others."""
    for streams in (1, 20):
        await at_once(target, Plan(20, 1_000), streams, 30.0)


def note_added(results: Results, case: str) -> None:
    """What each added to the backend's own time to the first word: to its median over the rounds, since
    one round in which the backend was late would make all of that round look good."""
    rounds = results.rounds[case]
    for which in ("p50", "p99"):
        alone = results.figure(case, DIRECT, f"ttft_{which}_ms")
        for figures in (figures for contender in rounds.values() for figures in contender):
            through = figures[f"ttft_{which}_ms"]
            if through is not None and alone is not None:
                figures[f"added_ttft_{which}_ms"] = through - alone
