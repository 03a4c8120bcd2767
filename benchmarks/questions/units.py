"""Measures what docs/scaling.md computes with: unit costs of a replica, of Redis and of PostgreSQL.

    python -m benchmarks.questions.units
    python -m benchmarks.questions.units --rounds 5 --journal before_send --json units.json

Two replicas in front of one backend, one PostgreSQL and one Redis; all load is the first's, and the second
reads along. CPU time is that of each program's processes, user and system. Medians of the rounds. Don't
compare with other machines.

    chunk        µs of the replica, 100 streams of 50 chunks a second, while all run
    request      ms of the replica, one-word answers with their saves
    stream       KiB of the replica for an open stream that is silent, of the first round
    redis chunk, redis request, redis stored    µs of the Redis; bytes it holds for a chunk of a log
    redis run, redis log    bytes it holds for a completion, and for the log of one of one word
    save         transactions, bytes of WAL and ms of PostgreSQL for an answer
    reader       µs a chunk of the replica that reads along, 20 streams of one reader each
"""

import argparse
import asyncio
import json
import os
import sys
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.comparison.loads import again_and_again, calm, spread
from benchmarks.contenders import Target
from benchmarks.stand.client import Answer, Connection, connect, steer, wait_all
from benchmarks.stand.figures import print_table
from benchmarks.stand.fleet import FleetScene, fleet_scene
from benchmarks.stand.machine import cpu_seconds, describe, memory_bytes, settle
from benchmarks.stand.plan import Plan
from benchmarks.stand.reading import read_request

_STREAMS, _INTERVAL_US, _CHUNKS = 100, 20_000, 200
_STEADY_SECONDS = (1.2, 3.6)
_LIMIT_SECONDS = 30.0
_HELD = 500
_READ = 20
_READ_SECONDS = 3.0
_ENDLESS = 9_000_000

Units = dict[str, float]


def _postgres_pid(scene: FleetScene) -> int:
    found = next(scene.on.directory.glob("postgres/**/postmaster.pid"))
    return int(found.read_text().splitlines()[0])


def _written(scene: FleetScene) -> tuple[int, int]:
    """Transactions so far, and bytes of WAL."""
    ((committed, written),) = scene.on.server.query(
        "SELECT sum(xact_commit)::bigint, pg_current_wal_lsn() - '0/0' FROM pg_stat_database"
    )
    return int(committed), int(written)


async def _chunks(scene: FleetScene, target: Target) -> Units:
    scene.told("FLUSHALL")
    engine, before = scene.engine_cpu(), _written(scene)
    load = await spread(
        target, Plan(_CHUNKS, _INTERVAL_US), _STREAMS, 0.7, _LIMIT_SECONDS, _STEADY_SECONDS
    )
    if load.complete < _STREAMS:
        raise SystemExit("a stream broke off")
    await asyncio.sleep(1.5)  # PostgreSQL's figures are a second late
    after = _written(scene)
    logs = scene.keys("verbatim:1:log:*")[:50]
    held = [int(scene.told("MEMORY", "USAGE", key, "SAMPLES", 0)) for key in logs]
    return {
        "chunk, µs": load.figures()["steady_cpu_us_per_chunk"] or 0.0,
        "redis chunk, µs": (scene.engine_cpu() - engine) / load.chunks * 1e6,
        f"save of {_CHUNKS} chunks, bytes of WAL": (after[1] - before[1]) / _STREAMS,
        "redis stored, bytes a chunk": median(held) / _CHUNKS if held else 0.0,
    }


async def _requests(scene: FleetScene, target: Target) -> Units:
    await asyncio.sleep(1.5)  # PostgreSQL's figures are a second late
    pid = _postgres_pid(scene)
    engine, database, before = scene.engine_cpu(), cpu_seconds(pid), _written(scene)
    load = await again_and_again(target, Plan(1), 16, 2.0)
    count = len(load.answers)
    await asyncio.sleep(1.5)
    after = _written(scene)
    runs = scene.keys("verbatim:1:run:*")[:50]
    held = [int(scene.told("MEMORY", "USAGE", key)) for key in runs]
    logs = scene.keys("verbatim:1:log:*")[:50]
    of_logs = [int(scene.told("MEMORY", "USAGE", key, "SAMPLES", 0)) for key in logs]
    return {
        "request, ms": load.figures()["cpu_ms_per_request"] or 0.0,
        "redis request, µs": (scene.engine_cpu() - engine) / count * 1e6,
        "redis run, bytes": median(held) if held else 0.0,
        "redis log, bytes": median(of_logs) if of_logs else 0.0,
        "save, transactions": (after[0] - before[0]) / count,
        "save, bytes of WAL": (after[1] - before[1]) / count,
        "save, ms": (cpu_seconds(pid) - database) / count * 1e3,
    }


async def _held(scene: FleetScene, target: Target) -> Units:
    """Memory of open streams, on top of what the process has taken before."""
    assert target.pid is not None
    await calm(target)
    before = memory_bytes(target.pid)
    connections = await connect(target.port, _HELD, array("q"))
    answers = [connection.ask(Plan(2, shape="held")) for connection in connections]
    for answer in answers:
        await answer.started.wait()
    await calm(target)
    grown = memory_bytes(target.pid) - before
    await steer(scene.on.backend_port, "/end?within_ms=500")
    await wait_all(answers, _LIMIT_SECONDS)
    for connection in connections:
        connection.close()
    return {"stream, KiB": grown / _HELD / 1024}


async def _counted(target: Target, delays: "array[int]") -> float:
    """µs of CPU of a replica for each chunk that comes there meanwhile."""
    assert target.pid is not None
    await asyncio.sleep(0.5)
    cpu, chunks = cpu_seconds(target.pid), len(delays)
    await asyncio.sleep(_READ_SECONDS)
    return (cpu_seconds(target.pid) - cpu) / (len(delays) - chunks) * 1e6


async def _readers(scene: FleetScene, first: Target, second: Target) -> Units:
    delays, read = array("q"), array("q")
    connections = await connect(first.port, _READ, delays)
    answers = [each.ask(Plan(_ENDLESS, _INTERVAL_US)) for each in connections]
    for answer in answers:
        await answer.started.wait()
    connections += await _read_along(second, answers, read)
    cost = await _counted(second, read)
    await steer(scene.on.backend_port, "/end")
    await wait_all(answers, _LIMIT_SECONDS)
    for connection in connections:
        connection.close()
    return {"reader, µs a chunk": cost}


async def _read_along(
    target: Target, answers: Sequence[Answer], delays: "array[int]"
) -> list[Connection]:
    connections = await connect(target.port, len(answers), delays)
    for connection, answer in zip(connections, answers, strict=True):
        connection.send(read_request(answer.completion_id))
    return connections


def _connections(scene: FleetScene, replicas: int) -> Units:
    ((count,),) = scene.on.server.query(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' "
        "AND pid <> pg_backend_pid()"
    )
    clients = str(scene.told("INFO", "clients").get("connected_clients"))
    return {
        "connections to PostgreSQL": int(count) / replicas,
        "connections to Redis": (int(clients) - 1) / replicas,
    }


async def _round(
    scene: FleetScene, first: Target, second: Target, *, reads: bool, is_fresh: bool
) -> Units:
    units = {
        **await _requests(scene, first),
        **await _chunks(scene, first),
    }
    if is_fresh:
        units |= await _held(scene, first)
    if reads:
        units |= await _readers(scene, first, second)
    return {**units, **_connections(scene, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--journal", default="follow", help="off, follow or before_send")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures")
    options = parser.parse_args()
    machine = describe()
    settle()
    rounds: list[Units] = []
    fresh: Units = {}
    with fleet_scene() as scene, ExitStack() as stack:
        replicas = [
            stack.enter_context(scene.replica(name, options.journal)) for name in ("a", "b")
        ]
        for number in range(options.rounds + 1):
            reads = options.journal != "off"
            units = asyncio.run(_round(scene, *replicas, reads=reads, is_fresh=not number))
            print(f"round {number}: {json.dumps(units)}", file=sys.stderr)
            fresh = fresh or {key: units.pop(key) for key in ("stream, KiB",)}
            if number:
                rounds.append(units)
            scene.told("FLUSHALL")
    machine["load"] += f", {os.getloadavg()[0]:.1f} after it"
    if options.json:
        written = {"machine": machine, "journal": options.journal, "rounds": rounds}
        options.json.write_text(json.dumps(written, indent=2) + "\n", "utf-8")
    rows = {key: {"median": median(each[key] for each in rounds)} for key in rounds[0]}
    rows |= {key: {"median": value} for key, value in fresh.items()}  # memory is used again later
    print_table(f"unit costs, journal {options.journal}; load {machine['load']}", rows)


if __name__ == "__main__":
    main()
