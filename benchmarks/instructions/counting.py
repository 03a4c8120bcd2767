"""Counts a process's user-space instructions between two moments, under valgrind's callgrind.

The process runs with counting off until it is wanted, so that its start takes seconds and not a
minute. A window is one load: what was counted before is thrown away, the load runs, the process
comes to rest, and what was counted meanwhile is written to a file and read (`total`). The kernel's
instructions, the waiting and valgrind's own work are in no count. Knows no load
and no figure.
"""

import re
import shutil
import subprocess
import time
from pathlib import Path

from benchmarks.stand.machine import cpu_seconds

_REST_SECONDS = 0.05
"""A process that hasn't run for so long, and waits, has nothing left to do."""
_LONGEST_SECONDS = 120.0
_TOTAL = re.compile(r"^totals: (\d+)$", re.MULTILINE)


class NotCounted(Exception):
    """Valgrind is missing, or did not do what it was asked. The message says what to do."""


def total(profile: str) -> int:
    """The instructions in a callgrind file's text. Raises `NotCounted` if it counts anything else."""
    found = _TOTAL.search(profile)
    if "\nevents: Ir\n" not in profile or found is None:
        raise NotCounted("callgrind wrote no count of instructions")
    return int(found[1])


def valgrind(directory: Path) -> list[str]:
    """The command that runs another one and counts it, files in this directory.

    Raises `NotCounted` without valgrind.
    """
    program = shutil.which("valgrind")
    if program is None or shutil.which("vgdb") is None:
        raise NotCounted("valgrind is needed to count instructions (Debian: apt install valgrind)")
    return [
        program,
        "--tool=callgrind",
        "--instr-atstart=no",
        f"--callgrind-out-file={directory / 'counts'}",
        f"--vgdb-prefix={directory / 'vgdb'}",
    ]


class Counter:
    """The count of one process that `valgrind(directory)` runs."""

    def __init__(self, pid: int, directory: Path) -> None:
        self._pid = pid
        self._directory = directory

    def begin(self) -> None:
        """Count from here on; the first load afterwards is for getting warm."""
        self._say("instrumentation", "on")

    def read(self) -> int:
        """Instructions since the last call, once the process is at rest."""
        self._rest()
        before = {*self._directory.glob("counts*")}
        self._say("dump")
        (written,) = {*self._directory.glob("counts*")} - before
        count = total(written.read_text())
        written.unlink()
        return count

    def _say(self, *words: str) -> None:
        command = ["vgdb", f"--pid={self._pid}", f"--vgdb-prefix={self._directory / 'vgdb'}"]
        done = subprocess.run(
            [*command, "--max-invoke-ms=100", *words], capture_output=True, text=True
        )
        if done.returncode:
            raise NotCounted(f"valgrind didn't answer: {done.stderr[-500:]}")

    def _rest(self) -> None:
        """Until the process waits and has not run for a moment."""
        deadline = time.monotonic() + _LONGEST_SECONDS
        used = -1.0
        while (now := cpu_seconds(self._pid)) != used or not _waits(self._pid):
            if time.monotonic() > deadline:
                raise NotCounted(f"the process did not come to rest in {_LONGEST_SECONDS:g} s")
            used = now
            time.sleep(_REST_SECONDS)


def _waits(pid: int) -> bool:
    """Whether none of its threads runs or wants to (proc(5))."""
    states = [
        path.read_text().rpartition(")")[2].split()[0]
        for path in Path(f"/proc/{pid}/task").glob("*/stat")
    ]
    return "R" not in states
