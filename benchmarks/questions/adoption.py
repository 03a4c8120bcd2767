"""Measures how long it takes until others have stored what a killed replica was running.

    python -m benchmarks.questions.adoption                       # 1,000 streams, leases of 15 s and 3 s
    python -m benchmarks.questions.adoption --streams 200 --leases 3

Replicas in front of one backend, one PostgreSQL and one Redis; the first has all the streams, is killed
(SIGKILL), and stays away. Told is the time from the kill to the first and to the last row that is stored
with all that it must have: chunks that clients had been shown are counted in the rows. The target is a
lease and five seconds.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from array import array
from contextlib import ExitStack
from pathlib import Path

from attrs import frozen

from benchmarks.contenders import Target
from benchmarks.stand.client import connect
from benchmarks.stand.figures import print_table
from benchmarks.stand.fleet import FleetScene, fleet_scene
from benchmarks.stand.machine import cpu_seconds, describe, settle
from benchmarks.stand.plan import Plan
from benchmarks.stand.running import ROOT

_ENDLESS = 9_000_000
_BEGIN_SECONDS = 0.004
_MORE_SECONDS = 60.0
_ALLOWED_SECONDS = 5.0


@frozen
class Adopted:
    """What became of one kill.

    Attributes:
        first, last: seconds from the kill to the first and the last row.
        stored: how many rows there were in the end.
        cpu: seconds of CPU that each of the living took, until then.
    """

    first: float
    last: float
    stored: int
    cpu: tuple[float, ...]


async def _kill(
    scene: FleetScene, targets: list[Target], streams: int, lease: float, rate: float
) -> Adopted:
    delays = array("q")
    connections = await connect(targets[0].port, streams, delays)
    plan = Plan(_ENDLESS, round(1e6 / rate))
    answers = []
    for connection in connections:
        answers.append(connection.ask(plan))
        await asyncio.sleep(_BEGIN_SECONDS)
    for answer in answers:
        await answer.started.wait()
    await asyncio.sleep(2.0)
    living = [target.pid for target in targets[1:] if target.pid is not None]
    before = [cpu_seconds(pid) for pid in living]
    assert targets[0].pid is not None
    os.kill(targets[0].pid, signal.SIGKILL)
    killed = time.monotonic()
    first = last = 0.0
    stored = 0
    while stored < streams and time.monotonic() < killed + lease + _MORE_SECONDS:
        await asyncio.sleep(0.05)
        ((count,),) = scene.on.server.query("SELECT count(*) FROM completions")
        if count > stored:
            last = time.monotonic() - killed
            first, stored = first or last, count
    used = (cpu_seconds(pid) - cpu for pid, cpu in zip(living, before, strict=True))
    return Adopted(first, last, stored, tuple(used))


def _measure(options: argparse.Namespace, lease: float) -> Adopted:
    with fleet_scene(options.tree.resolve()) as scene, ExitStack() as stack:
        targets = [
            stack.enter_context(scene.replica(f"r{number}", "follow", lease))
            for number in range(options.replicas)
        ]
        killed = _kill(scene, targets, options.streams, lease, options.rate)
        return asyncio.run(killed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--leases", default="15,3", help="seconds, with commas")
    parser.add_argument("--rate", type=float, default=2.0, help="chunks a second of each")
    parser.add_argument("--tree", type=Path, default=ROOT, help="a checkout of another revision")
    options = parser.parse_args()
    machine = describe()
    settle()
    rows = {}
    for lease in map(float, options.leases.split(",")):
        found = _measure(options, lease)
        rows[f"lease {lease:g} s"] = {
            "stored": found.stored,
            "first row, s": found.first,
            "last row, s": found.last,
            "allowed, s": lease + _ALLOWED_SECONDS,
            "CPU of the living, s": " ".join(f"{each:.2f}" for each in found.cpu),
        }
        print(f"{rows}", file=sys.stderr)
    print_table(f"{options.streams} streams of a killed replica", rows)
    print(f"load {machine['load']}, {os.getloadavg()[0]:.1f} after it")


if __name__ == "__main__":
    main()
