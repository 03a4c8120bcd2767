"""Deletions on a real server, beside saves and other deletions of the same rows."""

import asyncio
import random
from contextlib import closing
from typing import Any

import psycopg2
from attrs import evolve

from db.journal.replay import PROCESS_DIED
from db.postgres.store import PostgresStore
from db.rows.history import rows_of
from db.store import Paging, Store
from statemachine import ParsedChunk, SessionRecord
from tests.db.postgres.servers import locked, rows_left, until_blocked
from tests.db.records import assistant, make_record, user
from tests.db.tapes import record_of
from tests.db.views import TOOLS
from tests.statemachine.conftest import text_chunk


async def prompt(store: Store, record: SessionRecord) -> list[Any] | None:
    page = await store.list_prompt("alice", record.completion_id, Paging(100))
    return None if page is None else [row.message for row in page.items]


async def test_a_deletion_waits_for_a_save_that_builds_on_it(
    store: PostgresStore, database_url: str
) -> None:
    """A follow-up that is being saved keeps what it found there."""
    first = make_record(user("A"), answer="B")
    second = make_record(user("A"), assistant("B"), user("C"))
    await store.save([first])
    with locked(database_url, "messages"):  # it has looked what is there, and can't write yet
        saving = asyncio.create_task(store.save([second]))
        await until_blocked(database_url)
        deleting = asyncio.create_task(store.delete("alice", first.completion_id))
        await asyncio.sleep(0.2)
    await saving
    assert await deleting
    assert second.request.messages == await prompt(store, second)


async def test_a_save_waits_for_a_deletion_of_what_it_builds_on(
    store: PostgresStore, database_url: str
) -> None:
    """A follow-up that comes during the deletion brings again what the deletion takes away."""
    first = make_record(user("A"), answer="B", request={"tools": TOOLS})
    second = make_record(user("A"), assistant("B"), user("C"), request={"tools": TOOLS})
    await store.save([first])
    with locked(database_url, "deletions"):  # it has the conversation, and can't go on yet
        deleting = asyncio.create_task(store.delete("alice", first.completion_id))
        await until_blocked(database_url)
        saving = asyncio.create_task(store.save([second]))
        await asyncio.sleep(0.2)
        assert not saving.done()
    assert await deleting
    await saving
    assert second.request.messages == await prompt(store, second)
    view = await store.view("alice", second.completion_id)
    assert view is not None and TOOLS == view.tools


async def test_a_deletion_and_a_second_save_end_deleted(
    store: PostgresStore, database_url: str
) -> None:
    """A record that is saved again in the moment of its deletion doesn't come back."""
    record = make_record()
    await store.save([record])
    with locked(database_url, "messages"):  # the completion's row is gone, and not committed
        deleting = asyncio.create_task(store.delete("alice", record.completion_id))
        await until_blocked(database_url)
        saving = asyncio.create_task(store.save([record]))
        await asyncio.sleep(0.2)
    assert await deleting
    await saving
    assert {} == rows_left(database_url)


async def test_tools_in_use_elsewhere_stay(store: PostgresStore, database_url: str) -> None:
    """A save that found its tools there has them, whatever is deleted in another conversation."""
    first = make_record(user("A"), request={"tools": TOOLS})
    second = make_record(user("B"), request={"tools": TOOLS})
    await store.save([first])
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        sent = rows_of(second).sent[0]  # a row that is there and yet not: the save waits for it
        cursor.execute(
            "INSERT INTO messages"
            " (message_id, conversation_id, role, state, digest, created_at)"
            " VALUES (%s, %s, 'user', 'complete', %s, now())",
            (sent.message_id, sent.conversation_id, sent.digest),
        )
        saving = asyncio.create_task(store.save([second]))
        await until_blocked(database_url)
        deleting = asyncio.create_task(store.delete("alice", first.completion_id))
        await asyncio.sleep(0.2)
        connection.rollback()
    await asyncio.gather(saving, deleting)
    view = await store.view("alice", second.completion_id)
    assert view is not None and TOOLS == view.tools
    assert await store.delete("alice", second.completion_id)
    assert {} == rows_left(database_url)


async def test_two_deletions_delete_once(store: PostgresStore) -> None:
    """Of several that delete the same completion at once, one did."""
    record = make_record()
    await store.save([record])
    done = await asyncio.gather(*(store.delete("alice", record.completion_id) for _ in range(4)))
    assert 1 == sum(done)


async def test_saves_and_deletions_in_one_conversation_at_once(
    store: PostgresStore, database_url: str
) -> None:
    """Whatever is saved and deleted beside each other, every completion that is left has its
    whole prompt, and when all are deleted nothing is left."""
    chance = random.Random(7)
    records: list[SessionRecord] = []
    threads: list[list[dict[str, Any]]] = [[]]
    for turn in range(40):
        history = [*chance.choice(threads), user(f"Q{turn % 7}")]
        records.append(make_record(*history, answer=f"A{turn % 3}", request={"tools": TOOLS}))
        threads.append([*history, assistant(f"A{turn % 3}")])

    async def live(record: SessionRecord) -> None:
        await asyncio.sleep(chance.random() / 20)
        await store.save([record])
        if chance.random() < 0.6:
            await asyncio.sleep(chance.random() / 20)
            assert await store.delete("alice", record.completion_id)
            await store.save([record])

    await asyncio.gather(*(live(record) for record in records))
    for record in records:
        found = await prompt(store, record)
        assert found is None or record.request.messages == found
    await asyncio.gather(*(store.delete("alice", record.completion_id) for record in records))
    assert {} == rows_left(database_url)


async def test_a_longer_record_waits_for_a_deletion(
    store: PostgresStore, database_url: str
) -> None:
    """What is being deleted isn't extended, and neither waits for the other for ever."""
    short = record_of(ParsedChunk(text_chunk("One")), failure=PROCESS_DIED)
    longer = record_of(ParsedChunk(text_chunk("One")), ParsedChunk(text_chunk(" two")))
    await store.save([short])
    with locked(database_url, "deletions"):  # it has the conversation, and can't go on yet
        deleting = asyncio.create_task(store.delete("alice", short.completion_id))
        await until_blocked(database_url)
        saving = asyncio.create_task(store.save([evolve(longer, request=short.request)]))
        await asyncio.sleep(0.2)
        assert not saving.done()
    assert await deleting
    await saving
    assert await store.find(short.completion_id) is None
    assert {} == rows_left(database_url)
