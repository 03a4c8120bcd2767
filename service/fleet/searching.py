"""Looks for what runs at other replicas, and doesn't take silence for a no: `Search`.

1. Under `follow` others hear of a completion a moment after its client has: so who is not found is looked for
   again, for a quarter of a second.
2. An engine that was emptied, or takes nothing, knows nothing of what runs. Whether it may have lost
   something is asked after the last look, so that no loss comes between the two (`Engine.lost_at`); for a
   while after one nobody is told that something isn't there.

Never here: who may see what is found.
"""

import asyncio
import time

from db.fleet import Engine, FleetUnavailable, Run
from db.fleet.membership import Membership
from db.fleet.outbox import LOOK_SECONDS, Outbox
from service.fleet.mirrors import Mirror

_PAUSES_SECONDS = (0.02, 0.08, 0.15)
_REACH_LOOKS, _LOOK_SECONDS = 100, 0.01


class Search:
    """One replica's way to find what runs elsewhere.

    Args:
        engine: the fleet's.
        membership, outbox: this replica's; they know whether the engine takes what it is told.
        lease_seconds: within it, and the time between two looks of an outbox, every replica tells an
            engine that has lost it what it runs.
    """

    def __init__(
        self, engine: Engine, membership: Membership, outbox: Outbox, lease_seconds: float
    ) -> None:
        self._engine = engine
        self._membership = membership
        self._outbox = outbox
        self._lease_seconds = lease_seconds
        self._refused_at = float("-inf")

    async def find(self, completion_id: str) -> Run | None:
        """Who runs it; None if nobody does. Raises FleetUnavailable, also where the engine doesn't know
        it and may have lost it."""
        if (run := await self._engine.find(completion_id)) is not None:
            return run
        for pause in _PAUSES_SECONDS:
            await asyncio.sleep(pause)
            if (run := await self._engine.find(completion_id)) is not None:
                return run
        await self.be_sure()
        return None

    async def be_sure(self) -> None:
        """Return if what the engine has just said not to know isn't there. Raises FleetUnavailable if it may
        have lost it."""
        if time.monotonic() < await self._forgot_at() + self._lease_seconds + LOOK_SECONDS:
            raise FleetUnavailable("the engine may have lost what runs")

    async def _forgot_at(self) -> float:
        """When it last didn't know, or wouldn't take, what it is told."""
        if not self._membership.is_held or self._outbox.failure is not None:
            self._refused_at = time.monotonic()
        return max(self._refused_at, await self._engine.lost_at())


async def reach(mirror: Mirror, position: int) -> None:
    """Return once what is followed has come this far, has ended, or takes longer than a moment: a client
    that comes from the replica that runs it is ahead of the log."""
    tape = mirror.session.transcript.tape
    for _ in range(_REACH_LOOKS):
        if tape.count >= position or mirror.audience.is_over:
            return
        await asyncio.sleep(_LOOK_SECONDS)
