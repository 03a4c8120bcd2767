"""Prints what backends send oddly, and what is made of it, as the tables in `docs/backends.md`:
`python -m tests.corpus`.
"""

import re
from collections.abc import Iterable
from itertools import groupby

from tests.corpus.cases import Case, load_all

_ADDRESS = re.compile(r"[a-z0-9.-]+\.[a-z]+/\S+")


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


if __name__ == "__main__":
    print(printed(load_all()))
