"""What several measurements need: the service as a process, streams on bare sockets, percentiles."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import psycopg2

from db.embedded import EmbeddedPostgres

ROOT = Path(__file__).parents[1]
_START_SECONDS = 60.0


@contextmanager
def service(
    directory: Path, config: Mapping[str, Any], **environ: str
) -> Iterator[tuple[int, int]]:
    """The port and process id of a service with this configuration; stopped cleanly at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    path, log = directory / "config.yaml", directory / "log"
    path.write_text(json.dumps(config))  # JSON is YAML
    inherited = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), "--config", str(path), "--port", "0"],
            cwd=directory,
            stdout=output,
            stderr=output,
            env={**inherited, "LOG_FORMAT": "json", **environ},
            start_new_session=True,  # Ctrl-C is for the measurement, which then stops it
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not (found := re.search(r'"url": "http://127.0.0.1:(\d+)"', log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(log.read_text())
            time.sleep(0.05)
        yield int(found[1]), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cpu_seconds(*pids: int) -> float:
    """User and system time of processes, all their threads included (proc(5))."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Server:
    """A PostgreSQL of the measurement's own, which can be stopped and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.start()
        self.dsn = self._server.dsn

    def start(self) -> None:
        settings = {"track_commit_timestamp": "on"}
        self._server = EmbeddedPostgres.start(self._directory, settings=settings)

    def stop(self) -> None:
        self._server.stop()

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()


def agent(upstream_port: int) -> dict[str, Any]:
    """The configuration of an agent called `bench` that asks a backend on this machine."""
    base_url = f"http://127.0.0.1:{upstream_port}/v1"
    return {"name": "bench", "kind": "openai", "base_url": base_url, "api_key_env": None}


class Stream:
    """One stream, read to its end by `run`.

    Attributes (seconds of the system's monotonic clock, None if it never came to it):
        asked_at, first_at, done_at: when it was asked for, said its first word, said `[DONE]`.
        body: its bytes.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.asked_at = 0.0
        self.first_at: float | None = None
        self.done_at: float | None = None
        self.body = bytearray()
        self.started = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def start(self, port: int) -> "Stream":
        """Run by itself."""
        self.task = asyncio.create_task(self.run(port))
        return self

    async def run(self, port: int) -> None:
        """Never raises; `done_at` stays None if anything broke."""
        try:
            await self._run(port)
        except OSError:
            pass
        finally:
            self.started.set()

    async def _run(self, port: int) -> None:
        self.asked_at = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(_request(self.key))
            while data := await reader.read(65536):
                self.body += data
                if self.first_at is None and b'"content":"' in self.body:
                    self.first_at = time.monotonic()
                    self.started.set()
                if b"data: [DONE]" in self.body[-64:]:
                    self.done_at = time.monotonic()
        finally:
            writer.transport.abort()

    @property
    def ttft_ms(self) -> float | None:
        """Milliseconds from asking, connecting included, to the first word."""
        return None if self.first_at is None else (self.first_at - self.asked_at) * 1000

    @property
    def whole_ms(self) -> float | None:
        """Milliseconds from asking to `[DONE]`."""
        return None if self.done_at is None else (self.done_at - self.asked_at) * 1000


def _request(key: str) -> bytes:
    messages = [{"role": "user", "content": "Say some words."}]
    body = json.dumps({"model": "bench", "stream": True, "messages": messages}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nX-Conversation-Id: {key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def percentiles(values: Sequence[float | None]) -> dict[str, float | int]:
    """How many there are, p50, p99 and the largest; None are counted as missing."""
    known = [value for value in values if value is not None]
    cuts = quantiles(known, n=100, method="inclusive") if len(known) > 1 else [0.0] * 99
    return {
        "streams": len(values),
        "missing": len(values) - len(known),
        "p50": round(cuts[49], 1),
        "p99": round(cuts[98], 1),
        "max": round(max(known, default=0.0), 1),
    }


def print_table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Rows of equal keys under a title."""
    print(title)
    columns = list(next(iter(rows.values())))
    left = max(map(len, rows))
    print(f"{'':{left}}" + "".join(f"{name:>{max(10, len(name) + 2)}}" for name in columns))
    for name, row in rows.items():
        cells = (f"{row[key]:>{max(10, len(key) + 2)}}" for key in columns)
        print(f"{name:{left}}" + "".join(cells))
