"""Does what other replicas ask for, and answers: `Listener`.

Whatever goes wrong, it goes on listening (`db.fleet.tending`).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog

from db.fleet import Command, Engine, FleetUnavailable
from db.fleet.tending import Pulse, tend
from service.fleet.whereabouts import KNOWN, WHETHER

log = structlog.get_logger(__name__)

_WAIT_SECONDS = 2.0

CANCEL, TELL = "cancel", "tell"
CANCELLED, ENDED, UNKNOWN = "cancelled", "ended", "unknown"

Cancel = Callable[[str, str], Awaitable[bool | None]]
"""Stops an owner's completion: True if that ended it, False if it was over; None: it doesn't run here."""


Teller = Callable[[Sequence[Any]], str]
"""Tells what this replica knows, as JSON text, to a question with these arguments."""


def tell_command(what: str, arguments: Sequence[Any]) -> str:
    """What is asked of whoever is to tell something."""
    return json.dumps([TELL, what, *arguments])


def cancel_command(owner: str, completion_id: str) -> str:
    """What is asked of the replica that runs it."""
    return json.dumps([CANCEL, owner, completion_id])


class Listener:
    """The one who listens.

    Args:
        engine: the fleet's.
        cancel: see `Cancel`.
        tellers: by the name of what is told.

    Attributes:
        answered, unanswered: how much was asked and got an answer, or none.
        knows: whether an owner's completion is here, or about to begin; nothing is, until this is set.
        pulse: of the listening.
    """

    def __init__(
        self, engine: Engine, cancel: Cancel, tellers: Mapping[str, Teller] | None = None
    ) -> None:
        self.answered = self.unanswered = 0
        self._engine = engine
        self.knows: Callable[[str, str], bool] = lambda owner, completion_id: False
        self._cancel = cancel
        self._tellers = {} if tellers is None else tellers
        self.pulse = Pulse()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def silent_seconds(self) -> float:
        """Since it was last heard whether there is something to do."""
        return self.pulse.silent_seconds

    def start(self) -> None:
        self._begin(tend(self._step, lambda _: None, self.pulse))

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
            self.unanswered += 1
            return  # silence is no yes
        try:
            await self._engine.answer(command, answer)
            self.answered += 1
        except FleetUnavailable as error:
            self.unanswered += 1
            log.warning("command not answered", asker=command.asker, reason=str(error))

    async def _done(self, what: str) -> str:
        match json.loads(what):
            case [kind, str(owner), str(completion_id)] if kind == CANCEL:
                stopped = await self._cancel(owner, completion_id)
                return UNKNOWN if stopped is None else CANCELLED if stopped else ENDED
            case [kind, str(name), *arguments] if kind == TELL and name in self._tellers:
                return self._tellers[name](arguments)
            case [kind, str(owner), str(completion_id)] if kind == WHETHER:
                return KNOWN if self.knows(owner, completion_id) else UNKNOWN
        return UNKNOWN  # of another version
