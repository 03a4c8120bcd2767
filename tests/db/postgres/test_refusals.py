"""Servers that refuse the store: what they lack, and what each message says to do."""

import asyncio

import pytest
from attrs import evolve

from db.embedded import EmbeddedPostgres
from db.migrate import migrate
from db.postgres.store import PostgresStore
from db.store import RecordRejected, StoreUnavailable
from statemachine import State
from tests.db.postgres.servers import NOTHING, counts
from tests.db.records import make_record, user
from tests.postgres import execute, with_database


async def test_missing_tables_say_to_migrate(empty_database_url: str) -> None:
    """Without tables the store is unavailable, and says which command makes them."""
    store = await PostgresStore.open(empty_database_url)
    for call in (store.check(), store.save([make_record()])):
        with pytest.raises(StoreUnavailable, match=r"python -m db\.migrate"):
            await call
    await store.close()


async def test_a_missing_migration_says_to_migrate(empty_database_url: str) -> None:
    """Tables that are older than the code are not ready."""
    migrate(empty_database_url)
    execute(empty_database_url, "DELETE FROM _yoyo_migrations")
    store = await PostgresStore.open(empty_database_url)
    with pytest.raises(StoreUnavailable, match="too old"):
        await store.check()
    await store.close()


async def test_a_read_only_database_is_unavailable(empty_database_url: str) -> None:
    """A standby, or a database set read-only, takes no saves for now: nothing is refused."""
    migrate(empty_database_url)
    name = execute(empty_database_url, "SELECT current_database()")[0][0]
    execute(empty_database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    store = await PostgresStore.open(empty_database_url)
    for call in (store.check(), store.save([make_record()])):
        with pytest.raises(StoreUnavailable, match="takes no writes"):
            await call
    await store.close()


async def test_a_user_without_rights_is_unavailable(empty_database_url: str) -> None:
    """A user that may not write is told so, in the check as in the save."""
    migrate(empty_database_url)
    execute(empty_database_url, "CREATE USER reader")
    execute(empty_database_url, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    store = await PostgresStore.open(empty_database_url.replace("postgres@", "reader@"))
    for call in (store.check(), store.save([make_record()])):
        with pytest.raises(StoreUnavailable, match="lacks permission"):
            await call
    await store.close()


async def test_a_wrong_password_or_database_is_named_and_never_shown(
    postgres: EmbeddedPostgres,
) -> None:
    """Messages say what is wrong with the address, without its password."""
    execute(postgres.dsn, "CREATE USER secretive PASSWORD 'the real one'")
    rules = postgres.data_dir / "cluster" / "pg_hba.conf"
    rules.write_text(f"local all secretive scram-sha-256\n{rules.read_text()}")
    execute(postgres.dsn, "SELECT pg_reload_conf()")
    expected = {
        postgres.dsn.replace("postgres@", "secretive:hunter2@"): "refuses the password",
        postgres.dsn.replace("postgres@", "secretive@"): "refuses the password",
        postgres.dsn.replace("postgres@", "nobody:hunter2@"): "refuses this user",
        with_database(postgres.dsn, "nowhere"): "the database doesn't exist",
    }
    for dsn, message in expected.items():
        store = await PostgresStore.open(dsn)
        for attempt in (store.check(), asyncio.to_thread(migrate, dsn)):
            with pytest.raises(StoreUnavailable, match=message) as caught:
                await attempt
            assert "hunter2" not in str(caught.value)
        await store.close()


async def test_an_unreadable_address_is_not_shown() -> None:
    """An address that libpq can't read is never quoted: it may hold a password."""
    for dsn in ("postgresql://u:hunter2@[", "host=x hunter2", "postgresql://u:hunter2@h/d?no=1"):
        with pytest.raises(StoreUnavailable, match="postgresql://user:password@host") as caught:
            await PostgresStore.open(dsn)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__


async def test_an_encoding_that_cannot_hold_every_text_is_not_ready(
    postgres: EmbeddedPostgres,
) -> None:
    """A database in LATIN1 would refuse some answers for ever; the check says so beforehand."""
    execute(postgres.dsn, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    dsn = with_database(postgres.dsn, "latin")
    migrate(dsn)
    store = await PostgresStore.open(dsn)
    with pytest.raises(StoreUnavailable, match="ENCODING 'UTF8'"):
        await store.check()
    await store.close()
    execute(postgres.dsn, "DROP DATABASE latin WITH (FORCE)")


async def test_a_record_that_the_tables_refuse_is_rejected(
    store: PostgresStore, database_url: str
) -> None:
    """A row that breaks a rule of the tables is rejected with its whole call, without quoting
    what it holds; the store works on."""
    poison = evolve(make_record(user("secret text")), state=State.PENDING)
    with pytest.raises(RecordRejected, match="completions_state_check") as caught:
        await store.save([make_record(), poison])
    assert "secret text" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert NOTHING == counts(database_url)
    await store.save([make_record()])
