"""Samples the service with py-spy under a load, and prints the functions by self time.

`python -m benchmarks --workloads paced --contenders ours --profile`.
"""

import asyncio
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.comparison.compare import Bench, warm_up
from benchmarks.comparison.workloads import Case
from benchmarks.contenders import Contender

_RATE = 500
_LONGEST_SECONDS = 20


def profile(bench: Bench, contender: Contender, cases: list[Case]) -> None:
    """Print the top ten functions of one turn of each case."""
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or "py-spy"
    with contender.running(bench.place()) as target:
        asyncio.run(warm_up(target))
        for case in cases:
            bench.tell(f"profiling {contender.name}, {case.name}")
            output = bench.directory / f"{case.name}.stacks"
            command = [program, "record", "--pid", str(target.pid), "--output", str(output)]
            command += ["--format", "raw", "--rate", str(_RATE), "--nonblocking"]
            command += ["--duration", str(_LONGEST_SECONDS)]
            pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
            with subprocess.Popen(command, **pipes) as spy:
                load = asyncio.run(case.run(target))
                if spy.poll() is None:
                    spy.send_signal(signal.SIGINT)  # it writes what there is
                _, trouble = spy.communicate()
            if not output.exists():
                raise SystemExit(f"py-spy could not look into the service: {trouble.decode()}")
            print(f"\n{case.name}, {contender.name}: {load.chunks:,} chunks; self time")
            for share, function in _by_self_time(output.read_text())[:10]:
                print(f"{share:6.1%}  {function}")


def _by_self_time(stacks: str) -> list[tuple[float, str]]:
    """Share and name of each function that was innermost in a sample, the largest first."""
    counts: Counter[str] = Counter()
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        innermost = frames.rpartition(";")[2]  # "function (file.py:12)"
        counts[innermost.rpartition(":")[0] + ")" if ":" in innermost else innermost] += int(count)
    total = sum(counts.values()) or 1
    return [(count / total, name) for name, count in counts.most_common()]
