"""What tests do to a real server behind the store's back, and what they see of it there."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2

from tests.postgres import execute

TABLES = ("conversations", "completions", "messages", "tool_sets", "completion_labels")
NOTHING = {"conversations": 0, "tool_sets": 0, "completions": 0, "messages": 0}
ONE_ANSWER = {"conversations": 1, "tool_sets": 0, "completions": 1, "messages": 2}


@contextmanager
def locked(dsn: str, table: str) -> Iterator[None]:
    """Nobody else can write to the table meanwhile."""
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
        yield


async def until_blocked(dsn: str) -> int:
    """Wait until one of the database's connections waits for a lock; return its process id."""
    async with asyncio.timeout(5):
        while True:
            rows = execute(
                dsn,
                "SELECT pid FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            if rows:
                return int(rows[0][0])
            await asyncio.sleep(0.01)


def backends(dsn: str) -> list[int]:
    """The process ids of the store's connections."""
    statement = (
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'verbatim-chat'"
    )
    return [pid for (pid,) in execute(dsn, statement)]


def counts(dsn: str) -> dict[str, int]:
    tables = ("conversations", "tool_sets", "completions", "messages")
    return {table: execute(dsn, f"SELECT count(*) FROM {table}")[0][0] for table in tables}


async def until_no_backend(dsn: str) -> None:
    """Wait until the server has done what the store's connections asked for, and they are gone."""
    async with asyncio.timeout(5):
        while backends(dsn):
            await asyncio.sleep(0.01)


def rows_left(dsn: str) -> dict[str, int]:
    """How many rows each table has, those that have any."""
    counts = {name: execute(dsn, f"SELECT count(*) FROM {name}")[0][0] for name in TABLES}
    return {name: count for name, count in counts.items() if count}
