"""Holds this replica's lease, and says whether it does: `Membership`.

A replica renews its lease six times in its length. One whose lease ran out, since the engine was out of
reach, may have been taken for dead, and what it ran may have been brought to an end by another; the engine
then takes no more lines of that (`Engine.fence`). One whose name another process has says so, and serves all
the same.
"""

import asyncio
import time
from contextlib import suppress

import structlog

from db.fleet.contract import Engine, FleetUnavailable

log = structlog.get_logger(__name__)

_START_SECONDS = 1.0
"""How long a start waits for the engine, and a stop."""
RENEWALS = 6
"""Of a lease, in its length."""


class Membership:
    """One process's place in the fleet.

    Args:
        engine: the fleet's.
        name: this replica's.
        lease_seconds: how long others take it for alive without hearing of it.

    Attributes:
        rival: True while another process has the name.
    """

    def __init__(self, engine: Engine, name: str, lease_seconds: float) -> None:
        self.name = name
        self.rival = False
        self._engine = engine
        self._lease_seconds = lease_seconds
        self._held_until = 0.0
        self._has_asked = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_held(self) -> bool:
        """True as long as everybody takes this replica for alive."""
        return time.monotonic() < self._held_until

    async def start(self) -> None:
        """Join, and stay. Waits a second at most for the engine. Never raises."""
        joined = asyncio.Event()
        self._task = asyncio.create_task(self._stay(joined), name="fleet lease")
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                await joined.wait()

    async def stop(self) -> None:
        """Leave, if the engine answers within a second. Never raises."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._held_until = 0.0
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._engine.leave(self.name)
        except (FleetUnavailable, TimeoutError) as error:
            log.warning("fleet not left", reason=str(error))

    async def _stay(self, joined: asyncio.Event) -> None:
        while True:
            try:
                await self._renew()
            except Exception:
                log.exception("fleet lease not renewed")
            joined.set()
            await asyncio.sleep(self._lease_seconds / RENEWALS)

    async def _renew(self) -> None:
        asked_at = time.monotonic()
        was_held, has_asked = self.is_held, self._has_asked
        self._has_asked = True
        try:
            holder = await self._engine.join(self.name, self._lease_seconds)
        except FleetUnavailable as error:
            if was_held and not self.is_held:
                log.error("fleet lease ran out", replica=self.name, reason=str(error))
            elif not has_asked:
                log.error("fleet away", reason=str(error))
            return
        self._held_until = asked_at + self._lease_seconds
        was_rival, self.rival = self.rival, holder != self._engine.token
        if self.rival and not was_rival:
            log.error("another process is this replica", replica=self.name, holder=holder)
