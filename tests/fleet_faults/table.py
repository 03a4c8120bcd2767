"""The fleet matrix's result: a row for each fault and mode, and everything that went wrong. Pure."""

from collections.abc import Iterable
from typing import Any

from attrs import Factory, define

from tests.fleet_faults.oracle import NUMBERS, Verdict

COLUMNS = ("runs", "streams", "readers", *NUMBERS, "limits")


@define
class Row:
    """One fault in one mode, over all its runs. `limits`: how far a limit was exceeded."""

    runs: set[str] = Factory(set)
    streams: int = 0
    readers: int = 0
    numbers: tuple[int, ...] = (0,) * len(NUMBERS)
    limits: int = 0

    def add(self, verdict: Verdict) -> None:
        self.streams += 1
        self.readers += verdict.readers
        self.numbers = tuple(map(sum, zip(self.numbers, verdict.numbers, strict=True)))

    @property
    def cells(self) -> tuple[int, ...]:
        return (len(self.runs), self.streams, self.readers, *self.numbers, self.limits)


@define
class Table:
    """Rows in the order of their first stream.

    Attributes:
        complaints: what went wrong beside single streams, such as a process that wouldn't stop.
        notes: what is no mistake and is to be known: how cuts were made, what could not be had.
    """

    rows: dict[tuple[str, str], Row] = Factory(dict)
    failures: list[str] = Factory(list)
    complaints: list[str] = Factory(list)
    notes: dict[str, None] = Factory(dict)

    def row(self, fault: str, mode: str, run: str) -> Row:
        found = self.rows.setdefault((fault, mode), Row())
        found.runs.add(run)
        return found

    def add(self, verdicts: Iterable[Verdict], mode: str, run: str) -> None:
        for verdict in verdicts:
            self.row(verdict.stream.plan.fault, mode, run).add(verdict)
            if not verdict.is_clean:
                self.failures.append(f"[{mode}, {run}] {verdict}")

    def add_limit(
        self, fault: str, mode: str, run: str, streams: int, exceeded: int, said: str
    ) -> None:
        """So many were asked for, and so many more than allowed were admitted."""
        row = self.row(fault, mode, run)
        row.streams += streams
        row.limits += exceeded
        if exceeded:
            self.failures.append(f"[{mode}, {run}] {fault}: {said}")

    @property
    def total(self) -> tuple[int, ...]:
        cells = [row.cells for row in self.rows.values()]
        return tuple(map(sum, zip(*cells, strict=True))) if cells else (0,) * len(COLUMNS)

    @property
    def is_clean(self) -> bool:
        return not (self.failures or self.complaints)

    @property
    def wrong(self) -> int:
        return len(self.failures) + len(self.complaints)

    def lines(self) -> list[str]:
        """The table as text."""
        left = max([len("fault"), *(len(fault) for fault, _ in self.rows)])

        def line(fault: str, mode: str, cells: Iterable[Any]) -> str:
            numbers = (f"{cell:>{len(name)}}" for cell, name in zip(cells, COLUMNS, strict=True))
            return f"{fault:{left}}  {mode:11}  " + "  ".join(numbers)

        body = [line(*name, row.cells) for name, row in self.rows.items()]
        rule = "-" * len(line("", "", COLUMNS))
        head = line("fault", "journal", COLUMNS)
        return [head, rule, *body, rule, line("total", "", self.total)]

    def as_json(self) -> dict[str, Any]:
        keys = [name.replace(" ", "_") for name in COLUMNS]
        rows = [
            {"fault": fault, "journal": mode, **dict(zip(keys, row.cells, strict=True))}
            for (fault, mode), row in self.rows.items()
        ]
        return {
            "rows": rows,
            "total": dict(zip(keys, self.total, strict=True)),
            "failures": self.failures,
            "complaints": self.complaints,
            "notes": list(self.notes),
        }
