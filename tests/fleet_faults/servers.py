"""The engine that a scenario's replicas share, and everything that can happen to one: `EngineServers`.

One server, three nodes of a cluster, or a master and its replica behind three sentinels. Every method
blocks; what is frozen or full is undone at the end.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import redis

from tests.redis_servers import RedisServer, redis_cluster, redis_sentinels, redis_server

Kind = Literal["redis", "sentinel", "cluster"]
_PATIENCE_SECONDS = 20.0
_LITTLE_BYTES = 100_000
"""What is left to a server that is nearly full."""


class EngineServers:
    """The servers.

    Args:
        kind: which they are.
        url: `fleet.url`.
        servers: those that can be harmed; the first is the master, where there is one.
        watcher: a sentinel's port.
    """

    def __init__(
        self, kind: Kind, url: str, servers: Sequence[RedisServer], watcher: int | None = None
    ) -> None:
        self.kind = kind
        self.url = url
        self.servers = servers
        self._watcher = watcher

    def kill(self, number: int = 0) -> None:
        self.servers[number].stop()

    def start(self, number: int = 0) -> None:
        """It comes back with nothing: these servers keep nothing on disk."""
        self.servers[number].start()

    def freeze(self, number: int = 0) -> None:
        """Connections are taken by the kernel and nothing is ever answered."""
        self._signal(number, signal.SIGSTOP)

    def thaw(self, number: int = 0) -> None:
        self._signal(number, signal.SIGCONT)

    def _signal(self, number: int, which: signal.Signals) -> None:
        process = self.servers[number].process
        if process is not None:
            os.kill(process.pid, which)

    def empty(self) -> None:
        for server in self.servers:
            server.empty()

    def fill(self, number: int = 0) -> None:
        """It has no memory left: what writes is refused."""
        with self._client(number) as client:
            used = int(client.info("memory")["used_memory"])
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", max(used - _LITTLE_BYTES, 1))

    def free(self, number: int = 0) -> None:
        with self._client(number) as client:
            client.config_set("maxmemory", 0)

    def fail_over(self) -> None:
        """As an operator does it: the replica becomes the master."""
        assert self._watcher is not None
        before = self.master_port
        with redis.Redis(port=self._watcher) as client:
            client.execute_command("SENTINEL FAILOVER", "verbatim")
        until = time.monotonic() + _PATIENCE_SECONDS
        while self.master_port == before:
            assert time.monotonic() < until, "no failover"
            time.sleep(0.02)

    @property
    def master_port(self) -> int:
        assert self._watcher is not None
        with redis.Redis(port=self._watcher) as client:
            told: Any = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "verbatim")
        return int(told[1])

    @property
    def master(self) -> int:
        """Which of the servers is the master now."""
        ports = [server.port for server in self.servers]
        return ports.index(self.master_port)

    def keys(self, pattern: str) -> dict[str, bytes | None]:
        """Those with this pattern, and the values of those that are plain texts."""
        found: dict[str, bytes | None] = {}
        for server in self.servers:
            with redis.Redis(port=server.port, socket_timeout=2) as client:
                for key in client.scan_iter(pattern, count=1000):
                    is_text = client.type(key) == b"string"
                    found[key.decode()] = client.get(key) if is_text else None
        return found

    def _client(self, number: int) -> Any:
        return redis.Redis(port=self.servers[number].port, socket_timeout=5)

    def undo(self) -> None:
        """Nothing stays frozen: what is frozen can't be ended."""
        for number in range(len(self.servers)):
            self.thaw(number)


@contextmanager
def engine_servers(kind: Kind, directory: Path) -> Iterator[EngineServers]:
    """Servers meanwhile."""
    if kind == "redis":
        with redis_server(directory) as server:
            yield from _undone(EngineServers(kind, server.url, [server]))
    elif kind == "cluster":
        with redis_cluster(directory) as nodes:
            url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
            yield from _undone(EngineServers(kind, url, nodes))
    else:
        with redis_sentinels(directory) as (url, master, replica):
            watcher = int(url.partition(",")[0].rpartition(":")[2])
            yield from _undone(EngineServers(kind, url, [master, replica], watcher))


def _undone(servers: EngineServers) -> Iterator[EngineServers]:
    try:
        yield servers
    finally:
        servers.undo()
