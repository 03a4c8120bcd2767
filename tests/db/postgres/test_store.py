"""What only a real server can do to a call of the store: vanish, restart, hang, be cancelled."""

import asyncio
import contextvars
import os
import signal
import socket
from contextlib import closing
from pathlib import Path

import aiopg
import pytest

from db.embedded import EmbeddedPostgres
from db.migrate import migrate
from db.postgres.store import PostgresStore
from db.store import StoreUnavailable
from tests.db.postgres.servers import (
    NOTHING,
    ONE_ANSWER,
    backends,
    counts,
    locked,
    until_blocked,
    until_no_backend,
)
from tests.db.records import make_record, user
from tests.postgres import UNSAFE_BUT_FAST, execute


async def fill_pool(store: PostgresStore) -> None:
    await asyncio.gather(*(store.find("x") for _ in range(20)))


# --- connections that die ---------------------------------------------------------------------


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


async def test_whoever_comes_first_after_all_connections_died_gets_a_new_one(
    store: PostgresStore, database_url: str
) -> None:
    """Also a task that never connected before, as the saver's is until its first save; and once the server
    was restarted."""
    await fill_pool(store)
    for pid in backends(database_url):
        execute(database_url, f"SELECT pg_terminate_backend({pid})")
    record = make_record()
    await asyncio.create_task(store.save([record]), context=contextvars.Context())
    assert await store.find(record.completion_id) is not None


async def test_a_connection_that_the_loop_refuses_costs_no_record(
    store: PostgresStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the event loop won't watch a connection, the save is to be tried later, not given up."""

    async def refuse() -> None:
        raise RuntimeError("File descriptor 7 is used by transport")

    record = make_record()
    with monkeypatch.context() as refusing:
        refusing.setattr(store._pool, "acquire", refuse)
        with pytest.raises(StoreUnavailable, match="can't be used: File descriptor 7"):
            await store.save([record])
    await store.save([record])
    assert ONE_ANSWER == counts(database_url)


async def test_a_cancelling_that_comes_with_the_answer_is_not_forgotten(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is told to end ends, also if it is told so as its answer comes."""
    create_waiter = aiopg.Connection._create_waiter

    def cancelling(connection: aiopg.Connection, name: str) -> "asyncio.Future[None]":
        waiter = create_waiter(connection, name)
        waiter.add_done_callback(lambda _: task.cancel())
        return waiter

    await store.find("x")
    task = asyncio.create_task(store.find("x"))
    monkeypatch.setattr(aiopg.Connection, "_create_waiter", cancelling)
    await asyncio.wait((task,))
    monkeypatch.undo()
    assert task.cancelled()
    assert await store.find("x") is None


async def test_a_save_whose_connection_is_cut_is_done_again_on_another(
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


async def test_a_store_that_is_not_started_is_unavailable(database_url: str) -> None:
    """It can be made before its database's address is known; it takes calls from `start` on."""
    store = PostgresStore()
    await store.close()
    with pytest.raises(StoreUnavailable, match="not open yet"):
        await store.check()
    await store.start(database_url)
    await store.check()
    await store.close()


# --- servers that hang ------------------------------------------------------------------------


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


# One that aiopg 1.4.0 hands over in the very moment in which its caller gives up is left to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_wait_for_a_connection_is_bounded(database_url: str) -> None:
    """When all connections are busy for too long, the call that waits gives up."""
    store = await PostgresStore.open(database_url, pool_max_size=1, timeout_seconds=0.5)
    with locked(database_url, "completions"):
        results = await asyncio.gather(
            *(store.save([make_record()]) for _ in range(3)), return_exceptions=True
        )
    assert [True] * 3 == [isinstance(result, StoreUnavailable) for result in results]
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


# --- cancellation -----------------------------------------------------------------------------


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
    for _ in range(9):  # more often than there are connections
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
