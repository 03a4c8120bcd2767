"""Prints into the documents what they have from the code, between their markers: `make docs`.

What is printed is decided by others, each for its own document. `tests/test_docs.py` fails if one
is stale.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import scaling, storms
from statemachine import __main__ as statemachine
from tests import architecture
from tests.corpus import __main__ as corpus
from tests.corpus.cases import load_all

ROOT = Path(__file__).resolve().parent.parent
PRINTED: Mapping[str, tuple[str, Callable[[], str]]] = {
    "docs/state-machine.md": ("printed", statemachine.printed),
    "docs/architecture.md": ("rooms", lambda: architecture.printed(architecture.House())),
    "docs/backends.md": ("backends", lambda: corpus.printed(load_all())),
    "docs/scaling.md": ("scaling", lambda: f"{scaling.printed()}\n\n{storms.printed()}"),
}
"""Document → the name in its markers, and what gives the text between them."""


def printed_anew(document: str) -> str:
    """What a document is to be: itself, with what is printed into it printed anew.

    Raises:
        ValueError: see `between_markers`.
    """
    name, printed = PRINTED[document]
    return between_markers((ROOT / document).read_text("utf-8"), name, printed())


def between_markers(text: str, name: str, new: str) -> str:
    """The text with something new between the markers of that name.

    Raises:
        ValueError: the markers aren't there, each once and in order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if [text.count(begin), rest.count(end), before.count(end)] != [1, 1, 0]:
        raise ValueError(f"needs one {begin} and after it one {end}")
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def main() -> None:
    """Write every such document anew."""
    for document in PRINTED:
        (ROOT / document).write_text(printed_anew(document), "utf-8")


if __name__ == "__main__":
    main()
