"""Statements of megabytes: sent from a thread, and otherwise like any other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiopg
import psycopg2
import pytest
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from db.postgres.sending import Sender
from db.postgres.store import PostgresStore
from tests.db.postgres.servers import NOTHING, ONE_ANSWER, backends, counts
from tests.db.records import assistant, make_record, user
from tests.holdup import measured_loop
from tests.postgres import CLOSE_OTHERS, execute

TEXT = b"word " * 6_000_000
LARGE = b"SELECT length('" + TEXT + b"')"


@asynccontextmanager
async def sender(dsn: str) -> AsyncIterator[Sender]:
    """One on a connection of its own."""
    async with aiopg.connect(dsn) as connection, connection.cursor() as cursor:
        yield Sender(cursor)


async def test_a_large_statement_holds_nobody_up(database_url: str) -> None:
    """30 MB are sent, and answered, while others get their turns."""
    async with sender(database_url) as cursor, measured_loop() as loop_time:
        await cursor.execute(LARGE)
        assert [(len(TEXT),)] == await cursor.fetchall()
    assert loop_time.longest_ms < loop_time.bound_ms / 3


async def test_its_errors_are_the_drivers(database_url: str) -> None:
    """What the server refuses is said as of a small one, and the connection serves on; where the
    connection is lost, that is said."""
    async with sender(database_url) as cursor:
        with pytest.raises(psycopg2.errors.UndefinedFunction):
            await cursor.execute(LARGE.replace(b"length", b"lengths"))
        await cursor.execute("SELECT 1")
        assert [(1,)] == await cursor.fetchall()
        execute(database_url, CLOSE_OTHERS)
        with pytest.raises(psycopg2.Error):
            await cursor.execute(LARGE)


async def test_cancelling_waits_for_the_thread(database_url: str) -> None:
    """However often: the connection is nobody else's business before the thread is done with it."""
    async with sender(database_url) as cursor:
        task = asyncio.create_task(cursor.execute(LARGE))
        await asyncio.sleep(0)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cursor._cursor.raw.connection.get_transaction_status() != TRANSACTION_STATUS_IDLE


async def test_a_save_that_is_given_up_midway_leaves_nothing(database_url: str) -> None:
    """Whenever: neither half of it nor a connection that is not idle, and the store serves on."""
    store = await PostgresStore.open(database_url, pool_max_size=2)
    record = make_record(user("Say much."), answer=TEXT.decode())
    for seconds in (0.05, 0.1, 0.15, 0.2, 0.3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await store.save([record])
        # The last may have been told to commit by then: all of it, then.
        assert counts(database_url) in (NOTHING, ONE_ANSWER)
    await store.save([record])
    assert len(backends(database_url)) <= 2
    (answer,) = await store.answer(record.completion_id)
    assert assistant(TEXT.decode())["content"] == answer.content
    await store.close()
