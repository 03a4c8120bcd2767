"""Measures what more workers bring: chunks a second, and how evenly connections spread.

    python -m benchmarks.questions.workers                          # with 1 and with 2 workers
    python -m benchmarks.questions.workers --words 1 --streams 500  # a stream without its chunks
    python -m benchmarks.questions.workers --proxied                # beside an nginx with as many
    python -m benchmarks.questions.workers --balance                # both ways to share a port

Throughput: the built-in agent without any pace, streams that are read as fast as they come,
PostgreSQL and journal on; so a worker is busy all the time. The client and PostgreSQL take CPU of
the same machine (the title says how many cores it has): on two cores, two workers and the client
share them. CPU per chunk tells what a core to itself would do.

Proxied: both in front of the stand-in backend, which takes CPU too; streams as fast as they are taken, a
chunk to a write. What more workers bring each, ours and nginx, compare with each other.

Balance: two bare processes that accept connections and nothing else; all connect at once, or one
after the other. `apiece` is a listening socket for each process (SO_REUSEPORT), `shared` is one
socket that both listen on.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.comparison.loads import Load, spread
from benchmarks.contenders import Place, Target, nginx, our_config
from benchmarks.stand.figures import print_table
from benchmarks.stand.machine import cpu_seconds
from benchmarks.stand.plan import Plan
from benchmarks.stand.running import Server, service, upstream

_COOL_SECONDS = 0.3


class _Stream(asyncio.Protocol):
    """A request and its answer, counted and thrown away."""

    def __init__(self, request: bytes) -> None:
        self.chunks = 0
        self.is_done = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        seen = self._tail + data
        self._tail = seen[-8:] if len(seen) > 8 else seen
        self.chunks += seen.count(b"data: {") - self._tail.count(b"data: {")
        self.is_done = self.is_done or b"[DONE]" in seen

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def _request(key: str) -> bytes:
    messages = [{"role": "user", "content": "Say some words."}]
    body = json.dumps({"model": "demo", "stream": True, "messages": messages}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"X-Conversation-Id: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _ask(port: int, request: bytes) -> _Stream:
    stream = _Stream(request)
    await asyncio.get_running_loop().create_connection(lambda: stream, "127.0.0.1", port)
    return stream


async def _turn(port: int, pid: int, streams: int, name: str) -> dict[str, float]:
    before, started = cpu_seconds(pid), time.monotonic()
    running = [await _ask(port, _request(f"{name}-{number}")) for number in range(streams)]
    await asyncio.gather(*(stream.ended for stream in running))
    seconds = time.monotonic() - started
    await asyncio.sleep(_COOL_SECONDS)
    cpu = cpu_seconds(pid) - before
    if not all(stream.is_done for stream in running):
        raise SystemExit("a stream broke off")
    chunks = sum(stream.chunks for stream in running)
    return {
        "chunks_per_second": chunks / seconds,
        "streams_per_second": streams / seconds,
        "cpu_us_per_chunk": cpu / chunks * 1e6,
        "cpu_ms_per_stream": cpu / streams * 1e3,
        "cores_used": cpu / seconds,
    }


def throughput(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The medians of each number of workers, services side by side and measured in turns."""
    turns: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        server = Server(directory / "postgres")
        stack.callback(server.stop)
        reply = "word " * options.words
        talker = {"name": "demo", "kind": "scripted", "reply": reply, "tokens_per_second": 1e9}
        services = {}
        for workers in options.workers:
            config: dict[str, Any] = {
                "server": {"workers": workers, "max_concurrent_streams": 100_000},
                "database": {"url": server.dsn},
                "agents": [talker],
            }
            place = directory / str(workers)
            services[str(workers)] = stack.enter_context(service(place, config, is_pinned=False))
        for number in range(options.rounds + 1):
            for name, (port, pid) in services.items():
                turn = asyncio.run(_turn(port, pid, options.streams, f"{name}-{number}"))
                if number:
                    turns.setdefault(name, []).append(turn)
    return {
        name: {key: round(median(turn[key] for turn in rounds), 2) for key in rounds[0]}
        for name, rounds in turns.items()
    }


# --- beside nginx ------------------------------------------------------------------------------


async def _burst(target: Target, streams: int, chunks: int) -> Load:
    load = await spread(target, Plan(chunks, 0, "small"), streams, 0.0, 30.0)
    if load.complete < streams:
        raise SystemExit(f"{streams - load.complete} streams of {target.name} broke off")
    return load


def proxied(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Chunks a second of ours and of nginx, by workers, and each one's ratio to its first number."""
    turns: dict[str, list[float]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        server, backend = Server(directory / "postgres"), stack.enter_context(upstream())
        stack.callback(server.stop)
        targets = []
        for workers in options.workers:
            places = [
                Place(directory / f"{name}-{workers}", backend, server.dsn, 15.0, print)
                for name in ("ours", "nginx")
            ]
            config = our_config(places[0])
            config["server"]["workers"] = workers
            started = (
                stack.enter_context(service(places[0].directory, config, is_pinned=False)),
                stack.enter_context(nginx(places[1], workers, is_pinned=False)),
            )
            targets += [
                Target(place.directory.name, port, pid)
                for place, (port, pid) in zip(places, started, strict=True)
            ]
        for number in range(options.rounds + 1):
            for target in targets:
                load = asyncio.run(_burst(target, options.streams, options.words))
                if number:
                    turns.setdefault(target.name, []).append(load.chunks / load.seconds)
    rows = {}
    for name, rates in turns.items():
        first = turns[f"{name.partition('-')[0]}-{options.workers[0]}"]
        ratios = [rate / base for rate, base in zip(rates, first, strict=True)]
        rows[name] = {"chunks_per_second": median(rates), "times the first": median(ratios)}
    return rows


# --- balance ----------------------------------------------------------------------------------


def _accepting(listener: socket.socket) -> int:
    """A process that accepts, and says how many when it is told to end."""

    accepted: list[asyncio.Protocol] = []

    def accept() -> asyncio.Protocol:
        accepted.append(asyncio.Protocol())
        return accepted[-1]

    async def run() -> int:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, done.set)
        await loop.create_server(accept, sock=listener)
        await done.wait()
        return len(accepted)

    if pid := os.fork():
        return pid
    os._exit(min(asyncio.run(run()), 255))


def _sockets(way: str, count: int) -> list[socket.socket]:
    if way == "shared":
        return [socket.create_server(("127.0.0.1", 0), backlog=1024)] * count
    first = socket.create_server(("127.0.0.1", 0), backlog=1024, reuse_port=True)
    port = first.getsockname()[1]
    others = (
        socket.create_server(("127.0.0.1", port), backlog=1024, reuse_port=True)
        for _ in range(count - 1)
    )
    return [first, *others]


def _accepted(way: str, connections: int, pause: float) -> list[int]:
    """How many connections each of two processes got."""
    listeners = _sockets(way, 2)
    pids = [_accepting(listener) for listener in listeners]
    time.sleep(0.5)
    port = listeners[0].getsockname()[1]
    clients = []
    for _ in range(connections):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", port))
        clients.append(client)
        if pause:
            time.sleep(pause)
    time.sleep(0.5)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    counts = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    for each in (*clients, *listeners):
        each.close()
    return sorted(counts)


def balance(connections: int, rounds: int) -> dict[str, dict[str, int]]:
    """The smaller half of each round: half of the connections would be even."""
    pauses = {"at once": 0.0, "10 ms apart": 0.01}
    return {
        f"{way}, {name}": {
            f"round {number + 1}": _accepted(way, connections, pause)[0] for number in range(rounds)
        }
        for way in ("apiece", "shared")
        for name, pause in pauses.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=50, help="streams at once")
    parser.add_argument("--words", type=int, default=1000, help="chunks per answer")
    parser.add_argument("--proxied", action="store_true", help="beside nginx, one backend for both")
    parser.add_argument("--balance", action="store_true", help="how connections spread")
    parser.add_argument("--connections", type=int, default=100, help="of --balance")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows: dict[str, Any]
    if options.balance:
        rows = balance(options.connections, options.rounds)
        title = f"{options.connections} connections to two processes: those of the one with fewer"
    elif options.proxied:
        rows = proxied(options)
        title = f"by workers, before one backend; {options.streams} streams, {os.cpu_count()} cores"
    else:
        rows = throughput(options)
        title = f"by workers; {options.streams} streams of {options.words} chunks, {os.cpu_count()} cores"
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print_table(title, rows)


if __name__ == "__main__":
    main()
