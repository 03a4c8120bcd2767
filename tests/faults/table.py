"""The matrix's result: a row for each fault and moment, and everything that went wrong. Pure."""

from collections.abc import Iterable
from typing import Any

from attrs import Factory, define

from tests.faults.oracle import Verdict

COLUMNS = (
    *("runs", "words shown", "words lost", "duplicates", "wrong states", "bad bytes"),
    *("readers", "chunks lost", "doubled", "different", "wrong ends", "hung"),
)
"""Of the stream and its row, and of its readers."""


@define
class Row:
    """One fault at one moment, over all its streams."""

    runs: int = 0
    shown: int = 0
    lost: int = 0
    duplicates: int = 0
    wrong: int = 0
    broken: int = 0
    readers: tuple[int, ...] = (0,) * 6

    def add(self, verdict: Verdict) -> None:
        self.runs += 1
        self.shown += verdict.shown
        self.lost += verdict.lost
        self.duplicates += verdict.duplicates
        self.wrong += bool(verdict.wrong)
        self.broken += bool(verdict.broken)
        self.readers = tuple(map(sum, zip(self.readers, verdict.readers.numbers, strict=True)))

    @property
    def numbers(self) -> tuple[int, ...]:
        mine = (self.runs, self.shown, self.lost, self.duplicates, self.wrong, self.broken)
        return (*mine, *self.readers)


@define
class Table:
    """Rows in the order of their first stream.

    Attributes:
        complaints: what went wrong beside single streams, such as a process that wouldn't stop.
        skipped: what could not be had here, with the reason.
    """

    rows: dict[tuple[str, str], Row] = Factory(dict)
    failures: list[Verdict] = Factory(list)
    complaints: list[str] = Factory(list)
    skipped: list[str] = Factory(list)

    def add(self, verdicts: Iterable[Verdict]) -> None:
        for verdict in verdicts:
            plan = verdict.plan
            self.rows.setdefault((plan.fault, plan.moment), Row()).add(verdict)
            if not verdict.is_clean:
                self.failures.append(verdict)

    def clear(self) -> None:
        for held in (self.rows, self.failures, self.complaints, self.skipped):
            held.clear()

    def failures_by_row(self) -> dict[tuple[str, str], list[Verdict]]:
        found: dict[tuple[str, str], list[Verdict]] = {}
        for verdict in self.failures:
            found.setdefault((verdict.plan.fault, verdict.plan.moment), []).append(verdict)
        return found

    @property
    def total(self) -> tuple[int, ...]:
        numbers = [row.numbers for row in self.rows.values()]
        return tuple(map(sum, zip(*numbers, strict=True))) if numbers else (0,) * len(COLUMNS)

    @property
    def is_clean(self) -> bool:
        return not (self.failures or self.complaints)

    def lines(self) -> list[str]:
        """The table as text."""
        names = [(fault, moment) for fault, moment in self.rows]
        left = max([len("fault"), *(len(fault) for fault, _ in names)])
        middle = max([len("moment"), *(len(moment) for _, moment in names)])

        def line(fault: str, moment: str, cells: Iterable[Any]) -> str:
            numbers = (f"{cell:>{len(name)}}" for cell, name in zip(cells, COLUMNS, strict=True))
            return f"{fault:{left}}  {moment:{middle}}  " + "  ".join(numbers)

        body = [line(*name, row.numbers) for name, row in self.rows.items()]
        rule = "-" * len(line("", "", COLUMNS))
        return [line("fault", "moment", COLUMNS), rule, *body, rule, line("total", "", self.total)]

    def as_json(self) -> dict[str, Any]:
        keys = [name.replace(" ", "_") for name in COLUMNS]
        rows = [
            {"fault": fault, "moment": moment, **dict(zip(keys, row.numbers, strict=True))}
            for (fault, moment), row in self.rows.items()
        ]
        return {
            "rows": rows,
            "total": dict(zip(keys, self.total, strict=True)),
            "failures": [str(verdict) for verdict in self.failures],
            "complaints": self.complaints,
            "skipped": self.skipped,
        }
