"""Does what other replicas ask for, and answers: `Listener`.

Whatever goes wrong, it goes on listening (`db.fleet.tending`).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable

import structlog

from db.fleet import Command, Engine, FleetUnavailable
from db.fleet.tending import tend
from service.fleet.whereabouts import KNOWN, WHETHER

log = structlog.get_logger(__name__)

_WAIT_SECONDS = 2.0

CANCEL = "cancel"
CANCELLED, ENDED, UNKNOWN = "cancelled", "ended", "unknown"

Cancel = Callable[[str, str], Awaitable[bool | None]]
"""Stops an owner's completion: True if that ended it, False if it was over; None: it doesn't run here."""


def cancel_command(owner: str, completion_id: str) -> str:
    """What is asked of the replica that runs it."""
    return json.dumps([CANCEL, owner, completion_id])


class Listener:
    """The one who listens.

    Args:
        engine: the fleet's.
        cancel: see `Cancel`.

    Attributes:
        knows: whether an owner's completion is here, or about to begin; nothing is, until this is set.
    """

    def __init__(self, engine: Engine, cancel: Cancel) -> None:
        self._engine = engine
        self.knows: Callable[[str, str], bool] = lambda owner, completion_id: False
        self._cancel = cancel
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._begin(tend(self._step, lambda _: None))

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, work: "Awaitable[None]") -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _step(self) -> None:
        command = await self._engine.asked(_WAIT_SECONDS)
        if command is not None:
            self._begin(self._do(command))

    async def _do(self, command: Command) -> None:
        try:
            answer = await self._done(command.what)
        except Exception:
            log.exception("command failed", asker=command.asker)
            return  # silence is no yes
        try:
            await self._engine.answer(command, answer)
        except FleetUnavailable as error:
            log.warning("command not answered", asker=command.asker, reason=str(error))

    async def _done(self, what: str) -> str:
        match json.loads(what):
            case [kind, str(owner), str(completion_id)] if kind == CANCEL:
                stopped = await self._cancel(owner, completion_id)
                return UNKNOWN if stopped is None else CANCELLED if stopped else ENDED
            case [kind, str(owner), str(completion_id)] if kind == WHETHER:
                return KNOWN if self.knows(owner, completion_id) else UNKNOWN
        return UNKNOWN  # of another version
