"""Figures that are kept in the repository, per environment, and whether new ones are over them.

Instructions are the same on every machine with the same interpreter, libraries and kind of
processor, and only there; so `instructions.json` has an entry for each such environment. No counting
here.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from attrs import frozen

FILE = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.02
"""How far over the recorded figure a new one may be; a change that does nothing has moved one
by a fifth of it, as objects then lie elsewhere."""

_PACKAGES = (
    "aiohttp",
    "aiopg",
    "attrs",
    "multidict",
    "orjson",
    "psycopg2-binary",
    "structlog",
    "uvloop",
    "yarl",
)

Environment = Mapping[str, str]
Figures = Mapping[str, int]


def environment() -> dict[str, str]:
    """What instructions depend on besides our code, in words.

    An interpreter is told by the moment at which it was built too: what it was built with makes a
    difference of a tenth, and isn't told by all of them.
    """
    return {
        "python": f"{platform.python_implementation()} {' '.join(sys.version.split())}",
        "processor": _processor(),
        "libc": " ".join(platform.libc_ver()),
        "valgrind": _valgrind_version(),
        **{package: _version(package) for package in _PACKAGES},
    }


def _processor() -> str:
    """The architecture, and what the C library and orjson choose their code by under valgrind."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = []
    return f"{platform.machine()}, {'with' if 'avx2' in flags else 'without'} AVX2"


def _valgrind_version() -> str:
    try:
        said = subprocess.run(["valgrind", "--version"], capture_output=True, text=True)
    except FileNotFoundError:
        return "none"
    return said.stdout.strip().removeprefix("valgrind-")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def recorded(where: Environment, file: Path = FILE) -> dict[str, int] | None:
    """The figures of an environment, None if the file has none."""
    for entry in _entries(file):
        if entry["environment"] == where:
            return dict(entry["figures"])
    return None


def record(where: Environment, figures: Figures, file: Path = FILE) -> None:
    """Keep these figures of an environment; its others stay as they are."""
    entries = _entries(file)
    for entry in entries:
        if entry["environment"] == where:
            entry["figures"].update(figures)
            break
    else:
        entries.append({"environment": dict(where), "figures": dict(figures)})
    file.write_text(json.dumps(entries, indent=2) + "\n", "utf-8")


def _entries(file: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.exists() else []
    return entries


@frozen
class Verdict:
    """One figure beside the recorded one.

    Attributes:
        counted, before: instructions; `before` is None if there is no such figure.
    """

    name: str
    counted: int
    before: int | None

    @property
    def ratio(self) -> float | None:
        return self.counted / self.before if self.before else None

    @property
    def is_over(self) -> bool:
        return self.ratio is not None and self.ratio > 1 + TOLERANCE

    @property
    def word(self) -> str:
        if self.ratio is None:
            return "not recorded"
        if self.is_over:
            return "OVER"
        return "ok" if self.ratio >= 1 - TOLERANCE else "below: record it"


def verdicts(figures: Figures, before: Figures | None) -> list[Verdict]:
    """One for each figure, in their order. `before` is None in an unknown environment."""
    return [Verdict(name, counted, (before or {}).get(name)) for name, counted in figures.items()]
