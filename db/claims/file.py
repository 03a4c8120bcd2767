"""Opens the file that all processes keep their claims in: makes it, and sets a damaged one aside.

Never decides who gets a key. The rules:

1. Making, opening and setting aside are done under a lock of their own (`claims.lock`), so that a
   file appears whole and one process alone sets a damaged one aside.
2. A process may still have the file open that another has set aside, or a person deleted. So what a
   call did counts only if its file is still the one in the directory afterwards.
3. SQLite's write-ahead log goes wherever its file goes: beside another one it would ruin that.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

import structlog

log = structlog.get_logger(__name__)

NAME = "claims.sqlite3"
LOCK = "claims.lock"
_MAKING = f".{NAME}.new"
_DAMAGED = "damaged-claims-"
"""Begins the name of a file that was set aside; recovery of journals passes such a name over."""
_BESIDE = ("-journal", "-shm", "-wal")
"""End the names of SQLite's files beside its own."""
_VERSION = 1
"""Of the table below. A file of another version is set aside: it holds no more than a day's claims."""
_TABLE = """
CREATE TABLE claims (
    key BLOB PRIMARY KEY,
    body BLOB NOT NULL,
    completion_id TEXT NOT NULL,
    holder TEXT NOT NULL,
    claimed_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX claims_by_age ON claims (claimed_at);
"""
_PAUSE_SECONDS = 0.01
"""Between two looks at the lock."""


class DamagedFile(Exception):
    """The file is no database of claims, or not one that this code knows. The message says why."""


class ClaimsFile:
    """The file, in the directory where journals lie. Used by one thread.

    Its methods block, until `deadline` (of `time.monotonic`) at the latest where another process is
    opening it, and raise OSError, TimeoutError if that took too long, and sqlite3.Error.

    Args:
        directory: is made if it isn't there.
        is_synced: each commit waits for the disk itself.
    """

    def __init__(self, directory: Path, *, is_synced: bool) -> None:
        self.path = directory / NAME
        self._is_synced = is_synced
        self._connection: sqlite3.Connection | None = None
        self._opened: os.stat_result | None = None

    def exists(self) -> bool:
        """True if there is a file already."""
        return self.path.exists()

    def connect(self, deadline: float) -> sqlite3.Connection:
        """The connection, opened if it isn't open. Its statements wait for no locks.

        Raises:
            DamagedFile: what is there is none of ours.
        """
        if self._connection is None:
            with self._locked(deadline):
                if not self.path.exists():
                    self._make()
                self._opened = os.stat(self.path)
                self._connection = self._open()
        return self._connection

    def is_current(self) -> bool:
        """True if the file that is open is the one in the directory."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False
        return self._opened is not None and os.path.samestat(self._opened, found)

    def disconnect(self) -> None:
        """Close the connection, if one is open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def set_aside(self, reason: str, deadline: float) -> None:
        """Give the file that was opened last another name, unless it has one already."""
        self.disconnect()
        with self._locked(deadline):
            if not self.is_current():
                return  # another process was quicker
            kept = self.path.with_name(f"{_DAMAGED}{int(time.time())}-{token_hex(4)}.sqlite3")
            for end in (*_BESIDE, ""):
                if os.path.exists(f"{self.path}{end}"):
                    os.rename(f"{self.path}{end}", f"{kept}{end}")
        log.error("damaged claims set aside", file=str(kept), reason=reason)

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            # NORMAL waits for the disk when the log is copied into the file, every thousand pages
            # or so: without that a power loss could leave neither whole.
            connection.execute(f"PRAGMA synchronous={'FULL' if self._is_synced else 'NORMAL'}")
            ((version,),) = connection.execute("PRAGMA user_version")
            if version != _VERSION:
                raise DamagedFile(f"it is of version {version}, not {_VERSION}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _make(self) -> None:
        """Make the file, under another name until it is whole."""
        making = self.path.with_name(_MAKING)
        making.unlink(missing_ok=True)
        for end in _BESIDE:
            for path in (self.path, making):
                Path(f"{path}{end}").unlink(missing_ok=True)
        # SQLite gives its other files the same mode.
        os.close(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(making, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(f"BEGIN; {_TABLE} PRAGMA user_version={_VERSION}; COMMIT;")
        finally:
            connection.close()
        making.rename(self.path)
        if self._is_synced:
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    @contextmanager
    def _locked(self, deadline: float) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_name(LOCK), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise TimeoutError from None
                    time.sleep(_PAUSE_SECONDS)
            yield
        finally:
            os.close(lock)
