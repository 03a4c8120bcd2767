"""Describes the machine, gives processes their cores, reads what they cost (proc(5)). Linux only."""

import os
import platform
import resource
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_FILES = 20_000


def _cores() -> tuple[set[int], set[int]]:
    """The server's, and everybody else's; the same if there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return ({allowed[-1]}, set(allowed[:-1] or allowed))


SERVER_CORES, OTHER_CORES = _cores()


def settle() -> None:
    """Take this process and what it starts from now on off the server's core, and let it open
    thousands of sockets."""
    os.sched_setaffinity(0, OTHER_CORES)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if most == resource.RLIM_INFINITY else min(_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def to_server_core() -> None:
    """For a child process between fork and exec."""
    os.sched_setaffinity(0, SERVER_CORES)


def describe() -> dict[str, str]:
    """What figures depend on."""
    cpus = Path("/proc/cpuinfo").read_text()
    model = next((line for line in cpus.splitlines() if line.startswith("model name")), ": unknown")
    memory = Path("/proc/meminfo").read_text().split()[1]
    count = len(OTHER_CORES | SERVER_CORES)
    return {
        "cpu": model.partition(":")[2].strip(),
        "cores": f"{count}, the server on one"
        + (" of its own" if count > 1 else ", which it shares: no figure here is worth much"),
        "memory": f"{int(memory) / 2**20:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f} before the run",
    }


def family(pid: int) -> set[int]:
    """The process and its descendants."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(_fields(path)[1])
        except OSError:
            continue  # it has just ended
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _fields(path: Path) -> list[str]:
    """Those of a stat file after the program's name, which may hold anything."""
    return path.read_text().rpartition(")")[2].split()


def cpu_seconds(pid: int) -> float:
    """What a process and its descendants have used, user and system, all threads included.

    From the scheduler, to the nanosecond, where it says (`/proc/PID/task/TID/schedstat`); otherwise
    utime and stime, which are the same time in hundredths of seconds.
    """
    return sum(_scheduled_seconds(member) for member in family(pid))


def _scheduled_seconds(pid: int) -> float:
    try:
        threads = [*Path(f"/proc/{pid}/task").glob("*/schedstat")]
        if threads:
            return sum(int(path.read_text().split()[0]) for path in threads) / 1e9
        fields = _fields(Path(f"/proc/{pid}/stat"))
        return (int(fields[11]) + int(fields[12])) / _TICKS
    except OSError:
        return 0.0  # it has just ended


def memory_bytes(pid: int) -> int:
    """Proportional set size of a process and its descendants; no socket buffers, the kernel's."""
    total = 0
    for member in family(pid):
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total
