"""Keeps claims in one SQLite file, which all processes of the machine share.

`db.claims.file` opens the file; here are the calls. Each is one transaction, made in a thread of this
object's own, one after the other: the event loop never waits for a disk or for another process.
"""

import asyncio
import errno
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog

from db.claims.contract import Claim, ClaimsUnavailable, gives_way
from db.claims.file import ClaimsFile, DamagedFile

log = structlog.get_logger(__name__)

BUSY_SECONDS: Final = 5.0
"""How long a call waits for other calls and other processes, all of them together."""
_SWEEP_EVERY, _SWEPT_AT_ONCE = 64, 256
"""After so many takes, at most so many expired claims are deleted: a millisecond or two, between
calls."""
_PAUSE_SECONDS = 0.001
"""Between two looks at a lock that somebody else has: about as long as a commit that waits for the
disk."""
_ATTEMPTS = 3
"""More than one file that is damaged or replaced during a call is the work of something else."""

_COLUMNS = "key, body, completion_id, holder, claimed_at"
_FIND = f"SELECT {_COLUMNS} FROM claims WHERE key = ?"
_KEEP = f"INSERT OR REPLACE INTO claims ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)"
_RELEASE = "DELETE FROM claims WHERE key = ? AND completion_id = ?"
_SWEEP = """
DELETE FROM claims WHERE key IN
    (SELECT key FROM claims WHERE claimed_at <= ? ORDER BY claimed_at LIMIT ?)
"""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_T = TypeVar("_T")


class SqliteClaims:
    """The claims in `claims.sqlite3`. One event loop uses it. The file is made with the first claim.

    Args:
        directory: where journals lie.
        keep_seconds: how long a claim holds; asked anew at each call.
        clock: POSIX seconds.
        is_synced: a claim is on the disk itself before `take` returns, so that it survives a power
            loss too.
        busy_seconds: see `BUSY_SECONDS`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_seconds: Callable[[], float],
        clock: Callable[[], float],
        is_synced: bool,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        self._file = ClaimsFile(directory, is_synced=is_synced)
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._busy_seconds = busy_seconds
        self._takes = 0
        self._is_closed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="claims")

    def __repr__(self) -> str:
        return f"<SqliteClaims {self._file.path}, {self._takes} asked for>"

    def start(self) -> None:
        self._thread.submit(self._sweep, self._expired_since())

    async def take(self, claim: Claim, *, instead_of: str | None = None) -> Claim:
        since = self._expired_since()
        taken = self._call(partial(_take, claim, since, instead_of))
        self._takes += 1
        if self._takes % _SWEEP_EVERY == 0:
            self._thread.submit(self._sweep, since)
        return await taken

    async def find(self, key: bytes) -> Claim | None:
        held = await self._call(partial(_find, key))
        return None if held is None or held.is_expired(self._expired_since()) else held

    async def release(self, claim: Claim) -> None:
        await self._call(partial(_release, claim))

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True  # what waits sees it when its turn comes
        closed = asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)
        await closed

    def _expired_since(self) -> float:
        return self._clock() - self._keep_seconds()

    def _call(self, work: Callable[[sqlite3.Connection], _T]) -> "asyncio.Future[_T]":
        """Have this made in the thread; from now on it waits for `busy_seconds` at most."""
        if self._is_closed:
            raise self._closed()
        deadline = time.monotonic() + self._busy_seconds
        return asyncio.get_running_loop().run_in_executor(self._thread, self._make, work, deadline)

    # --- in the thread ----------------------------------------------------------------------

    def _make(self, work: Callable[[sqlite3.Connection], _T], deadline: float) -> _T:
        reason = "the file was replaced again and again"
        for _ in range(_ATTEMPTS):
            try:
                try:
                    result = self._once_free(work, deadline)
                    if self._file.is_current():
                        return result
                    self._file.disconnect()
                except (sqlite3.Error, DamagedFile) as error:
                    if _is_damage(error):
                        reason = str(error)
                        self._file.set_aside(reason, deadline)
                    elif _is_moved(error):
                        self._file.disconnect()
                    else:
                        raise
            except (sqlite3.Error, OSError) as error:
                if not _is_busy(error):
                    self._disconnect()  # what is open may be no longer what is there
                raise self._unavailable(_advice(error)) from error
        raise self._unavailable(f"{reason}. See what else writes there")

    def _once_free(self, work: Callable[[sqlite3.Connection], _T], deadline: float) -> _T:
        """Try until nobody else has the file locked. SQLite's own waiting sleeps up to a tenth of a
        second, a hundred times as long as others have the lock."""
        while True:
            if self._is_closed:
                raise self._closed()
            try:
                return work(self._file.connect(deadline))
            except sqlite3.Error as error:
                if not _is_busy(error) or time.monotonic() >= deadline:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def _sweep(self, since: float) -> None:
        """Delete some of what has expired, unless somebody else is at work. Never raises."""
        try:
            if self._file.exists():
                self._make(partial(_delete_expired, since), time.monotonic())
        except Exception as error:  # nobody waits for it who could be told
            if not self._is_closed and not _is_busy(error.__cause__):
                log.warning("expired claims not deleted", reason=str(error) or repr(error))

    def _disconnect(self) -> None:
        try:
            self._file.disconnect()
        except sqlite3.Error as error:
            log.warning("claims not closed", file=str(self._file.path), reason=str(error))

    def _unavailable(self, reason: str) -> ClaimsUnavailable:
        where = self._file.path
        return ClaimsUnavailable(f"Idempotency keys can't be kept in {where}: {reason}.")

    def _closed(self) -> ClaimsUnavailable:
        return self._unavailable("the service is stopping. Ask again once it is back")


# --- one transaction each -----------------------------------------------------------------------


def _take(
    claim: Claim, since: float, instead_of: str | None, connection: sqlite3.Connection
) -> Claim:
    with connection:  # commits, or rolls back
        connection.execute("BEGIN IMMEDIATE")
        held = _find(claim.key, connection)
        if held is not None and not gives_way(held, since, instead_of):
            return held
        connection.execute(
            _KEEP, (claim.key, claim.body, claim.completion_id, claim.holder, claim.claimed_at)
        )
    return claim


def _find(key: bytes, connection: sqlite3.Connection) -> Claim | None:
    row = connection.execute(_FIND, (key,)).fetchone()
    return None if row is None else Claim(*row)


def _release(claim: Claim, connection: sqlite3.Connection) -> None:
    connection.execute(_RELEASE, (claim.key, claim.completion_id))


def _delete_expired(since: float, connection: sqlite3.Connection) -> None:
    connection.execute(_SWEEP, (since, _SWEPT_AT_ONCE))


# --- what went wrong ----------------------------------------------------------------------------


def _is_damage(error: Exception) -> bool:
    damage = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(error, DamagedFile) or _code(error) & 0xFF in damage


def _is_moved(error: Exception) -> bool:
    """True if SQLite itself noticed that its file is no longer in its place."""
    return _code(error) == sqlite3.SQLITE_READONLY_DBMOVED


def _is_busy(error: BaseException | None) -> bool:
    """True if somebody else had something locked."""
    busy = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return isinstance(error, TimeoutError) or _code(error) & 0xFF in busy


def _advice(error: sqlite3.Error | OSError) -> str:
    if _code(error) & 0xFF == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in _FULL:
        return "the disk is full. Make room on it"
    if _is_busy(error):
        return (
            "another program has had it locked for too long. End that one, perhaps a shell that "
            "was left open in it"
        )
    return (
        f"{error}. See whether the disk has room and the service may write there, or choose another "
        "place with journal.directory or JOURNAL_DIR"
    )


def _code(error: BaseException | None) -> int:
    """SQLite's extended result code; 0 if it isn't SQLite's error."""
    return getattr(error, "sqlite_errorcode", None) or 0
