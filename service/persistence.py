"""What keeps answers, wired together: the database, the journal, the saver and the recovery.

`service.app` starts them in the order in which they stand here and stops them in the opposite one:
records are flushed, then the database closes. No endpoints here, and nothing about streams.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import stamina
import structlog
from aiohttp import web

from db.dead_letters import DeadLetters
from db.embedded import EmbeddedPostgres
from db.journal import Fsync, Journal, NoJournal
from db.journal.recovery import Recovery
from db.migrate import migrate
from db.postgres.store import PostgresStore
from db.saver import Saver
from db.store import Store, StoreUnavailable
from service.settings.config import DatabaseConfig, JournalConfig

log = structlog.get_logger(__name__)

STORE = web.AppKey("store", Store)
JOURNAL: web.AppKey[Journal | None] = web.AppKey("journal")
SAVER = web.AppKey("saver", Saver)

_CHECK_SECONDS = 2.0
"""How long `/readyz` waits for the database; a probe that hangs tells nobody anything."""
_FLUSH_SECONDS = 10.0
"""How long a stop waits for the database to take what is left."""


CleanupContext = Callable[[web.Application], AsyncIterator[None]]


def given_store(store: Store) -> CleanupContext:
    """A store that somebody else opened and closes."""

    async def give(app: web.Application) -> AsyncIterator[None]:
        app[STORE] = store
        yield

    return give


def database(config: DatabaseConfig) -> CleanupContext:
    """The embedded PostgreSQL if asked for, the store, and its tables."""

    async def keep(app: web.Application) -> AsyncIterator[None]:
        embedded: EmbeddedPostgres | None = None
        dsn = config.url
        if dsn == "embedded":
            embedded = await asyncio.to_thread(
                EmbeddedPostgres.start, Path(config.data_dir), on_progress=log.info
            )
            dsn = embedded.dsn
        store = await PostgresStore.open(dsn, config.pool_max_size)
        app[STORE] = store
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
    """Bring the tables up to date, however long it takes the database to come.

    Sets `tried` after the first attempt, so that a start waits for that one alone.
    """
    attempts = stamina.retry_context(
        on=StoreUnavailable, attempts=None, timeout=None, wait_initial=0.5, wait_max=10.0
    )
    async for attempt in attempts:
        with attempt:
            try:
                applied = await asyncio.to_thread(migrate, dsn)
            except StoreUnavailable as error:
                log.error("database not ready", attempt=attempt.num, reason=str(error))
                raise
            finally:
                tried.set()
            log.info("database ready", migrations_applied=applied)


def journal(config: JournalConfig) -> CleanupContext:
    """This process's journal, unless `journal.directory` is null."""

    async def keep(app: web.Application) -> AsyncIterator[None]:
        kept: Journal | None = None
        if config.directory is not None:
            kept = Journal.open(Path(config.directory), Fsync(config.fsync), config.max_bytes)
        app[JOURNAL] = kept
        yield
        if kept is not None:
            kept.close()

    return keep


def saver(config: JournalConfig) -> CleanupContext:
    """The saver, and the recovery of what earlier processes left to save."""

    async def keep(app: web.Application) -> AsyncIterator[None]:
        kept, directory = app[JOURNAL], config.directory
        if kept is None or directory is None:
            writer = app[SAVER] = Saver(app[STORE], NoJournal())
            writer.start()
            yield
            await writer.stop(_FLUSH_SECONDS)
            return
        letters = DeadLetters(Path(directory))
        writer = app[SAVER] = Saver(app[STORE], kept, letters.add)
        writer.start()
        recovery = Recovery(Path(directory), kept.directory, writer.save)
        recovering = asyncio.create_task(recovery.run(), name="recovery")
        yield
        recovering.cancel()
        await asyncio.gather(recovering, return_exceptions=True)
        await writer.stop(_FLUSH_SECONDS)

    return keep


def database_check(store: Store) -> Callable[[], Awaitable[str | None]]:
    """For `/readyz`: None, or why the database can't take a save now."""

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


def journal_check(kept: Journal) -> Callable[[], Awaitable[str | None]]:
    """For `/readyz`: None, or why no new session can be written down."""

    async def check() -> str | None:
        return kept.check()

    return check
