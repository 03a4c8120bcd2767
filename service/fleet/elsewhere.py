"""What endpoints ask of other replicas: an answer that runs there, and to stop it. `Elsewhere`.

`Fleet` has the parts. Never here: what an answer looks like to a client.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from attrs import frozen

from db.fleet import FleetUnavailable, Run
from service.edge.errors import ApiError
from service.fleet.listening import CANCELLED, UNKNOWN, cancel_command
from service.fleet.mirrors import Mirror
from service.fleet.parts import Fleet
from statemachine import Failure

log = structlog.get_logger(__name__)

_ANSWER_SECONDS = 10.0
"""How long another replica may take to stop a completion and hand over what came of it."""
FLEET_UNAVAILABLE = Failure(
    "fleet_unavailable",
    "What runs on other machines can't be told now; please try again.",
    retry_after_seconds=2,
)


@frozen
class Elsewhere:
    """The other replicas.

    Attributes:
        fleet: this one's part in it.
    """

    fleet: Fleet

    async def find(self, owner: str, completion_id: str) -> Run | None:
        """The owner's completion, if it runs, or waits for its commit, at another replica. Raises ApiError
        `fleet_unavailable` (503)."""
        engine = self.fleet.engine
        try:
            run = await self.fleet.search.find(completion_id)
            if run is None or run.owner != owner or run.token == engine.token:
                return None
            # What is stored is read there, where it may have been deleted since.
            return run if await engine.is_under_way(run) else None
        except FleetUnavailable:
            raise ApiError(FLEET_UNAVAILABLE) from None

    async def forget(self, completion_id: str) -> None:
        """It was deleted: its log goes too, now or ten minutes after its end. Never raises."""
        try:
            await self.fleet.engine.forget(completion_id)
        except FleetUnavailable as error:
            log.warning("log not deleted", completion_id=completion_id, reason=str(error))

    @asynccontextmanager
    async def reading(self, owner: str, completion_id: str) -> AsyncIterator[Mirror | None]:
        """An owner's completion to be read along; None if none runs elsewhere.

        Raises:
            ApiError: `runs_elsewhere` (409) if its replica tells nobody; `fleet_unavailable` (503).
        """
        run = await self.find(owner, completion_id)
        if run is None:
            yield None
            return
        try:
            mirror = await self.fleet.mirrors.join(run)
        except FleetUnavailable:
            raise ApiError(FLEET_UNAVAILABLE) from None
        if mirror is None:
            raise ApiError(FLEET_UNAVAILABLE if self.fleet.copies_lines else _runs_elsewhere(run))
        try:
            yield mirror
        finally:
            self.fleet.mirrors.leave(mirror)

    async def cancel(self, owner: str, completion_id: str) -> bool | None:
        """Stop a completion at another replica. True if that stopped it, False if it had ended; None if
        nobody runs it. Raises ApiError `fleet_unavailable` (503): nobody said."""
        run = await self.find(owner, completion_id)
        if run is None:
            return None
        try:
            command = cancel_command(owner, completion_id)
            answer = await self.fleet.engine.ask(run.token, command, _ANSWER_SECONDS)
        except FleetUnavailable:
            answer = None
        if answer is None:
            raise ApiError(FLEET_UNAVAILABLE)
        return None if answer == UNKNOWN else answer == CANCELLED


def _runs_elsewhere(run: Run) -> Failure:
    return Failure(
        "runs_elsewhere",
        f"It runs at the replica {run.replica!r} and can be read there; here it can be once it ends.",
        retry_after_seconds=5,
    )
