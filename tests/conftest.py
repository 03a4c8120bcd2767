"""What all tests share: a real PostgreSQL, and a clean database for each test that asks.

The server is the embedded one, never one that happens to run on the machine, so that the tests
need nothing but the extra `embedded` and leave nothing behind.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg2
import pytest

from db.embedded import EmbeddedPostgres
from db.migrate import migrate

UNSAFE_BUT_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
CLOSE_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
_numbers = count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One server for the whole run."""
    with temporary_data_dir() as path:
        server = EmbeddedPostgres.start(path, settings=UNSAFE_BUT_FAST)
        yield server
        server.stop()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty directory for an embedded server of the test's own."""
    with temporary_data_dir() as path:
        yield path


@contextmanager
def temporary_data_dir() -> Iterator[Path]:
    # Not pytest's `tmp_path`: each new pytest run closes the directory above all of them to
    # other users, and so to a server that root runs as somebody else.
    with TemporaryDirectory(prefix="verbatim-chat-") as path:
        yield Path(path)


@pytest.fixture(scope="session")
def migrated_database(postgres: EmbeddedPostgres) -> str:
    """The address of a database with all tables."""
    execute(postgres.dsn, "CREATE DATABASE migrated")
    dsn = with_database(postgres.dsn, "migrated")
    migrate(dsn)
    return dsn


@pytest.fixture
def database_url(migrated_database: str) -> Iterator[str]:
    """A database with all tables and no rows, the test's alone.

    It is emptied, not made anew, which takes a tenth of the time: a test that changes more than
    rows takes `empty_database_url`.
    """
    yield migrated_database
    execute(migrated_database, CLOSE_OTHERS)
    execute(
        migrated_database,
        "TRUNCATE conversations, tool_sets, completions, messages, completion_labels, deletions",
    )


@pytest.fixture
def empty_database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database of the test's own, without tables."""
    name = f"test_{next(_numbers)}"
    execute(postgres.dsn, f"CREATE DATABASE {name}")
    yield with_database(postgres.dsn, name)
    execute(postgres.dsn, f"DROP DATABASE {name} WITH (FORCE)")


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
