"""How many instructions a chunk, a request and a save take, and whether that is more than before.

    python -m benchmarks.instructions
    python -m benchmarks.instructions --only chunk,save
    python -m benchmarks.instructions --against HEAD~3

The server runs under valgrind (`counting`) and gets the same load each time (`costs`), so a figure
repeats within a few thousandths however busy the machine is. It is the median of some windows.
Figures are compared with those kept for this environment (`recorded`), and on request with another
revision's, counted alike in the same run.

Exit status: 0 if no figure is over the recorded one by more than the tolerance, or there is none to
compare with; 1 if one is; 2 if nothing could be counted.
"""

import argparse
import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

import psycopg2

from benchmarks.instructions.costs import FIGURES, Place
from benchmarks.instructions.counting import NotCounted, valgrind
from benchmarks.instructions.recorded import (
    FILE,
    TOLERANCE,
    Environment,
    Verdict,
    environment,
    record,
    recorded,
    verdicts,
)
from benchmarks.stand.figures import print_table
from benchmarks.stand.running import ROOT, DidNotStart, Server
from db.embedded import EmbeddedUnavailable

Counts = dict[str, list[float]]
"""Figure → each window's instructions per unit."""

_TROUBLE = (DidNotStart, NotCounted, EmbeddedUnavailable, OSError, EOFError)

_NOTHING_TO_COMPARE = """
Nothing to compare with: benchmarks/instructions/instructions.json has no figures for this
environment. This is no failure. Add these with --save (make instructions ARGS=--save). The
environment is:"""


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", metavar="NAMES", type=_names, default=list(FIGURES), help=", ".join(FIGURES)
    )
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--against", metavar="REVISION", help="count this revision too")
    other.add_argument("--tree", metavar="DIR", type=Path, help="count the project in DIR too")
    parser.add_argument(
        "--save", action="store_true", help="record the figures, for this environment"
    )
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := {*names} - {*FIGURES}:
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}"
        )
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print and compare; the exit status. Says what is missing on standard error."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    try:
        valgrind(Path())  # the message without it
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)
        here, there = _count(options)
    except _TROUBLE as error:
        print(f"can't count: {_said(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return report(here, there, environment(), FILE, options.save)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """End what was started; a second signal must not cut that short."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    raise KeyboardInterrupt


def _said(error: Exception) -> str:
    return str(error) or f"the server did not answer ({type(error).__name__})"


def _count(options: argparse.Namespace) -> tuple[Counts, Counts]:
    """This tree's figures and the other's, which may lack some."""
    counts: tuple[Counts, Counts] = {}, {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)  # PostgreSQL may run as another user
        trees = [ROOT, *_other_tree(options, directory)]
        for tree in trees:
            _compile(tree)
        server = Server(directory / "postgres")
        stack.callback(server.stop)
        for figure in options.only:
            for number, tree in enumerate(trees):
                name = f"{figure}-{number}"
                where = "in the other tree" if number else "here"
                print(f"counting {figure} {where}", file=sys.stderr, flush=True)
                place = Place(directory / name, tree, _database(server, name))
                try:
                    counts[number][figure] = asyncio.run(FIGURES[figure](place))
                except _TROUBLE as error:
                    if not number:
                        raise
                    print(f"{figure} can't be counted there: {_said(error)}", file=sys.stderr)
    return counts


def _other_tree(options: argparse.Namespace, directory: Path) -> list[Path]:
    """The one to compare with, if any. Raises `NotCounted` if it isn't there."""
    if options.tree:
        if not (options.tree / "run.py").exists():
            raise NotCounted(f"there is no run.py in {options.tree}")
        return [options.tree.resolve()]
    if not options.against:
        return []
    packed = directory / "revision.tar"
    command = ["git", "-C", str(ROOT), "archive", f"--output={packed}", "--end-of-options"]
    made = subprocess.run([*command, options.against], capture_output=True, text=True)
    if made.returncode:
        raise NotCounted(f"git has no {options.against}: {made.stderr.strip()}")
    shutil.unpack_archive(packed, directory / "revision")
    return [directory / "revision"]


def _compile(tree: Path) -> None:
    """What Python would do at the first start, slowly under valgrind, and not at the second."""
    packages = [path.parent for path in tree.glob("*/__init__.py")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *packages], check=True)


def _database(server: Server, name: str) -> str:
    """The URL of a new database: revisions may not agree on the tables."""
    with closing(psycopg2.connect(server.dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{name}"')
    return urlunsplit(urlsplit(server.dsn)._replace(path=f"/{name}"))


def report(here: Counts, there: Counts, where: Environment, file: Path, is_to_save: bool) -> int:
    """Print what was counted and what it means; the exit status.

    Args:
        here, there: this tree's figures and another's; those of the other only for show.
        where, file: whose recorded figures they are compared with, and where those are kept.
        is_to_save: record the figures instead of judging them.
    """
    figures = {name: round(median(windows)) for name, windows in here.items()}
    found = verdicts(figures, recorded(where, file))
    print_table("Instructions, user space", {each.name: _row(each, here, there) for each in found})
    if is_to_save:
        record(where, figures, file)
        print(f"recorded in {file}")
        return 0
    if all(each.before is None for each in found):
        print(_NOTHING_TO_COMPARE)
        for key, value in where.items():
            print(f"  {key:<16} {value}")
    over = [each for each in found if each.is_over]
    for each in over:
        print(f"{each.name}: {each.ratio:.3f} of what is recorded; {1 + TOLERANCE} is allowed")
    return 1 if over else 0


def _row(verdict: Verdict, here: Counts, there: Counts) -> dict[str, Any]:
    windows = here[verdict.name]
    row: dict[str, Any] = {
        "counted": verdict.counted,
        "spread %": (max(windows) - min(windows)) / verdict.counted * 100,
    }
    if there:
        other = there.get(verdict.name)
        row["other tree"] = round(median(other)) if other else None
        row["ratio to it"] = _ratio(verdict.counted, row["other tree"])
    row["recorded"] = verdict.before
    row["ratio"] = _ratio(verdict.counted, verdict.before)
    return {**row, "": verdict.word}


def _ratio(counted: int, other: int | None) -> str | None:
    return f"{counted / other:.4f}" if other else None


if __name__ == "__main__":
    sys.exit(main())
