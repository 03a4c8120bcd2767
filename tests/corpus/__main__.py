"""Prints what backends send oddly, and what is made of it, as the tables in `docs/backends.md`.

python -m tests.corpus                     print them
python -m tests.corpus docs/backends.md    write them between that file's markers
python -m tests.corpus --check FILE        exit 1 if the file is stale
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from tests.corpus.cases import Case, load_all

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
        "| it sends | we make of it | version | seen |",
        "| --- | --- | --- | --- |",
    ]
    for case in cases:
        cells = (case.oddity, case.verdict, case.version, _linked(case.seen))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def _linked(seen: str) -> str:
    """Pages as links: what has a dot and a slash and no space is one."""
    return ", ".join(
        f"[{place}](https://{place})"
        if "." in place and "/" in place and " " not in place
        else place
        for place in seen.replace("; ", ", ").split(", ")
    )


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
