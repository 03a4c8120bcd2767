"""Looks for what runs at other replicas, and doesn't take silence for a no: `Search`.

1. Under `follow` others hear of a completion a moment after its client has: so who is not found is looked for
   again, for a quarter of a second.
2. An engine that was emptied, or takes nothing, knows nothing of what runs. It is told apart by this
   replica's own lease, which is there as long as the engine keeps what it is told.

Never here: who may see what is found.
"""

import asyncio
import time

from db.fleet import Engine, FleetUnavailable, Run
from db.fleet.membership import Membership
from db.fleet.outbox import Outbox
from service.fleet.mirrors import Mirror

_PAUSES_SECONDS = (0.02, 0.08, 0.15)
_REACH_LOOKS, _LOOK_SECONDS = 100, 0.01


class Search:
    """One replica's way to find what runs elsewhere.

    Args:
        engine: the fleet's.
        membership, outbox: this replica's; they know whether the engine takes what it is told.
        lease_seconds: within it every replica tells an engine that has lost it what it runs.
    """

    def __init__(
        self, engine: Engine, membership: Membership, outbox: Outbox, lease_seconds: float
    ) -> None:
        self._engine = engine
        self._membership = membership
        self._outbox = outbox
        self._lease_seconds = lease_seconds
        self._unsure_until = 0.0

    async def find(self, completion_id: str) -> Run | None:
        """Who runs it; None if nobody does. Raises FleetUnavailable, also where the engine doesn't know
        it and may have lost it."""
        if (run := await self._engine.find(completion_id)) is not None:
            return run
        await self._look_at_memory()
        for pause in _PAUSES_SECONDS:
            await asyncio.sleep(pause)
            if (run := await self._engine.find(completion_id)) is not None:
                return run
        if time.monotonic() < self._unsure_until:
            raise FleetUnavailable("the engine may have lost what runs")
        return None

    async def _look_at_memory(self) -> None:
        """Does the engine know what it was told by this replica?"""
        takes = self._membership.is_held and self._outbox.failure is None
        known = {each.token for each in await self._engine.replicas() if each.is_alive}
        if not takes or self._engine.token not in known:
            self._unsure_until = time.monotonic() + self._lease_seconds


async def reach(mirror: Mirror, position: int) -> None:
    """Return once what is followed has come this far, has ended, or takes longer than a moment: a client
    that comes from the replica that runs it is ahead of the log."""
    tape = mirror.session.transcript.tape
    for _ in range(_REACH_LOOKS):
        if tape.count >= position or mirror.audience.is_over:
            return
        await asyncio.sleep(_LOOK_SECONDS)
