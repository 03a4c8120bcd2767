"""Tells whether a completion that another replica has claimed is lost: `Whereabouts`.

Whoever repeats a request must not ask a model again as long as somebody may have, or bring back, an answer.
The replica that holds the claim is asked; one that is silent is given up only when it has been neither
heard nor seen for a lease.

Never here: what is stored, and what runs here.
"""

import asyncio
import json

from db.fleet import Engine

_ANSWER_SECONDS = 1.0

WHETHER = "whether"
KNOWN, UNKNOWN = "known", "unknown"


def whether_command(owner: str, completion_id: str) -> str:
    """What is asked of the replica that holds a claim."""
    return json.dumps([WHETHER, owner, completion_id])


class Whereabouts:
    """What other replicas know of completions.

    Args:
        engine: the fleet's.
        lease_seconds: how long a replica may be silent.
    """

    def __init__(self, engine: Engine, lease_seconds: float) -> None:
        self._engine = engine
        self._lease_seconds = lease_seconds
        self._silent_since: dict[str, float] = {}

    async def is_lost(self, owner: str, completion_id: str, token: str) -> bool:
        """True if nothing is known of a completion where it was claimed, or nobody is there any more, and
        nobody is to bring it back. False if it may come, or that can't be told yet.

        Args:
            token: of the replica that holds its claim.

        Raises FleetUnavailable.
        """
        run = await self._engine.find(completion_id)
        if run is not None and await self._engine.is_under_way(run):
            return False
        command = whether_command(owner, completion_id)
        answer = await self._engine.ask(token, command, _ANSWER_SECONDS)
        if answer is not None:
            self._silent_since.pop(token, None)
            return answer == UNKNOWN
        alive = {each.token for each in await self._engine.replicas() if each.is_alive}
        if token in alive:
            self._silent_since.pop(token, None)
            return False
        now = asyncio.get_running_loop().time()
        return now >= self._silent_since.setdefault(token, now) + self._lease_seconds
