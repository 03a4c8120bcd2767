"""Replicas: whole services, each a process with a journal of its own, one PostgreSQL and one Redis."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.redis_servers import RedisServer
from tests.service.process.conftest import script as script
from tests.service.process.conftest import settings, workers_of
from tests.service.stage.backend import Backend
from tests.service.stage.process import Process
from tests.service.stage.workers import Door, doors

MakeReplica = Callable[..., Process]
LEASE_SECONDS = 3


@pytest.fixture
def start_replica(
    tmp_path: Path, database_url: str, script: Backend, own_redis: RedisServer
) -> Iterator[MakeReplica]:
    """Starts a replica by name, or several as workers of one service, perhaps with more settings; those
    that still run are killed at the end."""
    running: list[Process] = []

    def start(
        name: str, *, workers: int = 1, settings_more: dict[str, Any] | None = None, **fleet: Any
    ) -> Process:
        directory = tmp_path / f"{name}-{len(running)}"
        directory.mkdir()
        told = {"url": own_redis.url, "replica": name, "lease_seconds": LEASE_SECONDS, **fleet}
        journal = {"directory": str(tmp_path / name)}
        more = settings_more or {}
        config = settings(database_url, script, workers, fleet=told, journal=journal, **more)
        running.append(process := Process(directory, config))
        return process

    yield start
    for process in running:
        process.end()


@pytest.fixture
async def open_door() -> AsyncIterator[Any]:
    """Makes connections to replicas, which are closed at the end."""
    async with AsyncExitStack() as stack:

        async def knock(process: Process, count: int = 1) -> list[Door]:
            pids = await workers_of(process, 1)
            (found,) = await stack.enter_async_context(doors(process, pids, count))
            return found

        yield knock
