"""What tests share: one PostgreSQL for the whole run, and a clean database for each that asks.

Nothing of a database is imported before a test asks for one, so the state machine's tests load
no driver and start at once.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from db.embedded import EmbeddedPostgres
    from tests.redis_servers import RedisServer


@pytest.fixture(scope="session")
def postgres() -> "Iterator[EmbeddedPostgres]":
    """One server for the whole run."""
    from tests.postgres import running_server

    with running_server() as server:
        yield server


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """An empty directory for an embedded server of the test's own."""
    from tests.postgres import temporary_data_dir

    with temporary_data_dir() as path:
        yield path


@pytest.fixture(scope="session")
def migrated_database(postgres: "EmbeddedPostgres") -> str:
    """The address of a database with all tables."""
    from tests.postgres import migrated

    return migrated(postgres.dsn)


@pytest.fixture
def database_url(migrated_database: str) -> Iterator[str]:
    """A database with all tables and no rows, the test's alone.

    It is emptied, not made anew, which takes a tenth of the time: a test that changes more than
    rows takes `empty_database_url`.
    """
    from tests.postgres import empty_tables

    yield migrated_database
    empty_tables(migrated_database)


@pytest.fixture
def empty_database_url(postgres: "EmbeddedPostgres") -> Iterator[str]:
    """A database of the test's own, without tables."""
    from tests.postgres import empty_database

    with empty_database(postgres.dsn) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def redis_for_all(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[RedisServer]":
    """One Redis for the whole run."""
    from tests.redis_servers import redis_server

    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_redis(redis_for_all: "RedisServer") -> "RedisServer":
    """It, empty."""
    redis_for_all.empty()
    return redis_for_all
