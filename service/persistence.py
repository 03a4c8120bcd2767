"""Wires together the parts that keep answers: the database, the journal, the saver, the recovery.

They start in this order and stop in the opposite one: records are flushed, then the database
closes. No endpoints here, and nothing about streams.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import structlog
from aiohttp import web
from attrs import frozen

from db.dead_letters import DeadLetters
from db.embedded import EmbeddedPostgres, EmbeddedUnavailable
from db.journal import Fsync, Journal, JournalUnavailable, NoJournal
from db.journal.recovery import Recovery
from db.migrate import migrate
from db.postgres.store import PostgresStore
from db.saver import Saver
from db.store import Store, StoreError, StoreUnavailable
from service.settings.config import Config, DatabaseConfig
from statemachine.backoff import backoff

log = structlog.get_logger(__name__)

CANNOT_KEEP = (EmbeddedUnavailable, JournalUnavailable, StoreUnavailable)
"""What a start raises if answers can't be kept; the message says what to do."""

_CHECK_SECONDS = 2.0
"""How long `/readyz` waits for the database; a probe that hangs would be no use."""
_FLUSH_SECONDS = 10.0
"""How long a stop waits for the database to take the remaining records."""
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 10.0
"""Between two attempts to migrate."""

CleanupContext = Callable[[web.Application], AsyncIterator[None]]
Check = Callable[[], Awaitable[str | None]]
"""For `/readyz`: returns None, or why a part can't do its work now."""


@frozen
class Persistence:
    """The parts that keep answers, made and not started.

    Attributes:
        contexts: start the parts, in this order, and stop them in the opposite one.
        checks: name of a part → its check.
    """

    store: Store
    journal: Journal | NoJournal
    saver: Saver
    contexts: tuple[CleanupContext, ...]
    checks: Mapping[str, Check]

    @classmethod
    def from_config(cls, config: Config, store: Store | None = None) -> "Persistence":
        """The parts that `config` describes. A `store` that is given replaces the configured
        database; the caller opens and closes it."""
        contexts: list[CleanupContext] = []
        if store is None:
            store = postgres = PostgresStore(config.database.pool_max_size)
            contexts.append(_database(config.database, postgres))
        checks = {"database": _database_check(store)}
        directory = config.journal.directory
        if directory is None:
            none = NoJournal()
            saver = Saver(store, none)
            return cls(store, none, saver, (*contexts, _saving(saver)), checks)
        path = Path(directory)
        journal = Journal(path, Fsync(config.journal.fsync), config.journal.max_bytes)
        saver = Saver(store, journal, DeadLetters(path).add)
        recovery = Recovery(path, journal.directory, saver.save)
        contexts += (_journaling(journal), _saving(saver, recovery))
        return cls(
            store, journal, saver, tuple(contexts), {**checks, "journal": _journal_check(journal)}
        )


def _database(config: DatabaseConfig, store: PostgresStore) -> CleanupContext:
    """The embedded PostgreSQL if it is configured, the store, and its tables."""

    async def keep(_: web.Application) -> AsyncIterator[None]:
        embedded: EmbeddedPostgres | None = None
        dsn = config.url
        if dsn == "embedded":
            embedded = await asyncio.to_thread(
                EmbeddedPostgres.start, Path(config.data_dir), on_progress=log.info
            )
            dsn = embedded.dsn
        await store.start(dsn)
        tried = asyncio.Event()
        migrating = asyncio.create_task(_migrate(dsn, tried), name="migrate")
        await tried.wait()
        yield
        migrating.cancel()
        await asyncio.gather(migrating, return_exceptions=True)
        await store.close()
        if embedded is not None:
            await asyncio.to_thread(embedded.stop)

    return keep


async def _migrate(dsn: str, tried: asyncio.Event) -> None:
    """Bring the tables up to date, trying until the database can be reached.

    Sets `tried` after the first attempt: a start waits only for that one.
    """
    waits = backoff(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS, random.random)
    for attempt, wait in enumerate(waits, 1):
        try:
            applied = await asyncio.to_thread(migrate, dsn)
        except StoreError as error:
            log.error("database not ready", attempt=attempt, reason=str(error))
        else:
            log.info("database ready", migrations_applied=applied)
            return
        finally:
            tried.set()
        await asyncio.sleep(wait)


def _journaling(journal: Journal) -> CleanupContext:
    async def keep(_: web.Application) -> AsyncIterator[None]:
        journal.start()
        yield
        journal.close()

    return keep


def _saving(saver: Saver, recovery: Recovery | None = None) -> CleanupContext:
    """The saver, and the recovery of completions that earlier processes left unsaved."""

    async def keep(_: web.Application) -> AsyncIterator[None]:
        saver.start()
        recovering = [asyncio.create_task(recovery.run(), name="recovery")] if recovery else []
        yield
        for task in recovering:
            task.cancel()
        await asyncio.gather(*recovering, return_exceptions=True)
        await saver.stop(_FLUSH_SECONDS)

    return keep


def _database_check(store: Store) -> Check:
    async def check() -> str | None:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await store.check()
        except StoreUnavailable as error:
            return str(error)
        except TimeoutError:
            return f"it gave no answer within {_CHECK_SECONDS:g} s"
        return None

    return check


def _journal_check(journal: Journal) -> Check:
    async def check() -> str | None:
        return journal.check()

    return check
