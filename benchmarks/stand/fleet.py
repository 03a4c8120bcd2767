"""Starts what a measurement of several replicas stands on: a scene, a Redis, and replicas.

A Redis is one that is installed, or that of a wheel (`tests/redis_servers.py`); it keeps nothing on disk,
and shares its core with everybody but the replicas.
"""

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis
from attrs import frozen

from benchmarks.contenders import Target
from benchmarks.stand.machine import cpu_seconds
from benchmarks.stand.running import ROOT, Scene, scene, service
from tests.redis_servers import RedisServer, redis_server

_MOST_STREAMS = 20_000


@frozen
class FleetScene:
    """A scene with a Redis.

    Attributes:
        on: PostgreSQL, backend, directory.
        engine: the Redis.
        tree: whose service is run.
    """

    on: Scene
    engine: RedisServer
    tree: Path = ROOT

    def config(self, name: str, journal: str | None, lease_seconds: float = 15.0) -> dict[str, Any]:
        """Of a replica of that name; without a journal: of a service that is in no fleet."""
        config: dict[str, Any] = {
            **self.on.config,
            "server": {"max_concurrent_streams": _MOST_STREAMS},
        }
        if journal is not None:
            config["fleet"] = {
                "url": self.engine.url,
                "replica": name,
                "journal": journal,
                "lease_seconds": lease_seconds,
            }
        return config

    @contextmanager
    def replica(
        self,
        name: str,
        journal: str | None,
        lease_seconds: float = 15.0,
        more: Mapping[str, Any] | None = None,
        is_pinned: bool = True,
    ) -> Iterator[Target]:
        """One that serves, until the end."""
        config = {**self.config(name, journal, lease_seconds), **(more or {})}
        program, environ = [str(self.tree / "run.py")], {"PYTHONPATH": str(self.tree)}
        place = self.on.directory / name
        with service(place, config, program, environ, is_pinned) as (port, pid):
            yield Target(name, port, pid)

    def engine_cpu(self) -> float:
        """Seconds that the Redis has used."""
        assert self.engine.process is not None
        return cpu_seconds(self.engine.process.pid)

    def told(self, *command: str | int) -> Any:
        """What the Redis answers."""
        with redis.Redis(port=self.engine.port) as client:
            return client.execute_command(*command)

    def keys(self, pattern: str) -> list[str]:
        with redis.Redis(port=self.engine.port) as client:
            return [key.decode() for key in client.scan_iter(pattern, count=1000)]


@contextmanager
def fleet_scene(tree: Path = ROOT) -> Iterator[FleetScene]:
    """A PostgreSQL, a backend and a Redis, until the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # what runs is stopped too
    with ExitStack() as stack:
        on = stack.enter_context(scene())
        yield FleetScene(on, stack.enter_context(redis_server(on.directory / "redis")), tree)


def journals(names: str) -> dict[str, str | None]:
    """Those of a list with commas: the name of a replica → `fleet.journal`."""
    return {name: None if name == "none" else name for name in names.split(",")}
