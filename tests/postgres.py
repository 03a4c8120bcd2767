"""A real PostgreSQL for tests, and databases on it.

The server is the embedded one, never one that happens to run on the machine, so that the tests
need nothing but the extra `embedded` and leave nothing behind. The fixtures over these functions
are in `tests/conftest.py`.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg2

from db.embedded import EmbeddedPostgres
from db.migrate import migrate

UNSAFE_BUT_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
CLOSE_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
_numbers = count(1)


@contextmanager
def temporary_data_dir() -> Iterator[Path]:
    """An empty directory for an embedded server."""
    # Not pytest's `tmp_path`: each new pytest run closes the directory above all of them to
    # other users, and so to a server that root runs as somebody else.
    with TemporaryDirectory(prefix="verbatim-chat-") as path:
        yield Path(path)


@contextmanager
def running_server() -> Iterator[EmbeddedPostgres]:
    """A server in a directory of its own."""
    with temporary_data_dir() as path:
        server = EmbeddedPostgres.start(path, settings=UNSAFE_BUT_FAST)
        try:
            yield server
        finally:
            server.stop()


def migrated(dsn: str) -> str:
    """The address of a new database with all tables."""
    execute(dsn, "CREATE DATABASE migrated")
    migrate(with_database(dsn, "migrated"))
    return with_database(dsn, "migrated")


def empty_tables(dsn: str) -> None:
    """Close all other connections to a database and delete every row."""
    execute(dsn, CLOSE_OTHERS)
    execute(
        dsn,
        "TRUNCATE conversations, tool_sets, completions, messages, tool_calls, completion_labels,"
        " deletions",
    )


@contextmanager
def empty_database(dsn: str) -> Iterator[str]:
    """The address of a database without tables, dropped afterwards."""
    name = f"test_{next(_numbers)}"
    execute(dsn, f"CREATE DATABASE {name}")
    try:
        yield with_database(dsn, name)
    finally:
        execute(dsn, f"DROP DATABASE {name} WITH (FORCE)")


def with_database(dsn: str, name: str) -> str:
    """The address of another database on the embedded server."""
    return dsn.replace("@/postgres?", f"@/{name}?")


def execute(dsn: str, statement: str, parameters: tuple[object, ...] = ()) -> list[tuple]:
    """Run one statement on a connection of its own and return its rows, if it has any."""
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []
