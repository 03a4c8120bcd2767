"""Knows which replicas are of another version: `Strangers`. Their completions are left alone."""

import asyncio
from collections.abc import Mapping

import structlog

from db.fleet.contract import VERSION, Engine
from db.fleet.tending import tend

log = structlog.get_logger(__name__)


class Strangers:
    """Those of another version who are alive.

    Args:
        engine: the fleet's.
        look_seconds: between two looks.

    Attributes:
        versions: replica → its version, as of the last look.
    """

    def __init__(self, engine: Engine, look_seconds: float) -> None:
        self.versions: Mapping[str, int] = {}
        self._engine = engine
        self._look_seconds = look_seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(tend(self._step, lambda _: None), name="fleet strangers")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Say each that is new in the log. Raises FleetUnavailable."""
        known = self.versions
        self.versions = {
            each.name: each.version
            for each in await self._engine.replicas()
            if each.is_alive and each.version != VERSION
        }
        for name, version in self.versions.items():
            if known.get(name) != version:
                log.warning("replica of another version", replica=name, version=version)

    async def _step(self) -> None:
        await self.look()
        await asyncio.sleep(self._look_seconds)
