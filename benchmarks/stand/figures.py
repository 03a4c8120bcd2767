"""Computes percentiles and prints tables. Knows nothing of what they measure."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import quantiles
from typing import Any


def percentile(values: Iterable[float | None], which: int) -> float | None:
    """By interpolation between the values there are; None if there are none."""
    known = sorted(value for value in values if value is not None)
    if len(known) < 2:
        return known[0] if known else None
    return quantiles(known, n=100, method="inclusive")[which - 1]


def percentiles(values: Sequence[float | None]) -> dict[str, float | int]:
    """How many there are, p50, p99 and the largest; None are counted as missing."""
    known = [value for value in values if value is not None]
    return {
        "streams": len(values),
        "missing": len(values) - len(known),
        "p50": round(percentile(known, 50) or 0.0, 1),
        "p99": round(percentile(known, 99) or 0.0, 1),
        "max": round(max(known, default=0.0), 1),
    }


def short(value: Any) -> str:
    """As many digits as mean something."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def print_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Rows under a title; a row may lack the last columns."""
    columns = max(map(list, rows.values()), key=len)
    table = [["", *columns]]
    table += [[name, *(short(row.get(key)) for key in columns)] for name, row in rows.items()]
    widths = [max(len(line[place]) for line in table) for place in range(len(columns) + 1)]
    print(title)
    for first, *cells in table:
        places = zip(cells, widths[1:], strict=True)
        print(first.ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in places))
