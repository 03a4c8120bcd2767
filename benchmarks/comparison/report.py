"""Prints results: tables for a terminal, the same as Markdown, and a plot."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison.compare import DIRECT, Results
from benchmarks.comparison.targets import Target, targets
from benchmarks.stand.figures import print_table, short

_BEGIN, _END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"

_HEADINGS = {
    "cpu_us_per_chunk": "CPU µs/chunk",
    "steady_cpu_us_per_chunk": "steady CPU µs/chunk",
    "cpu_ms_per_request": "CPU ms/request",
    "cpu_us_per_ping": "CPU µs/ping",
    "cpu_percent": "CPU %",
    "chunks_per_second": "chunks/s",
    "requests_per_second": "requests/s",
    "pings_per_second": "pings/s",
    "delay_p50_ms": "delay p50 ms",
    "delay_p99_ms": "delay p99 ms",
    "ttft_p50_ms": "TTFT p50 ms",
    "ttft_p99_ms": "TTFT p99 ms",
    "added_ttft_p50_ms": "added TTFT p50",
    "added_ttft_p99_ms": "added TTFT p99",
    "whole_p50_ms": "whole p50 ms",
    "whole_p99_ms": "whole p99 ms",
    "done_delay_p50_ms": "[DONE] p50 ms",
    "done_delay_p99_ms": "[DONE] p99 ms",
    "delivered_percent": "delivered %",
    "complete_percent": "complete %",
    "kb_per_stream": "KiB/stream",
    "streams": "streams",
}

Rows = dict[str, dict[str, Any]]


def _rows(results: Results, case: str) -> Rows:
    shown = results.shown[case]
    return {
        name: {_HEADINGS.get(key, key): results.figure(case, name, key) for key in shown}
        for name in results.rounds[case]
    }


def spread_percent(results: Results, case: str, contender: str, figure: str) -> float | None:
    """How far a figure's rounds lie apart, in percent of their median."""
    rounds = results.rounds[case].get(contender, [])
    known = [value for figures in rounds if (value := figures.get(figure)) is not None]
    middle = results.figure(case, contender, figure)
    return (max(known) - min(known)) / middle * 100 if len(known) > 1 and middle else None


def _with_spread(results: Results, case: str) -> Rows:
    """The table with the first figure's spread beside it."""
    first = results.shown[case][0]
    rows = _rows(results, case)
    for name, row in rows.items():
        if len(results.rounds[case][name]) > 1:
            row["spread %"] = spread_percent(results, case, name, first)
    return rows


def _target_rows(found: Sequence[Target]) -> Rows:
    return {
        target.what: {
            "limit": _to_compare(target.limit),
            "found": _to_compare(target.found),
            "verdict": target.verdict,
            "made of": target.made_of or "–",
        }
        for target in found
    }


def _to_compare(value: float | None) -> str | None:
    """A ratio just past its limit is not to look like the limit."""
    if value is None:
        return None
    return "∞" if math.isinf(value) else f"{value:#.4g}"


def print_all(results: Results, machine: Mapping[str, str]) -> None:
    """Everything, on a terminal."""
    print("\n".join(f"{name:10} {value}" for name, value in machine.items()))
    for case in results.rounds:
        print_table(f"\n{case}: {results.titles[case]}", _with_spread(results, case))
    if any("ours" in contenders for contenders in results.rounds.values()):
        print_table("\ntargets", _target_rows(targets(results)))
    for note in results.notes:
        print(f"note: {note}")


# --- Markdown -----------------------------------------------------------------------------------


def write_markdown(path: Path, results: Results, machine: Mapping[str, str], command: str) -> None:
    """Replace what stands between the markers of a document.

    Raises `ValueError` if the document has no markers.
    """
    text = path.read_text("utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{path} has no {_BEGIN} … {_END}")
    parts = [f"Made by `{command}` on:", _markdown_list(machine)]
    parts.append(_markdown_table("target", _target_rows(targets(results))))
    for case in results.rounds:
        parts.append(f"**`{case}`**: {results.titles[case]}.")
        parts.append(_markdown_table("", _with_spread(results, case)))
    if results.notes:
        parts.append("\n".join(f"- {note}" for note in results.notes))
    body = "\n\n".join(parts)
    path.write_text(f"{before}{_BEGIN}\n\n{body}\n\n{_END}{after}", "utf-8")


def _markdown_list(values: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in values.items())


def _markdown_table(corner: str, rows: Rows) -> str:
    columns = max(map(list, rows.values()), key=len)
    lines = [f"| {corner} | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(short(row.get(key)) for key in columns)} |")
    return "\n".join(lines)


# --- plot ---------------------------------------------------------------------------------------

_PANELS = (
    ("paced-100", "cpu_us_per_chunk", "100 paced streams: CPU per chunk, µs"),
    ("paced-10", "delay_p50_ms", "10 paced streams: delay per chunk, ms"),
    ("burst-small", "cpu_us_per_chunk", "burst: CPU per chunk, µs"),
    ("short-16", "cpu_ms_per_request", "short answers: CPU per request, ms"),
    ("arrival-100", "ttft_p99_ms", "100 at once: time to first token p99, ms"),
    ("idle", "kb_per_stream", "open, silent streams: KiB each"),
)


def plot(path: Path, results: Results) -> None:
    """Six panels of bars; the file's name says the format."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 5), layout="constrained")
    for axis, (prefix, name, title) in zip(axes.flat, _PANELS, strict=True):
        case = next((case for case in results.rounds if case.startswith(prefix)), None)
        if case is None:
            axis.set_visible(False)
            continue
        values = {
            contender: value
            for contender in results.rounds[case]
            if contender != DIRECT and (value := results.figure(case, contender, name)) is not None
        }
        colours = ["#c2410c" if contender == "ours" else "#94a3b8" for contender in values]
        bars = axis.barh(list(values), list(values.values()), color=colours)
        axis.bar_label(bars, [short(value) for value in values.values()], padding=3)
        axis.set_title(title, fontsize=10)
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
