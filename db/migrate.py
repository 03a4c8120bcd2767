"""Brings a database's tables up to date: applies `db/migrations/*.sql` through yoyo-migrations.

The only file that sees yoyo, and beside `db.postgres.store` the only one that sees psycopg2, since
yoyo's backends are synchronous. Never decides when to migrate. Operators run `python -m db.migrate`.

1. Any number of processes may start at once: an advisory lock lets one migrate while the others
   wait.
2. A migration and the note that it was applied commit together. Where one fails, those before it
   stay.
3. All is one transaction, and nothing is left on the connection, lock and settings included: a
   pooler such as PgBouncer gives the next transaction another connection, and this one to somebody
   else. So a file in `db/migrations/` holds no statement that refuses to run in a transaction, and
   no `SET` without `LOCAL`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg2
import yoyo
from yoyo import internalmigrations
from yoyo.backends.core.postgresql import PostgresqlBackend

from db.postgres.address import shown
from db.postgres.sql import MIGRATIONS
from db.postgres.store import CONNECT_TIMEOUT_SECONDS, parsed, translated
from db.store import RecordRejected, StoreError, StoreUnavailable

LOCK_TIMEOUT_SECONDS = 60
"""How long to wait for another process that is migrating."""

_LOCK = int.from_bytes(b"verbatim")
"""The advisory lock's number, which hardly anyone else will use. The server releases the lock with its
transaction, so that neither a killed process nor a pooled connection holds it on."""


def migrate(dsn: str) -> list[str]:
    """Apply the migrations that are missing, after waiting for any process that is doing so.

    Blocks; call it in a thread. Safe to call again at any time, from any number of processes.

    Returns:
        The ids of the migrations that this call applied, in order; usually none.

    Raises:
        StoreUnavailable: nothing of the migration that failed was kept; the message says why.
        RecordRejected: the same, because of rows that are there.
    """
    where = shown(parsed(dsn))
    migrations = yoyo.read_migrations(str(MIGRATIONS))
    applied: list[str] = []
    try:
        with _Backend(dsn, "_yoyo_migrations") as backend:
            if backend.is_up_to_date(migrations):
                return applied
            failure: Exception | None = None
            with backend.locked():
                backend.ensure_internal_schema_updated()
                for migration in backend.to_apply(migrations):
                    if (failure := backend.apply_or_undo(migration)) is not None:
                        break  # what was applied before it is committed
                    applied.append(migration.id)
            if failure is not None:
                raise failure
            return applied
    except psycopg2.Error as error:
        raise _translated(error, where) from error
    except yoyo.exceptions.BadMigration as error:
        raise StoreUnavailable(f"A migration can't be loaded: {error}") from error


def _translated(error: psycopg2.Error, where: str) -> StoreError:
    found = translated(error, where)
    if isinstance(found, RecordRejected):
        return RecordRejected(f"A migration fails on rows that are in {where}. {found}")
    return found


class _Backend(PostgresqlBackend):  # type: ignore[misc]  # yoyo publishes no types
    """yoyo on a connection that is made here, from any libpq address."""

    def connect(self, dburi: str) -> Any:
        connection = psycopg2.connect(dburi, connect_timeout=CONNECT_TIMEOUT_SECONDS)
        connection.autocommit = True
        return connection

    def list_tables(self, **_: Any) -> list[str]:
        # The inherited one wants yoyo's own kind of address.
        found = self.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema")
        return [row[0] for row in found.fetchall()]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A transaction that keeps every other process from migrating meanwhile."""
        with self.transaction():
            # A snapshot of before the wait would not see what the other did.
            self.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            self.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
            self.execute("SELECT pg_advisory_xact_lock(:number)", {"number": _LOCK})
            yield

    def is_up_to_date(self, migrations: Any) -> bool:
        """True if nothing is to be done; asked without a lock, and by one who may only read."""
        return not internalmigrations.needs_upgrading(self) and not self.to_apply(migrations)

    @contextmanager
    def lock(self, timeout: float = 0) -> Iterator[None]:
        # The advisory lock is held already. yoyo's own is a row with a process id: after a kill it
        # would block everyone until somebody removed it.
        yield

    def ensure_internal_schema_updated(self) -> None:
        # The inherited one refuses to be part of a transaction.
        if internalmigrations.needs_upgrading(self):
            internalmigrations.upgrade(self)

    def apply_or_undo(self, migration: Any) -> Exception | None:
        """Apply a migration within the transaction, or nothing of it, and return the error."""
        try:
            with self.transaction():  # within the other one, so a savepoint
                self.apply_one(migration)
                # The next may alter a table, which none may whose rows have checks pending.
                self.execute("SET CONSTRAINTS ALL IMMEDIATE")
                self.execute("SET CONSTRAINTS ALL DEFERRED")
        except (psycopg2.Error, yoyo.exceptions.BadMigration) as error:
            if self.connection.closed:
                raise
            return error
        return None

    def apply_one(self, migration: Any, force: bool = False, mark: bool = True) -> None:
        # The inherited one commits the migration first and marks it afterwards: a kill between
        # the two would leave tables that the next start tries to create again.
        migration.process_steps(self, "apply", force=force)
        self.log_migration(migration, "apply")
        self.mark_one(migration, log=False)

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        # The inherited one asks for the user's and the host's name, and fails in a container
        # whose user id has no name.
        return {
            "id": str(uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": str(os.getuid()),
            "hostname": os.uname().nodename,
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }


def main(arguments: list[str]) -> int:
    """`python -m db.migrate [URL]`; without a URL, that of `DATABASE_URL`."""
    dsn = arguments[0] if arguments else os.environ.get("DATABASE_URL", "")
    try:
        applied = migrate(dsn)
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(f"applied {name}" for name in applied) or "nothing to apply")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
