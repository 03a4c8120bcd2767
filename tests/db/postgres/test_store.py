"""What only a real server can do to the store: vanish, restart, hang, refuse, collide."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from attrs import evolve

from db.embedded import EmbeddedPostgres
from db.migrate import migrate
from db.postgres.store import PostgresStore
from db.store import RecordRejected, StoreUnavailable
from statemachine import State
from tests.conftest import UNSAFE_BUT_FAST, execute, with_database
from tests.db.records import assistant, make_record, user


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    opened = await PostgresStore.open(database_url, pool_max_size=4)
    yield opened
    await opened.close()


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


NOTHING = {"conversations": 0, "tool_sets": 0, "completions": 0, "messages": 0}
ONE_ANSWER = {"conversations": 1, "tool_sets": 0, "completions": 1, "messages": 2}


async def until_no_backend(dsn: str) -> None:
    """Wait until the server has done what the store's connections asked for, and they are gone."""
    async with asyncio.timeout(5):
        while backends(dsn):
            await asyncio.sleep(0.01)


async def fill_pool(store: PostgresStore) -> None:
    await asyncio.gather(*(store.find("x") for _ in range(20)))


# --- connections that die -------------------------------------------------------------------


async def test_dead_pooled_connections_are_not_surfaced(
    store: PostgresStore, database_url: str
) -> None:
    """When every pooled connection has been cut, the next save still goes through."""
    await fill_pool(store)
    assert len(backends(database_url)) > 1
    for pid in backends(database_url):
        execute(database_url, f"SELECT pg_terminate_backend({pid})")
    record = make_record()
    await store.save([record])
    assert await store.find(record.completion_id) is not None


async def test_a_connection_cut_during_a_save_is_made_up_for(
    store: PostgresStore, database_url: str
) -> None:
    """A save whose connection dies midway is done again on another, and kept once."""
    record = make_record()
    with locked(database_url, "messages"):
        saving = asyncio.create_task(store.save([record]))
        pid = await until_blocked(database_url)
        execute(database_url, f"SELECT pg_terminate_backend({pid})")
        assert pid != await until_blocked(database_url)
    await saving
    assert ONE_ANSWER == counts(database_url)


async def test_a_restarted_server_is_found_again(data_dir: Path) -> None:
    """Down, every call says so and how; up again, the same store works."""
    server = EmbeddedPostgres.start(data_dir, settings=UNSAFE_BUT_FAST)
    migrate(server.dsn)
    store = await PostgresStore.open(server.dsn, pool_max_size=3)
    await fill_pool(store)
    first, second = make_record(), make_record()
    await store.save([first])
    server.stop()
    for call in (store.save([second]), store.check(), store.find(first.completion_id)):
        with pytest.raises(StoreUnavailable, match="PostgreSQL at"):
            await call
    again = EmbeddedPostgres.start(data_dir, settings=UNSAFE_BUT_FAST)
    await store.check()
    await store.save([second])
    assert await store.find(first.completion_id) is not None
    assert await store.find(second.completion_id) is not None
    await store.close()
    again.stop()


async def test_a_store_opens_while_its_server_is_down(tmp_path: Path) -> None:
    """Opening connects to nothing; only the calls say that nothing is there."""
    store = await PostgresStore.open(f"postgresql://u:secret@/chat?host={tmp_path}")
    with pytest.raises(StoreUnavailable, match=r"nothing listens there.*DATABASE_URL") as caught:
        await store.check()
    assert "secret" not in str(caught.value)
    await store.close()


# --- servers that hang ----------------------------------------------------------------------


async def test_a_server_that_never_answers_is_given_up(unused_tcp_port: int) -> None:
    """A server that accepts the connection and says nothing ends in StoreUnavailable, in time; the
    message says how long that was, which for a save is a little longer."""
    with closing(socket.create_server(("127.0.0.1", unused_tcp_port))):
        store = await PostgresStore.open(
            f"postgresql://u:secret@127.0.0.1:{unused_tcp_port}/chat", timeout_seconds=0.3
        )
        async with asyncio.timeout(2):
            with pytest.raises(StoreUnavailable, match=r"no answer within 0\.3 s"):
                await store.check()
            with pytest.raises(StoreUnavailable, match=r"no answer within 0\.33 s"):
                await store.save([make_record()])
        await store.close()


async def test_a_server_that_freezes_is_given_up(database_url: str) -> None:
    """A connection that stops answering ends in StoreUnavailable, and isn't used again."""
    store = await PostgresStore.open(database_url, timeout_seconds=0.5)
    await store.check()
    (pid,) = backends(database_url)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match="no answer"):
            await store.save([make_record()])
        await store.save([make_record()])
    finally:
        os.kill(pid, signal.SIGCONT)
    await store.close()


async def test_the_wait_for_a_connection_is_bounded(database_url: str) -> None:
    """When all connections are busy for too long, the call that waits gives up."""
    store = await PostgresStore.open(database_url, pool_max_size=1, timeout_seconds=0.5)
    with locked(database_url, "completions"):
        results = await asyncio.gather(
            *(store.save([make_record()]) for _ in range(3)), return_exceptions=True
        )
    assert [StoreUnavailable] * 3 == [type(result) for result in results]
    await store.save([make_record()])
    await store.close()


async def test_the_whole_of_a_save_is_bounded(database_url: str) -> None:
    """Statements that are each in time can't add up to a save that isn't."""
    store = await PostgresStore.open(database_url, timeout_seconds=0.5)
    with locked(database_url, "messages"):
        with locked(database_url, "completions"):
            saving = asyncio.create_task(store.save([make_record()]))
            await asyncio.sleep(0.3)
        async with asyncio.timeout(0.4):
            with pytest.raises(StoreUnavailable, match="no answer"):
                await saving
        assert NOTHING == counts(database_url)
    await store.close()


async def test_a_save_given_up_waits_on_in_no_backend(database_url: str) -> None:
    """What a client gave up the server gives up too: nothing piles up behind a lock."""
    store = await PostgresStore.open(database_url, timeout_seconds=0.2)
    with locked(database_url, "completions"):
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.save([make_record()])
        await asyncio.sleep(0.3)
        assert [] == backends(database_url)
    await store.close()


async def test_a_statement_that_the_server_cancels_is_no_cancelled_task(
    store: PostgresStore, database_url: str
) -> None:
    """A statement cancelled by the server means StoreUnavailable; the calling task lives on."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # aiopg reports it there too
    record = make_record()
    with locked(database_url, "completions"):
        saving = asyncio.create_task(store.save([record]))
        execute(database_url, f"SELECT pg_cancel_backend({await until_blocked(database_url)})")
        with pytest.raises(StoreUnavailable, match="cancelled the statement"):
            await saving
    await store.save([record])


# --- cancellation ---------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["completions", "conversations", "messages"])
async def test_a_cancelled_save_keeps_all_or_nothing_and_loses_no_connection(
    store: PostgresStore, database_url: str, table: str
) -> None:
    """Cancelled at any statement, a save leaves no row, unless the server has been told to commit
    already, and no connection out of the pool."""
    record = make_record(request={"tools": [{"type": "function"}]})
    whole = {**ONE_ANSWER, "tool_sets": 1}
    with locked(database_url, table):
        saving = asyncio.create_task(store.save([record]))
        await until_blocked(database_url)
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert NOTHING == counts(database_url)
    await until_no_backend(database_url)
    assert counts(database_url) == (whole if table == "messages" else NOTHING)
    for _ in range(5):  # more often than there are connections
        await store.save([record])
    assert 1 == counts(database_url)["completions"]


async def test_saves_cancelled_at_random_moments_are_whole_or_absent(
    store: PostgresStore, database_url: str
) -> None:
    """Wherever a cancellation hits, a completion has all of its messages or doesn't exist."""
    for step in range(40):
        saving = asyncio.create_task(store.save([make_record(user(f"Question {step}"))]))
        await asyncio.sleep(step / 5_000)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
    await store.check()
    await asyncio.sleep(0.1)
    kept = counts(database_url)
    assert 2 * kept["completions"] == kept["messages"]


# --- servers that refuse --------------------------------------------------------------------


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


# --- collisions -----------------------------------------------------------------------------


async def test_many_writers_of_the_same_records_keep_each_once(database_url: str) -> None:
    """Any number of connections may save overlapping records in any order, at once."""
    history: list[dict[str, Any]] = []
    records = []
    for turn in range(12):
        history = [*history, user(f"Question {turn}")]
        tools = [{"type": "function", "number": turn % 3}]
        records.append(make_record(*history, answer=f"Answer {turn}", request={"tools": tools}))
        history = [*history, {"role": "assistant", "content": f"Answer {turn}"}]
    stores = [await PostgresStore.open(database_url, pool_max_size=4) for _ in range(2)]
    calls = [
        stores[number % 2].save(records[number % 12 :] + records[: number % 12][::-1])
        for number in range(24)
    ]
    await asyncio.gather(*calls)
    assert {"conversations": 1, "tool_sets": 3, "completions": 12, "messages": 24} == counts(
        database_url
    )
    for store in stores:
        await store.close()


async def test_opposite_orders_are_no_deadlock(store: PostgresStore, database_url: str) -> None:
    """Two saves of the same records, one the other way round, wait for each other."""
    first, middle, last = make_record(), make_record(), make_record()
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO completions (completion_id, conversation_id, owner, agent, model, state,"
            " usage_source, token_count, chunk_count, duration_ms, trace_id, request, created_at,"
            " finished_at) VALUES (%s, '', '', '', '', 'failed', 'unknown', 0, 0, 0, '', '{}',"
            " now(), now())",
            (middle.completion_id,),
        )
        one = asyncio.create_task(store.save([first, middle, last]))
        await until_blocked(database_url)
        other = asyncio.create_task(store.save([last, first]))
        await asyncio.sleep(0.1)
        connection.rollback()
    await asyncio.gather(one, other)
    assert 3 == counts(database_url)["completions"]


async def test_a_chat_grows_by_the_turn(store: PostgresStore, database_url: str) -> None:
    """A chat that is resent whole each time keeps two messages per turn."""
    history: list[dict[str, Any]] = []
    for turn in range(20):
        history = [*history, user(f"Question {turn}")]
        await store.save([make_record(*history, answer=f"Answer {turn}")])
        history = [*history, assistant(f" Answer {turn}\n")]
    assert {"conversations": 1, "tool_sets": 0, "completions": 20, "messages": 40} == counts(
        database_url
    )


SAVE_IN_A_PROCESS = """
import asyncio, sys
from db.postgres.store import PostgresStore
from tests.db.records import make_record

async def main():
    store = await PostgresStore.open(sys.argv[1])
    await store.check()
    records = [make_record(answer=f"Answer {number}") for number in range(50)]
    print("ready", flush=True)
    sys.stdin.readline()
    for record in records:
        await store.save([record])
    await store.close()

asyncio.run(main())
"""


def test_two_processes_saving_the_same_ids_at_once_keep_one_copy(database_url: str) -> None:
    """Of the same record saved by two processes at the same time, one copy is kept; no error."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SAVE_IN_A_PROCESS, database_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [("", None), ("", None)] == [process.communicate(timeout=30) for process in processes]
    assert [0, 0] == [process.returncode for process in processes]
    assert {"conversations": 1, "tool_sets": 0, "completions": 50, "messages": 51} == counts(
        database_url
    )
