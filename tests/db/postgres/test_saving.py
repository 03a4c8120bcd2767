"""Saves on a real server: many at once, and what a long chat costs."""

import asyncio
import subprocess
import sys
from collections import Counter
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from db.migrate import migrate
from db.postgres import saving
from db.postgres.store import PostgresStore
from db.rows.history import rows_of
from statemachine import ParsedChunk
from tests.db.postgres.servers import counts, rows_left, until_blocked
from tests.db.records import assistant, make_record, user
from tests.db.tapes import record_of
from tests.postgres import execute
from tests.statemachine.conftest import text_chunk

# --- collisions -------------------------------------------------------------------------------


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
from db.rows.history import rows_of
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
    assert ["", ""] == [process.communicate(timeout=30)[0] for process in processes]
    assert [0, 0] == [process.returncode for process in processes]
    assert {"conversations": 1, "tool_sets": 0, "completions": 50, "messages": 51} == counts(
        database_url
    )


# --- growth -----------------------------------------------------------------------------------


async def test_a_long_chat_costs_by_the_turn(
    store: PostgresStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a chat of 200 turns, resent whole each time, a turn adds three rows, and its save takes
    as many statements and round trips as the first turn's."""
    seen: list[Counter[str]] = []
    save = saving.save

    class Counting:
        def __init__(self, cursor: Any) -> None:
            self.cursor = cursor
            self.fetchall = cursor.fetchall
            self.mogrify = cursor.mogrify

        async def execute(self, operation: bytes) -> None:
            await self.cursor.execute(operation)
            seen[-1]["statements"] += operation.count(b"; ") + 1
            seen[-1]["round trips"] += 1

    async def counted(cursor: Any, *arguments: Any) -> None:
        seen.append(Counter())
        counting: Any = Counting(cursor)
        await save(counting, *arguments)

    monkeypatch.setattr(saving, "save", counted)
    history: list[dict[str, Any]] = []
    for turn in range(200):
        history = [*history, user(f"Question {turn}")]
        await store.save([make_record(*history, answer=f"Answer {turn}")])
        history = [*history, assistant(f"Answer {turn}")]
    expected = {"conversations": 1, "completions": 200, "messages": 400}
    assert expected == rows_left(database_url)
    assert {"statements": 8, "round trips": 2} == seen[0]  # three begin it, one commits
    assert all(count == seen[0] for count in seen)


def test_the_size_of_a_save_counts_all_its_text() -> None:
    """Contents, and what else messages hold: a save's time grows with it."""
    record = make_record(
        user("x" * 100), answer={"role": "assistant", "content": "y" * 10, "reasoning": "z" * 1000}
    )
    assert 1110 <= saving.characters_of([rows_of(record)]) < 1200
    taped = record_of(ParsedChunk(text_chunk("x"), b'{"choices":[],"odd":"%b"}' % (b"x" * 1_000)))
    assert 1000 <= saving.characters_of([rows_of(taped)]) < 1200


async def test_a_long_tape_is_worded_beside_the_streams() -> None:
    """As a long text is: putting together some 300 KB takes long enough."""
    record = record_of(*[ParsedChunk(text_chunk("x"), b" " * 3_000)] * 100)
    assert [True, False] == [
        rows.is_long for rows in await saving.rows_of_all([record, make_record()])
    ]


async def test_a_large_save_has_longer_than_other_calls(empty_database_url: str) -> None:
    """A statement of sixteen million characters may take longer than a call does, and isn't given up."""
    migrate(empty_database_url)
    execute(
        empty_database_url,
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(1.4); RETURN NEW; END $$;"
        " CREATE TRIGGER dawdle BEFORE INSERT ON completions EXECUTE FUNCTION dawdle()",
    )
    store = await PostgresStore.open(empty_database_url, timeout_seconds=1.0)
    try:
        await store.save([make_record(user("x" * 16_000_000))])
    finally:
        await store.close()
    assert [(1,)] == execute(empty_database_url, "SELECT count(*) FROM completions")
