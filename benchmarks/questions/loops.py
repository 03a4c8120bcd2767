"""Measures what uvloop gains: the service's CPU time per chunk on asyncio's event loop and on it.

    python -m benchmarks.questions.loops
    python -m benchmarks.questions.loops --rounds 3 --json

`benchmarks/questions/pair.py` says how.
"""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.questions.pair import Variant, compare
from benchmarks.stand.running import ROOT


def main() -> None:
    if find_spec("uvloop") is None:
        raise SystemExit("uvloop isn't installed: .venv/bin/python -m pip install '.[fast]'")
    with tempfile.TemporaryDirectory() as without:
        (Path(without) / "uvloop.py").write_text("raise ImportError\n")
        path = os.pathsep.join((without, str(ROOT)))
        compare(
            __doc__ or "",
            {"asyncio": Variant(environ={"PYTHONPATH": path}), "uvloop": Variant()},
        )


if __name__ == "__main__":
    main()
