"""Repeats a step for ever, whatever becomes of the engine: `tend`; and says how long it was silent: `Pulse`.
Never here: what the step is.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from db.fleet.contract import FleetUnavailable
from statemachine.backoff import backoff

log = structlog.get_logger(__name__)

_FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.1, 2.0


class Pulse:
    """When the engine was last heard of."""

    def __init__(self) -> None:
        self._expected_since: float | None = None

    @property
    def silent_seconds(self) -> float:
        """For how long an answer has been due; 0 while nothing is asked."""
        since = self._expected_since
        return 0.0 if since is None else time.monotonic() - since

    def beat(self) -> None:
        """It has answered, and is asked again."""
        self._expected_since = time.monotonic()

    def rest(self) -> None:
        """There is nothing to ask it."""
        self._expected_since = None


async def tend(
    step: Callable[[], Awaitable[None]],
    note_away: Callable[[FleetUnavailable], None],
    pulse: Pulse | None = None,
) -> NoReturn:
    """Take this step again and again, until cancelled. While the engine is away there are ever longer
    waits between two; a mistake of ours, or of a library, is logged and ends nothing.

    Args:
        note_away: told of each time that the engine didn't answer.
        pulse: beats with each step that ends well.
    """
    task = asyncio.current_task()
    assert task is not None
    if pulse is not None:
        pulse.beat()
    waits = backoff(_FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, random.random)
    while True:
        try:
            await step()
        except FleetUnavailable as error:
            note_away(error)
            await asyncio.sleep(next(waits))
        except (Exception, asyncio.CancelledError):
            if task.cancelling():
                raise
            # A cancelling that nobody asked for is a library's own, and would end the listening for good.
            log.exception("fleet step failed", step=step.__qualname__)
            await asyncio.sleep(LONGEST_WAIT_SECONDS)
        else:
            if pulse is not None:
                pulse.beat()
            waits = backoff(_FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, random.random)
