"""Runs a command for some minutes at most, and ends whatever it leaves behind.

    python .ci/limited.py MINUTES COMMAND [ARGUMENT…]

The exit status is the command's; 124 if it took too long, 1 if it left a process behind. On Linux
that is any process that it or its children started, daemons too, as orphans come to us; elsewhere
only the command's own group is ended.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SET_CHILD_SUBREAPER = 36  # prctl(2)
GRACE_SECONDS = 10.0
"""How long what was told to end may take: an embedded PostgreSQL still writes its last pages."""


def main(minutes: float, command: list[str]) -> int:
    """Run it; returns the exit status."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    process = subprocess.Popen(command, start_new_session=True)
    try:
        process.returncode = _status_of(process.pid, minutes * 60)
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGTERM)
        process.returncode = 130
    if process.returncode is None:
        print(f"{command[0]} has run for {minutes:g} minutes, the longest allowed", flush=True)
        os.killpg(process.pid, signal.SIGTERM)
        process.returncode = 124
    left = _left_after(GRACE_SECONDS)
    for one, words in left.items():
        print(f"left behind: {one} {words}", flush=True)
        os.kill(one, signal.SIGKILL)
    return process.returncode or int(bool(left))


def _status_of(pid: int, seconds: float) -> int | None:
    """The exit status of a child, or None if it still runs after that time.

    Meanwhile orphans are waited for as init would: what asks whether its daemon has ended must not
    find a zombie.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended = _ended()
        if pid in ended:
            status = os.waitstatus_to_exitcode(ended[pid])
            return status if status >= 0 else 128 - status  # as shells say that a signal ended it
        time.sleep(0.02)
    return None


def _ended() -> dict[int, int]:
    """The children that have ended since the last call, with their wait status."""
    found: dict[int, int] = {}
    try:
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            found[ended[0]] = ended[1]
    except ChildProcessError:
        pass
    return found


def _left_after(seconds: float) -> dict[int, str]:
    """What is still there after that time, or nothing as soon as nothing is."""
    deadline = time.monotonic() + seconds
    while True:
        _ended()
        left = dict(_descendants(os.getpid()))
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _descendants(ancestor: int) -> Iterator[tuple[int, str]]:
    """Every process below this one, with its command line."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # "pid (name, which may have brackets) state ppid …"
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        children.setdefault(int(parent), []).append(int(entry.name))
    waiting = children.get(ancestor, [])
    while waiting:
        pid = waiting.pop()
        waiting.extend(children.get(pid, ()))
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        yield pid, words.decode(errors="replace").strip()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
