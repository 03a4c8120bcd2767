"""Counts: what this process has counted, in plain dictionaries, and sums of several processes' figures.

Its own, and not the client library's counters: those take a lock for each step, and could neither be
written down for a successor nor added to another process's. Never here: names of metrics, text.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any

from service.metrics.families import Family

Labels = tuple[str, ...]
BOUNDS = tuple(0.005 * 2**step for step in range(18))
"""Upper bounds of a histogram's buckets, in seconds: 0.005, doubled up to 655.36."""
SUM = len(BOUNDS) + 1
"""Where a histogram's sum is: behind a bucket for each bound, and one for what is above all."""

Figures = dict[str, dict[Labels, Any]]
"""Name of a metric → labels → a number, or a histogram's buckets (not cumulative) and sum."""


class Counter:
    """A number for each set of labels, which only grows."""

    __slots__ = ("values",)

    def __init__(self, values: dict[Labels, float]) -> None:
        self.values = values

    def add(self, labels: Labels = (), amount: float = 1.0) -> None:
        """Count something; `amount` is 0 or more."""
        values = self.values
        values[labels] = values.get(labels, 0.0) + amount


class Histogram:
    """Seconds, sorted into buckets, for each set of labels."""

    __slots__ = ("values",)

    def __init__(self, values: dict[Labels, list[float]]) -> None:
        self.values = values

    def observe(self, seconds: float, labels: Labels = ()) -> None:
        """Count one duration."""
        cells = self.values.get(labels)
        if cells is None:
            cells = self.values[labels] = [0.0] * (SUM + 1)
        cells[bisect_left(BOUNDS, seconds)] += 1
        cells[SUM] += seconds


class Counts:
    """What this process has counted, and its predecessor, if that left its figures.

    Args:
        families: what may be counted.
    """

    def __init__(self, families: Mapping[str, Family]) -> None:
        self._families = families
        self.figures: Figures = {
            name: dict.fromkeys(family.from_start, 0.0) for name, family in families.items()
        }

    def counter(self, name: str) -> Counter:
        """The counter of this name. Raises KeyError if there is none."""
        assert self._families[name].kind == "counter"
        return Counter(self.figures[name])

    def histogram(self, name: str) -> Histogram:
        """The histogram of this name. Raises KeyError if there is none."""
        assert self._families[name].kind == "histogram"
        return Histogram(self.figures[name])

    def cells(self, name: str, labels: Labels) -> list[float]:
        """A histogram's buckets and its sum, for who counts there often. They stay the same list."""
        found: list[float] = self.figures[name].setdefault(labels, [0.0] * (SUM + 1))
        return found

    def go_on_from(self, figures: Figures) -> None:
        """Begin where a predecessor ended. Of its figures those that only grow count, and which still
        have the same labels."""
        for name, values in self.growing(figures).items():
            labels = self._families[name].labels
            kept = self.figures[name]
            for key, value in values.items():
                if len(key) != len(labels):
                    continue
                if self._families[name].kind == "histogram":
                    self.cells(name, key)[:] = value
                else:
                    kept[key] = value

    def growing(self, figures: Figures) -> Figures:
        """Those of these figures that only grow; all that is left of a process that is gone."""
        return {
            name: values
            for name, values in figures.items()
            if (family := self._families.get(name)) and family.kind in ("counter", "histogram")
        }


def merged(families: Mapping[str, Family], several: Iterable[Figures]) -> Figures:
    """The figures of several processes as one process's. Metrics that aren't known are left out."""
    found: Figures = {name: {} for name in families}
    for figures in several:
        for name, values in figures.items():
            if name in found:
                into = found[name]
                for labels, value in values.items():
                    old = into.get(labels)
                    into[labels] = value if old is None else _both(families[name], old, value)
    return found


def _both(family: Family, one: Any, other: Any) -> Any:
    if family.kind == "histogram":
        return [a + b for a, b in zip(one, other, strict=True)]
    if family.merge == "max":
        return max(one, other)
    return min(one, other) if family.merge == "min" else one + other


def written(figures: Figures) -> dict[str, list[Any]]:
    """Figures as JSON can say them; `read` reads them."""
    return {
        name: [[labels, value] for labels, value in values.items()]
        for name, values in figures.items()
        if values
    }


def read(said: Mapping[str, Any]) -> Figures:
    """The figures that `written` wrote."""
    return {
        name: {tuple(labels): value for labels, value in values} for name, values in said.items()
    }
