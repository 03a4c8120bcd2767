"""Measures what conversations take in PostgreSQL, here and elsewhere, and how one of them reads.

    python -m benchmarks.questions.storage                      # 1,000 conversations of 20 turns
    python -m benchmarks.questions.storage --conversations 50 --stores ours,openwebui

The same made-up conversations go into each store in a database of its own, turn by turn: through our
API (streamed, so with the tape that an answer is sent again from), through OGX's API (whole objects; it
stores the same of a stream), and into Open WebUI's tables by its own migrations and models, without
its server. The last two are installed when they are asked for.

`MiB` is what the tables, their indexes and TOAST take after the fill and a VACUUM, less what they took
before; `packed` the same after VACUUM FULL; `WAL` what was written to the log meanwhile. A read is a
whole conversation: over HTTP from us and from OGX, whose last completion has all of it; within the
process from Open WebUI, whose HTTP is left out.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import psycopg2
from attrs import frozen

from benchmarks.contenders import CONTENDERS, Missing, Place
from benchmarks.stand.figures import percentile, print_table
from benchmarks.stand.lines import answer, question
from benchmarks.stand.machine import describe, settle
from benchmarks.stand.running import (
    ROOT,
    DidNotStart,
    Scene,
    environment,
    interpreter,
    scene,
    upstream,
)

_AT_ONCE = 10
_WARM_READS = 5
_SAVE_SECONDS = 60.0
_ID = re.compile(rb'"id": ?"([^"]+)"')
_SIZES = """
    SELECT relname, pg_total_relation_size(relid) FROM pg_catalog.pg_statio_user_tables
"""

Row = dict[str, float | int | str | None]
Sizes = dict[str, int]


@frozen
class Question:
    """What is stored, and where."""

    stage: Scene
    reciter: int
    conversations: int
    turns: int
    reads: int
    tell: Callable[[str], None]

    def database(self, name: str) -> str:
        """The URL of a new database."""
        run(self.stage.server.dsn, f"CREATE DATABASE {name}")
        return self.stage.server.dsn.replace("/postgres?", f"/{name}?")

    def place(self, name: str, dsn: str) -> Place:
        return Place(self.stage.directory / name, self.reciter, dsn, 15.0, self.tell)


def run(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    """A statement outside of any transaction, and what it returns."""
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


class Scale:
    """Weighs a database from its creation on."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        run(dsn, "CHECKPOINT")
        self._before = self._sizes()
        self._written = self._log_position()

    def _sizes(self) -> Sizes:
        return {name: int(size) for name, size in run(self._dsn, _SIZES)}

    def _log_position(self) -> int:
        return int(run(self._dsn, "SELECT pg_current_wal_lsn() - '0/0'")[0][0])

    def row(self) -> Row:
        """What has come since, in MiB, and which tables have most of it."""
        written = self._log_position() - self._written
        run(self._dsn, "VACUUM ANALYZE")
        after = self._sizes()
        run(self._dsn, "VACUUM FULL")
        packed = self._sizes()
        grown = {name: size - self._before.get(name, 0) for name, size in packed.items()}
        largest = sorted(grown, key=lambda name: -grown[name])[:2]
        return {
            "MiB": self._grown(after),
            "packed MiB": self._grown(packed),
            "WAL MiB": written / 2**20,
            "most of it, MiB": ", ".join(f"{name} {grown[name] / 2**20:.1f}" for name in largest),
        }

    def _grown(self, sizes: Sizes) -> float:
        return (sum(sizes.values()) - sum(self._before.values())) / 2**20


# --- over HTTP ----------------------------------------------------------------------------------


async def _converse(http: aiohttp.ClientSession, number: int, turns: int, is_streamed: bool) -> str:
    """One conversation to its end, the history in each request; the last completion's id."""
    messages: list[dict[str, str]] = []
    data = b""
    for turn in range(turns):
        messages.append({"role": "user", "content": question(number, turn)})
        body = {"model": "bench", "messages": messages, "stream": is_streamed}
        headers = {"X-Conversation-Id": f"talk-{number}"}
        async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
            data = await response.read()
        text = answer(number, turn)
        is_whole = b"[DONE]" in data if is_streamed else text.encode() in data
        if response.status != 200 or not is_whole:
            raise SystemExit(f"conversation {number}: {response.status} {data[-500:].decode()}")
        messages.append({"role": "assistant", "content": text})
    found = _ID.search(data)
    assert found is not None
    return found[1].decode()


async def _fill(port: int, what: Question, is_streamed: bool) -> list[str]:
    """Every conversation's last completion."""
    last, numbers = [""] * what.conversations, iter(range(what.conversations))

    async def work() -> None:
        for number in numbers:
            last[number] = await _converse(http, number, what.turns, is_streamed)

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=timeout) as http:
        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    return last


async def _read(port: int, what: Question, paths: list[str]) -> list[float]:
    """Milliseconds of each read, one at a time; each must have the conversation's last answer."""
    chance, times = random.Random(1), []
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        for _ in range(what.reads + _WARM_READS):
            number = chance.randrange(what.conversations)
            began = time.perf_counter()
            async with http.get(paths[number]) as response:
                data = await response.read()
            times.append((time.perf_counter() - began) * 1e3)
            if answer(number, what.turns - 1).encode() not in data:
                raise SystemExit(f"{paths[number]}: {response.status} {data[:500].decode()}")
    return times[_WARM_READS:]


def _until(dsn: str, table: str, rows: int) -> None:
    """Wait for those who save after they have answered."""
    deadline = time.monotonic() + _SAVE_SECONDS
    while (found := run(dsn, f"SELECT count(*) FROM {table}")[0][0]) < rows:
        if time.monotonic() > deadline:
            raise SystemExit(f"{table} has {found} rows of {rows}")
        time.sleep(0.2)


def _served(name: str, table: str, what: Question, is_streamed: bool) -> tuple[Row, list[float]]:
    dsn = what.database(name)
    with CONTENDERS[name].running(what.place(name, dsn)) as target:
        scale = Scale(dsn)
        last = asyncio.run(_fill(target.port, what, is_streamed))
        _until(dsn, table, what.conversations * what.turns)
        paths = [f"/v1/chat/completions/{completion_id}" for completion_id in last]
        if name == "ours":
            asked = "SELECT completion_id, conversation_id FROM completions"
            talks = dict(run(dsn, asked))
            paths = [f"/v1/conversations/{talks[completion_id]}" for completion_id in last]
        times = asyncio.run(_read(target.port, what, paths))
    return scale.row(), times


def ours(what: Question) -> tuple[Row, list[float]]:
    return _served("ours", "completions", what, is_streamed=True)


def ogx(what: Question) -> tuple[Row, list[float]]:
    return _served("ogx", "inference_store", what, is_streamed=False)


# --- Open WebUI ---------------------------------------------------------------------------------


def openwebui(what: Question) -> tuple[Row, list[float]]:
    program = Path(__file__).parents[1] / "contenders" / "openwebui.py"
    made_with = interpreter("3.11", "3.12")
    if made_with is None:
        raise Missing("Open WebUI needs Python 3.11 or 3.12")
    try:
        pins = program.with_suffix(".txt")
        python = environment("openwebui", pins, what.tell, made_with, is_closed=True) / "python"
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing(f"Open WebUI can't be installed: {error}") from error
    dsn = what.database("openwebui")
    folder = what.stage.directory / "openwebui"
    (folder / "page" / "static").mkdir(parents=True)  # it looks for its page when it is imported
    environ = {
        "DATABASE_URL": dsn,
        "DATA_DIR": str(folder),
        "VECTOR_DB": "pgvector",  # none is asked; the default would have to be installed
        "FRONTEND_BUILD_DIR": str(folder / "page"),
        "STATIC_DIR": str(folder / "static"),
        "WEBUI_SECRET_KEY": "benchmarks",
        "GLOBAL_LOG_LEVEL": "ERROR",
        "PYTHONPATH": str(ROOT),
    }

    def call(*arguments: str) -> str:
        ended = subprocess.run(
            [str(python), str(program), *arguments], env=environ, capture_output=True, text=True
        )
        if ended.returncode:
            raise DidNotStart(ended.stderr[-3000:])
        return ended.stdout

    call("migrate")
    scale = Scale(dsn)
    counts = (what.conversations, what.turns, what.reads)
    said = call("fill", *(str(count) for count in counts)).splitlines()[-1]
    _until(dsn, "chat_message", what.conversations * what.turns * 2)
    return scale.row(), json.loads(said)["read_ms"]


STORES: dict[str, Callable[[Question], tuple[Row, list[float]]]] = {
    "ours": ours,
    "ogx": ogx,
    "openwebui": openwebui,
}


def measure(what: Question, names: list[str]) -> dict[str, Row]:
    """Store → figures; the first row is the text itself."""
    texts = [
        question(number, turn) + answer(number, turn)
        for number in range(what.conversations)
        for turn in range(what.turns)
    ]
    mib = len("".join(texts).encode()) / 2**20
    found: dict[str, Row] = {"the text": {"MiB": mib}}
    for name in names:
        began = time.monotonic()
        try:
            row, times = STORES[name](what)
        except (DidNotStart, Missing) as missing:
            what.tell(f"left out: {missing}")
            continue
        largest = row.pop("most of it, MiB")
        reads = {f"read p{which} ms": percentile(times, which) for which in (50, 99)}
        found[name] = {**row, **reads, "most of it, MiB": largest}
        what.tell(f"{name} took {time.monotonic() - began:.0f} s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conversations", type=int, default=1_000)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--reads", type=int, default=500)
    parser.add_argument("--stores", default=",".join(STORES), metavar="A,B")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    names = options.stores.split(",")
    if unknown := set(names) - {*STORES}:
        parser.error(f"unknown store {min(unknown)}; there are {', '.join(STORES)}")
    machine = describe()
    settle()
    began = time.monotonic()

    def tell(text: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {text}", file=sys.stderr, flush=True)

    with scene() as stage, upstream("benchmarks.stand.reciting") as reciter:
        counts = (options.conversations, options.turns, options.reads)
        found = measure(Question(stage, reciter, *counts, tell), names)
    if options.json:
        print(json.dumps({"machine": machine, **found}, indent=1))
        return
    print("\n".join(f"{name:10} {value}" for name, value in machine.items()))
    print_table(f"\n{options.conversations:,} conversations of {options.turns} turns", found)


if __name__ == "__main__":
    main()
