"""What endpoints ask of other replicas: an answer that runs there, and to stop it. `Elsewhere`.

`Fleet` has the parts. Never here: what an answer looks like to a client.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from attrs import frozen

from db.fleet import VERSION, FleetUnavailable, Run
from service.edge.errors import ApiError
from service.fleet.listening import CANCELLED, UNKNOWN, cancel_command
from service.fleet.mirrors import Mirror
from service.fleet.parts import Fleet
from statemachine import Failure

log = structlog.get_logger(__name__)

_ANSWER_SECONDS = 10.0
"""How long another replica may take to stop a completion and hand over what came of it."""
_FIND_SECONDS = 2.0
"""How long a request waits for the engine, which answers in a millisecond if at all."""
_TRIES, _AGAIN_SECONDS = 4, 0.25
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
        run = await self.find_any(completion_id)
        return None if run is None or run.owner != owner else run

    async def find_any(self, completion_id: str) -> Run | None:
        """The same, whoever's it is; for operators."""
        engine = self.fleet.engine
        try:
            async with asyncio.timeout(_FIND_SECONDS):
                run = await self.fleet.search.find(completion_id)
                if run is None or run.token == engine.token:
                    return None
                if await engine.is_under_way(run):
                    return run
                await self.fleet.search.be_sure()
                return None  # what is stored is read there, where it may have been deleted since
        except (FleetUnavailable, TimeoutError):
            raise ApiError(FLEET_UNAVAILABLE) from None

    async def forget(self, completion_id: str) -> None:
        """It was deleted: its log goes too, now or ten minutes after its end. Never raises."""
        try:
            async with asyncio.timeout(_FIND_SECONDS):
                await self.fleet.engine.forget(completion_id)
        except (FleetUnavailable, TimeoutError) as error:
            log.warning("log not deleted", completion_id=completion_id, reason=str(error))

    async def is_lost(self, owner: str, completion_id: str, token: str) -> bool:
        """See `Whereabouts.is_lost`. Raises ApiError `fleet_unavailable` (503)."""
        try:
            return await self.fleet.whereabouts.is_lost(owner, completion_id, token)
        except FleetUnavailable:
            raise ApiError(FLEET_UNAVAILABLE) from None

    @asynccontextmanager
    async def reading(self, owner: str | None, completion_id: str) -> AsyncIterator[Mirror | None]:
        """An owner's completion to be read along; None if none runs elsewhere.

        Args:
            owner: None: anybody's, for operators.

        Raises:
            ApiError: `runs_elsewhere` (409) if its replica tells nobody, or is of another version;
                `fleet_unavailable` (503).
        """
        run = await self._run(owner, completion_id)
        if run is None:
            yield None
            return
        if run.version != VERSION:
            raise ApiError(_runs_elsewhere(run))
        try:
            mirror = await self._joined(run)
        except FleetUnavailable:
            raise ApiError(FLEET_UNAVAILABLE) from None
        if mirror is None:
            raise ApiError(FLEET_UNAVAILABLE if self.fleet.copies_lines else _runs_elsewhere(run))
        try:
            yield mirror
        finally:
            self.fleet.mirrors.leave(mirror)

    async def _joined(self, run: Run) -> Mirror | None:
        """Its mirror, once its log is there; one that is sent again is missing for a moment."""
        tries = _TRIES if self.fleet.copies_lines else 1
        for left in reversed(range(tries)):
            mirror = await self.fleet.mirrors.join(run)
            if mirror is not None or not left:
                return mirror
            await asyncio.sleep(_AGAIN_SECONDS)
        return None

    async def _run(self, owner: str | None, completion_id: str) -> Run | None:
        if owner is None:
            return await self.find_any(completion_id)
        return await self.find(owner, completion_id)

    async def cancel(self, owner: str | None, completion_id: str) -> bool | None:
        """Stop a completion at another replica. True if that stopped it, False if it had ended; None if
        nobody runs it. Raises ApiError `fleet_unavailable` (503): nobody said, or it runs at a replica of
        another version, which is named.

        Args:
            owner: None: anybody's, for operators.
        """
        run = await self._run(owner, completion_id)
        if run is None:
            return None
        if run.version != VERSION:
            raise ApiError(_of_another_version(run))
        try:
            command = cancel_command(run.owner, completion_id)
            answer = await self.fleet.engine.ask(run.token, command, _ANSWER_SECONDS)
        except FleetUnavailable:
            answer = None
        if answer is None:
            raise ApiError(FLEET_UNAVAILABLE)
        return None if answer == UNKNOWN else answer == CANCELLED


def _of_another_version(run: Run) -> Failure:
    return Failure(
        FLEET_UNAVAILABLE.code,
        f"It runs at the replica {run.replica!r}, which is of another version and can't be told from "
        "here; please try there.",
        retry_after_seconds=5,
    )


RUNS_ELSEWHERE = "runs_elsewhere"


def _runs_elsewhere(run: Run) -> Failure:
    return Failure(
        RUNS_ELSEWHERE,
        f"It runs at the replica {run.replica!r} and can be read there; here it can be once it ends.",
        retry_after_seconds=5,
    )
