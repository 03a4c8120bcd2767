"""Repeats a step for ever, whatever becomes of the engine: `tend`. Never here: what the step is."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from db.fleet.contract import FleetUnavailable
from statemachine.backoff import backoff

log = structlog.get_logger(__name__)

_FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.1, 2.0


async def tend(
    step: Callable[[], Awaitable[None]], note_away: Callable[[FleetUnavailable], None]
) -> NoReturn:
    """Take this step again and again, until cancelled. While the engine is away there are ever longer
    waits between two; a mistake of ours is logged, and ends nothing.

    Args:
        note_away: told of each time that the engine didn't answer.
    """
    waits = backoff(_FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, random.random)
    while True:
        try:
            await step()
        except FleetUnavailable as error:
            note_away(error)
            await asyncio.sleep(next(waits))
        except Exception:
            log.exception("fleet step failed", step=step.__qualname__)
            await asyncio.sleep(LONGEST_WAIT_SECONDS)
        else:
            waits = backoff(_FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, random.random)
