"""Running streams, readiness, and how the service stops.

`RunningStreams` is the one list of what is under way: admission, drain and (later) cancelling by
id look there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import structlog
from aiohttp import web

from service.errors import ApiError
from service.relay import Relay
from statemachine import DrainExpired, Failure

log = structlog.get_logger(__name__)

_DRAINING = Failure(
    "draining",
    "The service is restarting and takes no new requests; please try again.",
    retry_after_seconds=5,
)


class RunningStreams:
    """Every relay that runs, by completion id.

    Args:
        limit: how many may run at once; may be changed. Those that run may stay above a lower one.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._relays: dict[str, Relay] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._relays)

    def __iter__(self) -> Iterator[Relay]:
        return iter(self._relays.values())

    def check_room(self) -> None:
        """Raises ApiError `draining` (503) or `too_many_streams` (429)."""
        if self.is_draining:
            raise ApiError(_DRAINING)
        if len(self._relays) >= self.limit:
            message = f"All {self.limit} streams of this service are taken; please try again."
            raise ApiError(
                Failure("too_many_streams", message, type="rate_limit_error", retry_after_seconds=1)
            )

    def add(self, relay: Relay) -> None:
        """Keep a started relay until its task is done."""
        completion_id = relay.session.request.completion_id
        assert relay.task is not None
        self._relays[completion_id] = relay
        self._idle.clear()
        relay.task.add_done_callback(lambda task: self._forget(completion_id, task))

    def _forget(self, completion_id: str, task: "asyncio.Task[Any]") -> None:
        del self._relays[completion_id]
        if not self._relays:
            self._idle.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("relay died", completion_id=completion_id, exc_info=task.exception())

    def hurry(self) -> None:
        """End a drain's grace now (a second signal)."""
        self._hurry.set()

    def get(self, completion_id: str) -> Relay | None:
        """The running relay of this completion, if there is one."""
        return self._relays.get(completion_id)

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


async def healthz(_request: web.Request) -> web.Response:
    """The process lives."""
    return web.json_response({"status": "ok"})


class Readiness:
    """`GET /readyz`: whether the service can take traffic, and why not.

    Args:
        streams: the running streams.
        checks: name → returns None, or why that part can't do its work now.
        unsaved: how many ended completions wait for the database.
    """

    def __init__(
        self,
        streams: RunningStreams,
        checks: Mapping[str, Callable[[], Awaitable[str | None]]],
        unsaved: Callable[[], int],
    ) -> None:
        self._streams = streams
        self._checks = checks
        self._unsaved = unsaved

    async def readyz(self, _request: web.Request) -> web.Response:
        reasons: list[str] = []
        if self._streams.is_draining:
            reasons.append("draining: the service is stopping")
        for name, check in self._checks.items():
            if (why := await check()) is not None:
                reasons.append(f"{name}: {why}")
        return web.json_response(
            {
                "ready": not reasons,
                "reasons": reasons,
                "streams": len(self._streams),
                "unsaved": self._unsaved(),
            },
            status=503 if reasons else 200,
        )
