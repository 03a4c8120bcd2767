"""Wires together the parts that keep answers: the database, the journal, the claims, the saver, the
recovery.

They start in this order and stop in the opposite one: records are flushed, then the database
closes. No endpoints here, and nothing about streams.
"""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
from aiohttp import web
from attrs import define, frozen

from db.claims import Claims, MemoryClaims, SqliteClaims
from db.dead_letters import DeadLetters
from db.embedded import EmbeddedPostgres, EmbeddedUnavailable
from db.embedded.watching import keep_running
from db.journal import Fsync, Journal, JournalUnavailable, NoJournal
from db.journal.recovery import Recovery
from db.migrate import migrate
from db.overview import WholeStore
from db.postgres.store import PostgresStore
from db.saver import Saver
from db.store import Store, StoreError, StoreUnavailable, TablesUnfit
from service.clock import steady_clock
from service.settings.config import Config, DatabaseConfig, JournalConfig
from statemachine import SessionRecord
from statemachine.backoff import backoff

log = structlog.get_logger(__name__)

CANNOT_KEEP = (EmbeddedUnavailable, JournalUnavailable, StoreUnavailable)
"""What a start raises if answers can't be kept; the message says what to do."""

_CHECK_SECONDS = 2.0
"""How long `/readyz` waits for the database; a probe that hangs would be no use."""
_FRESH_SECONDS = 0.3
"""How long one answer serves all probes, so that many cost the database no more than one."""
_START_PATIENCE_SECONDS = 2.0
"""How long a start waits for the tables of a database that may be away; it serves without them."""
_FLUSH_SECONDS = 10.0
"""How long a stop waits for the database to take the remaining records."""
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 10.0
"""Between two attempts to migrate."""
_KEEP_CLAIMS_SECONDS = 86_400.0
"""How long an `Idempotency-Key` is kept, where nobody says otherwise."""

_T = TypeVar("_T")
CleanupContext = Callable[[web.Application], AsyncIterator[None]]
MakeJournal = Callable[[Path, Fsync, int], Journal]
MakeClaims = Callable[[Claims, Callable[[], float], Callable[[], float]], Claims]
"""Of the machine's own claims, how long they are kept, and a clock in POSIX seconds."""
Check = Callable[[], Awaitable[str | None]]
"""For `/readyz`: returns None, or why a part can't do its work now."""


class SaveWatch(Protocol):
    """Is told what becomes of records. Nothing may be raised."""

    def saved(self, outcome: str, seconds: Sequence[float]) -> None:
        """See `db.saver.NoteSaves`."""

    def recovered(self, record: SessionRecord) -> None:
        """A record of a dead process was brought back, and handed over."""


@frozen
class Persistence:
    """The parts that keep answers, made and not started.

    Attributes:
        contexts: start the parts, in this order, and stop them in the opposite one.
        checks: name of a part → its check.
        is_recovering: whether completions that earlier processes left are still being brought back.
        letters: what no database would take; None without a journal.
    """

    store: WholeStore
    journal: Journal | NoJournal
    claims: Claims
    saver: Saver
    contexts: tuple[CleanupContext, ...]
    checks: Mapping[str, Check]
    is_recovering: Callable[[], bool] = lambda: False
    letters: DeadLetters | None = None

    @classmethod
    def from_config(
        cls,
        config: Config,
        store: WholeStore | None = None,
        keep_claims_seconds: Callable[[], float] = lambda: _KEEP_CLAIMS_SECONDS,
        watch: SaveWatch | None = None,
        make_journal: MakeJournal = Journal,
        make_claims: MakeClaims | None = None,
    ) -> "Persistence":
        """The parts that `config` describes.

        Args:
            store: replaces the configured database; the caller opens and closes it.
            keep_claims_seconds: asked whenever a claim's age counts.
            watch: told what becomes of records.
            make_journal, make_claims: make these, where they are to be, of a fleet.
        """
        contexts: list[CleanupContext] = []
        claims = _claims(config.journal, keep_claims_seconds, make_claims)
        migration, note = _Migration(), watch.saved if watch else None
        if store is None:
            store = postgres = PostgresStore(config.database.pool_max_size)
            contexts.append(_database(config.database, postgres, migration))
        if config.journal.directory is None:
            none = NoJournal()
            saver = Saver(store, none, note=note)
            checks = {"database": _database_check(store, saver, migration)}
            contexts += (_claiming(claims), _saving(saver))
            return cls(store, none, claims, saver, tuple(contexts), checks)
        path = Path(config.journal.directory)
        journal = make_journal(path, Fsync(config.journal.fsync), config.journal.max_bytes)
        letters = DeadLetters(path)
        saver = Saver(store, journal, letters.add, note)
        recovery = Recovery(path, journal.directory, _saving_recovered(saver, watch))
        contexts += (_journaling(journal), _claiming(claims), _saving(saver, recovery))
        checks = {"database": _database_check(store, saver, migration)}
        checks["journal"] = _journal_check(journal)
        parts = tuple(contexts), checks, lambda: not recovery.is_over, letters
        return cls(store, journal, claims, saver, *parts)

    async def has_row(self, completion_id: str) -> bool:
        """True if a completion is known to be stored."""
        with suppress(StoreUnavailable):
            return await self.store.find(completion_id) is not None
        return False

    def dead_letters(self) -> int:
        """How many records wait as files."""
        return 0 if self.letters is None else self.letters.count()


@define
class _Migration:
    """How bringing the tables up to date goes.

    Attributes:
        failure: why the last attempt failed; None before the first, and once one went well.
    """

    failure: str | None = None


async def _migrate(dsn: str, tried: asyncio.Event, migration: _Migration | None = None) -> None:
    """Bring the tables up to date, trying until that is done, whatever goes wrong: nobody else would
    say why no table comes.

    Sets `tried` after the first attempt: a start waits only for that one, and not for long.
    """
    migration = migration or _Migration()
    waits = backoff(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS, random.random)
    for attempt, wait in enumerate(waits, 1):
        try:
            applied = await _in_thread(lambda: migrate(dsn))
        except Exception as error:
            known = isinstance(error, StoreError)
            migration.failure = str(error) if known else repr(error)[:200]
            log.error("database not ready", attempt=attempt, reason=migration.failure)
        else:
            migration.failure = None
            log.info("database ready", migrations_applied=applied)
            return
        finally:
            tried.set()
        await asyncio.sleep(wait)


def _database(
    config: DatabaseConfig, store: PostgresStore, migration: _Migration
) -> CleanupContext:
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
        running = [asyncio.create_task(_migrate(dsn, tried, migration), name="migrate")]
        if embedded is not None:
            running.append(asyncio.create_task(keep_running(embedded), name="embedded"))
        with suppress(TimeoutError):
            async with asyncio.timeout(None if embedded else _START_PATIENCE_SECONDS):
                await tried.wait()
        yield
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await store.close()
        if embedded is not None:
            await asyncio.to_thread(embedded.stop)

    return keep


async def _in_thread(work: Callable[[], _T]) -> _T:
    """Run blocking work in a thread that no stop waits for: a server may never answer it."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    result: list[_T] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as error:
            failure.append(error)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="migrate", daemon=True).start()
    await done.wait()
    if failure:
        raise failure[0]
    return result[0]


def _saving_recovered(
    saver: Saver, watch: SaveWatch | None
) -> Callable[[SessionRecord], "asyncio.Future[None]"]:
    def save(record: SessionRecord) -> "asyncio.Future[None]":
        if watch is not None:
            watch.recovered(record)
        return saver.save(record)

    return save


def _journaling(journal: Journal) -> CleanupContext:
    async def keep(_: web.Application) -> AsyncIterator[None]:
        journal.start()
        yield
        journal.close()

    return keep


def _claims(
    config: JournalConfig, keep_seconds: Callable[[], float], make: MakeClaims | None
) -> Claims:
    """Where claims are kept: beside the journals, as safely as these, or in memory without one; and with
    other machines."""
    clock = steady_clock()
    own: Claims
    if config.directory is None:
        own = MemoryClaims(keep_seconds=keep_seconds, clock=clock)
    else:
        own = SqliteClaims(
            Path(config.directory),
            keep_seconds=keep_seconds,
            clock=clock,
            is_synced=Fsync(config.fsync) is not Fsync.NEVER,
        )
    return own if make is None else make(own, keep_seconds, clock)


def _claiming(claims: Claims) -> CleanupContext:
    async def keep(_: web.Application) -> AsyncIterator[None]:
        claims.start()
        yield
        await claims.close()

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


def _database_check(store: Store, saver: Saver, migration: _Migration) -> Check:
    """Whether a save would work: one is tried, and the last one must have."""

    async def check() -> str | None:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await store.check()
        except TablesUnfit as error:
            why = migration.failure
            return f"{error} (migrating failed: {why})" if why else str(error)
        except StoreUnavailable as error:
            return str(error)
        except TimeoutError:
            return f"it gave no answer within {_CHECK_SECONDS:g} s"
        return saver.failure and f"the last save failed: {saver.failure}"

    return _shared(check)


def _shared(check: Check) -> Check:
    """The same check, asked once for all that ask within `_FRESH_SECONDS`."""
    asking = asyncio.Lock()
    answer: str | None = None
    fresh_until = 0.0

    async def ask() -> str | None:
        nonlocal answer, fresh_until
        async with asking:
            now = asyncio.get_running_loop().time()
            if now >= fresh_until:
                answer = await check()
                fresh_until = now + _FRESH_SECONDS
            return answer

    return ask


def _journal_check(journal: Journal) -> Check:
    async def check() -> str | None:
        return journal.check()

    return check
