"""Remembers who is in the fleet, as it was seen last: `Roster`. One look at a time, whoever asks.

Never here: renewing a lease (`db.fleet.membership`), and what follows from somebody's death.
"""

import asyncio
import time
from collections.abc import Sequence

from db.fleet import Engine, FleetUnavailable, Replica

FRESH_SECONDS = 1.0
"""So long what was seen will do for everybody."""


class Roster:
    """Everybody who joined.

    Args:
        engine: the fleet's.

    Attributes:
        replicas: as they were at the last look that was answered; none before the first.
    """

    def __init__(self, engine: Engine) -> None:
        self.replicas: Sequence[Replica] = ()
        self._engine = engine
        self._seen_at = float("-inf")
        self._look: asyncio.Task[None] | None = None

    async def look(self, seconds: float) -> bool:
        """See who is there, unless that was seen a moment ago; wait for so long at most. False if the
        engine doesn't say: `replicas` is then what it was. Never raises; cancelling it leaves the look
        to whoever else waits for it."""
        if not self._is_fresh:
            if self._look is None:
                self._look = asyncio.create_task(self._ask(), name="fleet roster")
            await asyncio.wait((self._look,), timeout=seconds)
        return self._is_fresh

    async def stop(self) -> None:
        """End a look that is under way."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)

    @property
    def _is_fresh(self) -> bool:
        return time.monotonic() < self._seen_at + FRESH_SECONDS

    async def _ask(self) -> None:
        try:
            self.replicas = await self._engine.replicas()
            self._seen_at = time.monotonic()
        except FleetUnavailable:
            pass  # noted where the call failed
        finally:
            self._look = None
