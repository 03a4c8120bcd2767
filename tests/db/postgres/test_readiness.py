"""Ready means that a save would work; each state in which it would not is called by its name."""

import asyncio
import sys

import pytest

from db.embedded import EmbeddedPostgres
from db.migrate import migrate
from db.postgres.store import PostgresStore
from db.store import StoreUnavailable, TablesUnfit
from tests.db.postgres.servers import NOTHING, backends, counts, locked
from tests.db.records import make_record, user
from tests.postgres import execute


async def why_not(dsn: str) -> str | None:
    """What the check says; None if it is ready."""
    store = await PostgresStore.open(dsn, timeout_seconds=3)
    try:
        async with asyncio.timeout(2):
            await store.check()
    except StoreUnavailable as error:
        return str(error)
    finally:
        await store.close()
    return None


async def test_a_check_keeps_nothing_and_no_connection_busy(
    store: PostgresStore, database_url: str
) -> None:
    """What is tried is taken back, and its connection serves on."""
    for _ in range(5):
        await store.check()
    assert NOTHING == counts(database_url)
    assert 1 == len(backends(database_url))


async def test_checks_and_saves_do_not_hold_each_other_up(store: PostgresStore) -> None:
    """However many are under way at once."""
    records = [make_record(user("same")) for _ in range(8)]
    saves = [store.save([record]) for record in records]
    await asyncio.gather(*(store.check() for _ in range(8)), *saves)


# --- tables -------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[str, str]] = {
    "ALTER TABLE completions DROP COLUMN hidden CASCADE": (
        "public.completions is not Verbatim's",
        "no column hidden",
    ),
    "DROP TABLE completion_labels": ("completion_labels are missing in schema public", "migrate"),
    "DELETE FROM _yoyo_migrations WHERE migration_id LIKE '0002%'": ("too old", "0002_"),
    "CREATE SCHEMA elsewhere; ALTER TABLE messages SET SCHEMA elsewhere": (
        "messages are out of reach",
        "schema elsewhere",
    ),
    "ALTER TABLE messages ADD COLUMN approved_by text NOT NULL": (
        "refuses even the simplest record",
        "23502",
    ),
    "ALTER TABLE completions ADD CONSTRAINT no_more CHECK (owner <> 'readiness') NOT VALID": (
        "refuses even the simplest record",
        "no_more",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_odd_tables_are_named(empty_database_url: str, change: str) -> None:
    """Tables, columns and schemas by their names, and what to do."""
    await asyncio.to_thread(migrate, empty_database_url)
    execute(empty_database_url, change)
    said = await why_not(empty_database_url)
    for expected in CHANGES[change]:
        assert expected in str(said)


async def test_a_newer_version_is_ready_if_a_save_works(empty_database_url: str) -> None:
    """Tables of a newer service do, as long as they take what this one writes; else they are called
    what they are."""
    await asyncio.to_thread(migrate, empty_database_url)
    execute(
        empty_database_url,
        "INSERT INTO _yoyo_migrations (migration_hash, migration_id)"
        " VALUES ('x', '0099_far_future')",
    )
    assert await why_not(empty_database_url) is None
    execute(empty_database_url, "ALTER TABLE completions RENAME COLUMN model TO models")
    said = await why_not(empty_database_url)
    assert "newer version (0099_far_future)" in str(said)
    assert "no column model" in str(said)


async def test_somebody_elses_table_before_ours_is_named_with_its_schema(
    empty_database_url: str,
) -> None:
    """A `messages` of another application, in a schema that comes first in search_path."""
    await asyncio.to_thread(migrate, empty_database_url)
    execute(empty_database_url, "CREATE SCHEMA forum; CREATE TABLE forum.messages (id int)")
    name = execute(empty_database_url, "SELECT current_database()")[0][0]
    execute(empty_database_url, f"ALTER DATABASE {name} SET search_path = forum, public")
    said = await why_not(empty_database_url)
    assert "forum.messages is not Verbatim's" in str(said)
    assert "search_path" in str(said)


async def test_somebody_elses_table_where_ours_should_be_is_named(empty_database_url: str) -> None:
    """The migration fails at it and says what is in its way; so does the check."""
    execute(empty_database_url, "CREATE TABLE messages (id int)")
    with pytest.raises(StoreUnavailable, match="a table of the same name"):
        await asyncio.to_thread(migrate, empty_database_url)
    store = await PostgresStore.open(empty_database_url)
    with pytest.raises(TablesUnfit, match="missing in schema public"):
        await store.check()
    await store.close()


async def test_a_schema_that_is_not_there_is_said(empty_database_url: str) -> None:
    """`search_path` may name nothing that exists."""
    name = execute(empty_database_url, "SELECT current_database()")[0][0]
    execute(empty_database_url, f"ALTER DATABASE {name} SET search_path = nowhere")
    assert "no schema of search_path exists" in str(await why_not(empty_database_url))


# --- rights -------------------------------------------------------------------------------------


async def test_a_user_who_may_not_create_the_tables_is_told(empty_database_url: str) -> None:
    """No tables, and no right to make them."""
    execute(empty_database_url, "DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN")
    dsn = empty_database_url.replace("//postgres@", "//guest@")
    said = await why_not(dsn)
    assert "guest may not create them; GRANT CREATE ON SCHEMA public TO guest" in str(said)


@pytest.mark.parametrize("right", ["INSERT ON messages", "UPDATE ON tool_sets"])
async def test_a_missing_right_is_named(empty_database_url: str, right: str) -> None:
    """Each right that a save takes, the rare ones too, with its table and schema."""
    await asyncio.to_thread(migrate, empty_database_url)
    execute(empty_database_url, "DROP ROLE IF EXISTS clerk; CREATE ROLE clerk LOGIN")
    execute(
        empty_database_url,
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO clerk;"
        f" REVOKE {right} FROM clerk",
    )
    said = await why_not(empty_database_url.replace("//postgres@", "//clerk@"))
    verb, _, table = right.partition(" ON ")
    assert f"GRANT {verb} ON public.{table} TO clerk" in str(said)


# --- the server ---------------------------------------------------------------------------------


async def test_a_table_that_somebody_locks_is_not_ready(database_url: str) -> None:
    """A save would wait, and so does not work now; the check itself waits for less than a probe."""
    with locked(database_url, "messages"):
        said = await why_not(database_url)
    assert "a save would wait too long; look for locks" in str(said)


async def test_a_read_only_database_without_tables_is_read_only(empty_database_url: str) -> None:
    """Nobody is sent to run migrations that can't run."""
    name = execute(empty_database_url, "SELECT current_database()")[0][0]
    execute(empty_database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "is set read-only (default_transaction_read_only)" in str(
        await why_not(empty_database_url)
    )


async def test_a_missing_synchronous_standby_is_not_ready(
    postgres: EmbeddedPostgres, database_url: str
) -> None:
    """Commits would wait for it for ever, which nothing but a commit shows."""
    name = execute(database_url, "SELECT current_database()")[0][0]
    execute(postgres.dsn, f"ALTER DATABASE {name} SET synchronous_commit = on")
    execute(postgres.dsn, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    execute(postgres.dsn, "SELECT pg_reload_conf()")
    try:
        for _ in range(3):
            assert "commits wait for a synchronous standby" in str(await why_not(database_url))
        assert [] == backends(database_url)  # none is left waiting
    finally:
        execute(postgres.dsn, "ALTER SYSTEM RESET synchronous_standby_names")
        execute(postgres.dsn, "SELECT pg_reload_conf()")
        execute(postgres.dsn, f"ALTER DATABASE {name} RESET synchronous_commit")
    assert await why_not(database_url) is None


async def test_no_free_connection_is_said(postgres: EmbeddedPostgres, database_url: str) -> None:
    """All taken, by this user's or by everybody's limit."""
    execute(postgres.dsn, "DROP ROLE IF EXISTS crowd; CREATE ROLE crowd LOGIN CONNECTION LIMIT 0")
    said = await why_not(database_url.replace("//postgres@", "//crowd@"))
    assert "it has no connection free" in str(said)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_refused_connection_is_no_closed_store(loop: str, unused_tcp_port: int) -> None:
    """Nobody listens: that is said each time, on each loop, and nothing besides."""
    script = f"""
import {loop}
from db.postgres.store import PostgresStore
async def main():
    store = await PostgresStore.open("postgresql://u@127.0.0.1:{unused_tcp_port}/chat")
    for _ in range(4):
        try:
            await store.check()
        except Exception as error:
            print(error)
    await store.close()
{loop}.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", script),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    lines = out.decode().splitlines()
    assert 4 == sum("nothing listens there" in line for line in lines)
    assert 4 == len(lines)
