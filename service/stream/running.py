"""Lists the relays that run, for admission, drain and cancelling by id."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import structlog

from service.edge.errors import ApiError
from service.stream.relay import Relay
from service.stream.unsaved import Unsaved
from statemachine import DeadlineExpired, DrainExpired, Failure, State, StopRequested

log = structlog.get_logger(__name__)

_DRAINING = Failure(
    "draining",
    "The service is restarting and takes no new requests; please try again.",
    retry_after_seconds=5,
)
ADOPTED_ELSEWHERE = Failure(
    "adopted_elsewhere",
    "The machine that ran it was cut off, and another has brought the answer to an end; what came of it can "
    "be read by its id.",
)


class RunningStreams:
    """Every relay that runs, by completion id.

    Args:
        limit: how many may run at once; may be changed. Those that run may stay above a lower one.

    Attributes:
        unsaved: those that have ended, and are late to be committed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.unsaved = Unsaved()
        self._relays: dict[str, Relay] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        self.is_draining = False

    @property
    def count(self) -> int:
        """How many run."""
        return len(self._relays)

    def __iter__(self) -> Iterator[Relay]:
        return iter(self._relays.values())

    def check_open(self) -> None:
        """Raises ApiError `draining` (503)."""
        if self.is_draining:
            raise ApiError(_DRAINING)

    def check_room(self) -> None:
        """Raises ApiError `draining` (503) or `too_many_streams` (429)."""
        self.check_open()
        if len(self._relays) >= self.limit:
            many = f"All {self.limit} streams of this service are"
            taken = "The one stream of this service is" if self.limit == 1 else many
            message = f"{taken} taken; please try again."
            raise ApiError(
                Failure("too_many_streams", message, type="rate_limit_error", retry_after_seconds=1)
            )

    def add(self, relay: Relay, task: "asyncio.Task[Any]") -> None:
        """Keep a relay until its task is done."""
        completion_id = relay.session.request.completion_id
        self._relays[completion_id] = relay
        self._idle.clear()
        task.add_done_callback(lambda task: self._forget(completion_id, task))

    def _forget(self, completion_id: str, task: "asyncio.Task[Any]") -> None:
        relay = self._relays.pop(completion_id)
        if relay.record is not None and relay.save is not None and not relay.save.done():
            self.unsaved.hold(relay.record, relay.save)
        if not self._relays:
            self._idle.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("relay died", completion_id=completion_id, exc_info=task.exception())

    def hurry(self) -> None:
        """End a drain's grace now (a second signal)."""
        self._hurry.set()

    def find(self, owner: str, completion_id: str) -> Relay | None:
        """The running relay of this completion; None if there is none, or it is another owner's."""
        relay = self._relays.get(completion_id)
        return relay if relay and relay.session.request.owner == owner else None

    def find_any(self, completion_id: str) -> Relay | None:
        """The running relay of this completion, whoever's it is; None if there is none."""
        return self._relays.get(completion_id)

    async def cancel(self, owner: str, completion_id: str) -> bool | None:
        """Stop an owner's completion, and return once its partial text is handed over: True if that ended
        it, False if it had ended by itself; None if it doesn't run here."""
        relay = self.find(owner, completion_id)
        return None if relay is None else await stopped(relay)

    def cut_off(self, completion_ids: Iterable[str]) -> None:
        """These are another replica's by now: end those that run, and show no more of them."""
        for completion_id in completion_ids:
            relay = self._relays.get(completion_id)
            if relay is not None and not relay.session.state.is_final:
                relay.cut_off(DeadlineExpired(ADOPTED_ELSEWHERE))

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new streams, let the running ones end, then end those that are left.

        Returns when none is left: each has told its client why and handed over its record.
        """
        self.is_draining = True
        if self._relays:
            log.info("draining", streams=len(self._relays), grace_seconds=grace_seconds)
        waits = {
            asyncio.ensure_future(self._idle.wait()),
            asyncio.ensure_future(self._hurry.wait()),
        }
        try:
            await asyncio.wait(waits, timeout=grace_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        relays = list(self._relays.values())
        for relay in relays:
            relay.post(DrainExpired())
        tasks = [relay.task for relay in relays if relay.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)


async def stopped(relay: Relay) -> bool:
    """Stop a running completion, and return once its partial text is handed over: True if that ended it,
    False if it had ended by itself."""
    assert relay.task is not None  # it runs
    relay.post(StopRequested())
    await asyncio.wait((relay.task,))
    return relay.session.state is State.CLIENT_GONE
