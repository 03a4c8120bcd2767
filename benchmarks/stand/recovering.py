"""Recovers a journal in a process of its own, and prints what it took as JSON.

    python -P benchmarks/stand/recovering.py TREE DIRECTORY [DSN]

The modules are those of the tree, so that another revision is driven by the same program. Without a
database the records are thrown away; with one, the tree's saver and store have them committed.
Imports nothing of `benchmarks`.

A turn is what the loop's thread does between two looks of a task that wants to run every
millisecond: its CPU time, which neighbours of the machine don't lengthen, and the wall's, which
they do, and in which other threads of this process may have held it up.
"""

import asyncio
import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

_LOOK_SECONDS = 0.001


class Watch:
    """Looks at the loop every millisecond.

    Attributes:
        longest_cpu, longest_wall: the longest turn, in seconds.
    """

    def __init__(self) -> None:
        self.longest_cpu = self.longest_wall = 0.0

    async def run(self) -> None:
        cpu, wall = time.thread_time(), time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now_cpu, now_wall = time.thread_time(), time.monotonic()
            self.longest_cpu = max(self.longest_cpu, now_cpu - cpu)
            self.longest_wall = max(self.longest_wall, now_wall - wall - _LOOK_SECONDS)
            cpu, wall = now_cpu, now_wall


class Kept:
    """Counts what comes back, and passes it on or throws it away."""

    def __init__(self, saver: Any) -> None:
        self._saver = saver
        self.records = self.chunks = self.characters = 0

    def save(self, record: Any) -> "asyncio.Future[None]":
        self.records += 1
        self.chunks += record.chunk_count
        self.characters += sum(len(each.message["content"] or "") for each in record.choices)
        if self._saver is not None:
            done: asyncio.Future[None] = self._saver.save(record)
            return done
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


def _named(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


async def _started_saver(dsn: str) -> Any:
    await asyncio.to_thread(_named("db.migrate", "migrate"), dsn)
    store = await _named("db.postgres.store", "PostgresStore").open(dsn)
    saver = _named("db.saver", "Saver")(store, _named("db.journal", "NoJournal")())
    saver.start()
    return saver


async def _recover(directory: Path, dsn: str | None) -> dict[str, float]:
    kept = Kept(None if dsn is None else await _started_saver(dsn))
    recovery = _named("db.journal.recovery", "Recovery")(directory, None, kept.save)
    gc.collect()  # from here on as the service does
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    watch = Watch()
    watching = asyncio.create_task(watch.run())
    await asyncio.sleep(0.1)
    cpu, wall = time.process_time(), time.monotonic()
    await recovery.run()
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    watching.cancel()
    return {
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "turn_cpu_ms": watch.longest_cpu * 1e3,
        "turn_wall_ms": watch.longest_wall * 1e3,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "records": kept.records,
        "chunks": kept.chunks,
        "characters": kept.characters,
    }


def main() -> None:
    tree, directory, *dsn = sys.argv[1:]
    sys.path.insert(0, tree)
    _quiet()
    make_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    try:
        make_loop = import_module("uvloop").new_event_loop
    except ImportError:
        pass  # asyncio's own, as the service has it then
    with asyncio.Runner(loop_factory=make_loop) as runner:
        print(json.dumps(runner.run(_recover(Path(directory), dsn[0] if dsn else None))))


def _quiet() -> None:
    """Let the log lines go to standard error."""
    structlog = import_module("structlog")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


if __name__ == "__main__":
    main()
