"""Behind a pooler that deals out connections for one transaction each."""

import asyncio
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest

from db.embedded import EmbeddedPostgres
from db.migrate import migrate
from db.postgres.store import PostgresStore
from db.store import CompletionFilter, Paging, StoreUnavailable
from tests.db.postgres.pgbouncer import MISSING, PROGRAM, pgbouncer
from tests.db.records import make_record, user
from tests.db.starters import migrated_by_four
from tests.postgres import execute

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=MISSING)


@pytest.fixture
def pooled(
    postgres: EmbeddedPostgres, empty_database_url: str, unused_tcp_port: int
) -> Iterator[str]:
    """An empty database, through a pooler in transaction mode."""
    name = execute(empty_database_url, "SELECT current_database()")[0][0]
    with pgbouncer(postgres, unused_tcp_port, "transaction") as address:
        yield address.replace("*", name)


def left_behind(dsn: str) -> list[tuple[object, ...]]:
    """What earlier transactions left on the pooler's connections: settings and locks."""
    found = execute(dsn, "SELECT locktype FROM pg_locks WHERE locktype = 'advisory'")
    names = "('lock_timeout', 'statement_timeout', 'idle_in_transaction_session_timeout')"
    for _ in range(6):
        with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(
                f"SELECT name, setting FROM pg_settings WHERE name IN {names} AND setting <> '0'"
                " UNION ALL SELECT name, statement FROM pg_prepared_statements"
            )
            found += cursor.fetchall()
    return found


def test_starters_that_share_a_pooler_do_not_wait_for_each_others_remains(pooled: str) -> None:
    """Of four that start together one migrates; none fails, and nothing of it stays behind."""
    assert 1 == sum(said.startswith("applied") for said in migrated_by_four(pooled))
    assert [] == left_behind(pooled)
    assert [] == migrate(pooled)


async def test_every_call_works_through_it(pooled: str) -> None:
    """Saves, reads and changes, several at once on fewer connections, leave nothing behind."""
    await asyncio.to_thread(migrate, pooled)
    store = await PostgresStore.open(pooled)
    await store.check()
    records = [
        make_record(user(f"Question {number}"), request={"metadata": {"k": "v"}})
        for number in range(8)
    ]
    await asyncio.gather(*(store.save([record]) for record in records))
    owner, name = records[0].request.owner, records[0].completion_id
    assert await store.view(owner, name) is not None
    assert await store.set_metadata(owner, name, {"k": "w"}) is not None
    wanted = CompletionFilter(metadata={"k": "v"})
    assert 7 == len((await store.list_completions(owner, wanted, Paging(9))).items)
    assert await store.delete(owner, name)
    await asyncio.gather(*(store.check() for _ in range(8)))
    await store.close()
    assert [] == await asyncio.to_thread(left_behind, pooled)


async def test_statement_pooling_is_called_by_its_name(
    postgres: EmbeddedPostgres, database_url: str, unused_tcp_port: int
) -> None:
    """Without transactions nothing can be saved: not ready, and the setting is named."""
    with pgbouncer(postgres, unused_tcp_port, "statement") as address:
        dsn = address.replace("*", "migrated")
        store = await PostgresStore.open(dsn)
        for call in (store.check(), store.save([make_record()])):
            with pytest.raises(StoreUnavailable, match="pool_mode = statement"):
                await call
        await store.close()


async def test_a_pooler_without_its_server_says_so(
    postgres: EmbeddedPostgres, unused_tcp_port: int
) -> None:
    """A pooler that answers is not yet a database."""
    with pgbouncer(postgres, unused_tcp_port, "transaction") as address:
        store = await PostgresStore.open(address.replace("*", "nowhere"))
        with pytest.raises(StoreUnavailable, match=r"doesn't exist|can't reach the PostgreSQL"):
            await store.check()
        await store.close()
