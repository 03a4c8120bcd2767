"""Runs the cases against the contenders and collects the figures.

`Results` is what everything else is made from: the JSON file, the tables, the targets, the plot.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from attrs import define, field

from benchmarks.contenders import CONTENDERS, Contender, Missing, Place, Target
from benchmarks.loads import Figures, calm
from benchmarks.plan import Plan
from benchmarks.workloads import Case, measured

Tell = Callable[[str], None]

DIRECT = "direct"
"""The backend itself, asked without anything in between: what there is to add to."""

_KEEP_ALIVE_SECONDS = 15.0


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

    def figure(self, case: str, contender: str, name: str) -> float | None:
        """The median over the rounds."""
        rounds = self.rounds.get(case, {}).get(contender, [])
        known = [value for figures in rounds if (value := figures.get(name)) is not None]
        return median(known) if known else None

    def as_json(self) -> dict[str, Any]:
        return {
            case: {
                "title": self.titles[case],
                "contenders": {
                    name: {
                        "median": {key: self.figure(case, name, key) for key in rounds[0]},
                        "rounds": rounds,
                    }
                    for name, rounds in contenders.items()
                },
            }
            for case, contenders in self.rounds.items()
        }


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

    @contextmanager
    def running(self, contenders: Sequence[Contender], results: Results) -> Iterator[list[Target]]:
        """Those that can be had, all at once; the others are noted."""
        with ExitStack() as stack:
            targets = []
            for contender in contenders:
                try:
                    targets.append(stack.enter_context(contender.running(self.place())))
                except Missing as missing:
                    results.notes.append(f"{contender.name} was left out: {missing}")
                    self.tell(results.notes[-1])
            yield targets


def compare(
    bench: Bench, contenders: Sequence[Contender], cases: Sequence[Case], results: Results
) -> None:
    """All cases in rounds, the contenders in turn; the order rotates."""
    with bench.running(contenders, results) as running:
        targets = [Target(DIRECT, bench.upstream_port, None), *running]
        for target in targets:
            asyncio.run(_warm_up(target))
        for case in cases:
            results.describe(case.name, case.title, case.shown)
            for number in range(case.rounds):
                bench.tell(f"{case.name}, round {number + 1} of {case.rounds}")
                shift = number % len(targets)
                for target in targets[shift:] + targets[:shift]:
                    figures = asyncio.run(_turn(case, target, bench.upstream_port))
                    results.add(case.name, target.name, figures)
                _note_added(results, case.name)


async def _warm_up(target: Target) -> None:
    """Imports, pools, prepared statements: what a first request pays for all others."""
    from benchmarks.loads import at_once

    for streams in (1, 20):
        await at_once(target, Plan(20, 1_000), streams, 30.0)


async def _turn(case: Case, target: Target, upstream_port: int) -> Figures:
    figures = await measured(case, target, upstream_port)
    if not await calm(target):
        figures["never_calm"] = 1.0
    return figures


def _note_added(results: Results, case: str) -> None:
    """What each added to the backend's own time to the first word, in this round."""
    rounds = results.rounds[case]
    direct = rounds[DIRECT][-1]
    for contender in rounds.values():
        for which in ("p50", "p99"):
            through, alone = contender[-1][f"ttft_{which}_ms"], direct[f"ttft_{which}_ms"]
            if through is not None and alone is not None:
                contender[-1][f"added_ttft_{which}_ms"] = through - alone


def chosen(names: str) -> list[Contender]:
    """Contenders by their names, in their own order. Raises `SystemExit` for an unknown one."""
    asked = names.split(",")
    unknown = [name for name in asked if name not in CONTENDERS]
    if unknown:
        raise SystemExit(f"unknown contender {unknown[0]}; there are {', '.join(CONTENDERS)}")
    return [contender for name, contender in CONTENDERS.items() if name in asked]
