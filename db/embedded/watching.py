"""Starts the embedded PostgreSQL again when it dies under its users.

Never decides when it is started first or stopped; never makes a cluster anew.
"""

import asyncio
import random

import structlog

from db.embedded.cluster import EmbeddedUnavailable
from db.embedded.server import EmbeddedPostgres
from statemachine.backoff import backoff

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often it is looked at. A process that died is noticed no later than this."""
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 30.0
"""Between two attempts."""


async def keep_running(server: EmbeddedPostgres) -> None:
    """Look at the server for ever, and start it again where it has died.

    Cancelling ends that; an attempt that runs at that moment goes on in its thread, and
    `EmbeddedPostgres.stop` waits for it.
    """
    waits = backoff(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS, random.random)
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if server.is_running():
            continue
        log.error("embedded PostgreSQL died", data_dir=str(server.data_dir))
        try:
            if await asyncio.to_thread(server.revive):
                log.info("embedded PostgreSQL runs again", data_dir=str(server.data_dir))
        except EmbeddedUnavailable as error:
            log.error("embedded PostgreSQL not started", reason=str(error))
            await asyncio.sleep(next(waits))
        else:
            waits = backoff(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS, random.random)
