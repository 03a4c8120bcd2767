"""What is counted: a chunk, a chunk that has to be parsed, a request, one with spans, and a save.

Each figure is counted in a process of its own, so that it doesn't depend on which others are asked
for, in windows after the process has got warm; the load is the same each time (`lockstep`, `saving`). The
tree that is counted need not be this one.
"""

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from benchmarks.instructions.collecting import collector
from benchmarks.instructions.counting import Counter, NotCounted, valgrind
from benchmarks.instructions.lockstep import Kind, backend_and_client
from benchmarks.instructions.saving import RECORDS
from benchmarks.stand.running import agent, announced, process

WINDOWS = 7
_WARM_CHUNKS, _CHUNKS = 256, 128  # whole rounds of the decoder's attempts to learn a pattern
_WARM_REQUESTS, _REQUESTS = 15, 10
_COMMITS = 5
_TRACED_WINDOWS, _TRACED = 3, 170
_SPANS = 3 * _TRACED - 10
"""About as many as leave together where there are many requests (OTEL_BSP_MAX_EXPORT_BATCH_SIZE is
512 by default), so that each window has one export, and has it before its end."""


@frozen
class Place:
    """Where one figure is counted.

    Attributes:
        directory: its own, empty.
        tree: the project's files.
        dsn: a PostgreSQL's URL.
    """

    directory: Path
    tree: Path
    dsn: str

    @contextmanager
    def counted(
        self,
        program: Sequence[str],
        find_port: Callable[[str], int | None],
        more: Mapping[str, str] | None = None,
    ) -> Iterator[tuple[int, Counter]]:
        """A Python program of the tree under valgrind: its port, and its count, which begins."""
        self.directory.mkdir()
        command = [*valgrind(self.directory), sys.executable, *program]
        # Hashes decide in which order sets are gone through, and who collides in a dictionary.
        variables = {
            "LOG_FORMAT": "json",
            "PYTHONPATH": str(self.tree),
            "PYTHONHASHSEED": "0",
            **(more or {}),
        }
        # Killed at the end: nothing of it is wanted any more, and to drain would take it a minute.
        running = process(command, self.directory, find_port, variables, False, stop_seconds=0.0)
        with running as (port, pid):
            counter = Counter(pid, self.directory)
            counter.begin()
            yield port, counter

    @contextmanager
    def service(
        self, backend_port: int, more: Mapping[str, str] | None = None
    ) -> Iterator[tuple[int, Counter]]:
        """Our service in front of that backend, with further variables. Its journal is in the
        directory."""
        path = self.directory.with_suffix(".yaml")
        # No more than is needed, since other revisions may not know what this one does.
        config = {"database": {"url": self.dsn}, "agents": [agent(backend_port)]}
        path.write_text(json.dumps(config))
        program = [str(self.tree / "run.py"), "--config", str(path), "--port", "0"]
        with self.counted(program, announced, more) as running:
            yield running


async def _windows(
    counter: Counter,
    units: int,
    load: Callable[[], Awaitable[None]],
    prepare: Callable[[], Awaitable[None]] | None = None,
    windows: int = WINDOWS,
) -> list[float]:
    """Instructions per unit, in each window; what prepares one isn't counted."""
    found = []
    for _ in range(windows):
        if prepare is not None:
            await prepare()
        counter.read()
        await load()
        found.append(counter.read() / units)
    return found


async def _chunks(place: Place, kind: Kind) -> list[float]:
    """Per chunk, in the middle of one stream."""
    async with backend_and_client() as (backend_port, turns):
        with place.service(backend_port) as (port, counter):
            await turns.connect(port)
            await turns.ask(2)
            await turns.begin()
            await turns.say(_WARM_CHUNKS, kind)
            found = await _windows(counter, _CHUNKS, lambda: turns.say(_CHUNKS, kind))
            await turns.end()
            return found


async def _alike(place: Place) -> list[float]:
    return await _chunks(place, "alike")


async def _parsed(place: Place) -> list[float]:
    return await _chunks(place, "parsed")


async def _requests(place: Place) -> list[float]:
    """Per request, each in a transaction of its own."""
    async with backend_and_client() as (backend_port, turns):
        with place.service(backend_port) as (port, counter):
            await turns.connect(port)
            await turns.ask(_WARM_REQUESTS)
            return await _windows(counter, _REQUESTS, lambda: turns.ask(_REQUESTS))


async def _traced(place: Place) -> list[float]:
    """Per request with spans, their export included."""
    async with backend_and_client() as (backend_port, turns), collector() as sink:
        more = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink.port}",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(_SPANS),
            "OTEL_BSP_SCHEDULE_DELAY": "3600000",
        }
        with place.service(backend_port, more) as (port, counter):
            await turns.connect(port)
            await turns.ask(_TRACED)
            found = await _windows(
                counter, _TRACED, lambda: turns.ask(_TRACED), windows=_TRACED_WINDOWS
            )
        if sink.posts not in (0, 1 + _TRACED_WINDOWS):  # 0: a revision without spans
            raise NotCounted(f"{sink.posts} exports came, not one in each window")
        return found


async def _saves(place: Place) -> list[float]:
    """Per record, several to a transaction."""
    program = ["-P", str(Path(__file__).with_name("saving.py")), str(place.tree), place.dsn]

    with place.counted(program, _port_in) as (port, counter):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def do(what: bytes) -> None:
            writer.write(b"%b %d\n" % (what, _COMMITS))
            if not await asyncio.wait_for(reader.readline(), 60.0):
                raise NotCounted("the saver broke off")

        for what in (b"make", b"save") * 2:
            await do(what)
        found = await _windows(
            counter, _COMMITS * RECORDS, lambda: do(b"save"), lambda: do(b"make")
        )
        writer.close()
        return found


def _port_in(log: str) -> int | None:
    found = re.search(r"^port (\d+)$", log, re.MULTILINE)
    return int(found[1]) if found else None


FIGURES: dict[str, Callable[[Place], Coroutine[None, None, list[float]]]] = {
    "chunk": _alike,
    "chunk-parsed": _parsed,
    "request": _requests,
    "request-traced": _traced,
    "save": _saves,
}
"""Name → each window's figure."""
