"""Prints what backends send oddly, and what is made of it, as the tables in `docs/backends.md`.

python -m tests.corpus                     print them
python -m tests.corpus docs/backends.md    write them between that file's markers
python -m tests.corpus --check FILE        exit 1 if the file is stale
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from tests.corpus.cases import Case, load_all

_ADDRESS = re.compile(r"[a-z0-9.-]+\.[a-z]+/\S+")
BEGIN, END = "<!-- backends: begin -->", "<!-- backends: end -->"


def printed(cases: Iterable[Case]) -> str:
    """A section and a table for each backend, by name."""
    groups = groupby(sorted(cases, key=lambda case: case.name), key=_folder)
    tables = [_table(list(group)) for _, group in groups]
    return "\n\n".join(tables)


def _folder(case: Case) -> str:
    return case.name.partition("/")[0]


def _table(cases: list[Case]) -> str:
    rows = [
        f"## {cases[0].backend}",
        "",
        "| it sends | we make of it | seen |",
        "| --- | --- | --- |",
    ]
    for case in cases:
        cells = (case.oddity, case.verdict, _seen(case))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def _seen(case: Case) -> str:
    """Where, with pages as links, and in which version."""
    places = ", ".join(map(_linked, case.seen.replace("; ", ", ").split(", ")))
    return f"{case.version}: {places}" if case.version else places


def _linked(place: str) -> str:
    """A page's name is short: an issue's as GitHub writes it, else the site's."""
    if " " in place or not _ADDRESS.fullmatch(place):
        return place
    issue = re.fullmatch(r"github\.com/[^/]+/([^/]+)/(?:issues|pull)/(\d+)", place)
    repository = re.fullmatch(r"github\.com/[^/]+/([^/]+)", place)
    name = f"{issue[1]}#{issue[2]}" if issue else place.partition("/")[0]
    return f"[{repository[1] if repository else name}](https://{place})"


def with_printed(text: str) -> str:
    """The text with what stands between its markers printed anew.

    Raises:
        ValueError: the markers aren't there, each once and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    stale, end, after = rest.partition(END)
    if not begin or not end or BEGIN in stale + after or END in after:
        raise ValueError(f"needs one {BEGIN} and after it one {END}")
    return f"{before}{BEGIN}\n\n{printed(load_all())}\n\n{END}{after}"


def main(arguments: Sequence[str]) -> int:
    """Print, write or check; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus")
    parser.add_argument("file", type=Path, nargs="?", help="write between this file's markers")
    parser.add_argument("--check", action="store_true", help="only say if the file is stale")
    options = parser.parse_args(arguments)
    if options.file is None:
        print(printed(load_all()))
        return 0
    text = options.file.read_text("utf-8")
    try:
        fresh = with_printed(text)
    except ValueError as error:
        print(f"{options.file} {error}", file=sys.stderr)
        return 2
    if options.check:
        if text != fresh:
            print(f"{options.file} is stale: make docs", file=sys.stderr)
        return int(text != fresh)
    options.file.write_text(fresh, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
