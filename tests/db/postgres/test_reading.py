"""Reading on a real server: beside writers, with large answers, and without losing connections."""

import asyncio
from contextlib import closing

import psycopg2
import pytest

from db.postgres.store import PostgresStore
from db.rows.history import rows_of
from db.store import CompletionFilter, Paging, UnknownCursor
from tests.db.postgres.servers import backends, until_blocked
from tests.db.records import make_record, user


async def test_a_page_shows_one_moment(store: PostgresStore) -> None:
    """No completion on a page is without its answer, whatever is deleted while it is read."""
    records = [make_record(user(f"{number}")) for number in range(30)]
    await store.save(records)

    async def delete_all() -> None:
        for record in records:
            await store.delete("alice", record.completion_id)

    deleting = asyncio.create_task(delete_all())
    while not deleting.done():
        page = await store.list_completions("alice", CompletionFilter(), Paging(100))
        assert all(view.choices for view in page.items)
    await deleting


async def test_readers_keep_no_save_waiting(database_url: str) -> None:
    """However many read, and however slowly, a save finds a connection."""
    store = await PostgresStore.open(database_url, pool_max_size=2, timeout_seconds=5)
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE completion_labels IN ACCESS EXCLUSIVE MODE")
        wanted = CompletionFilter(metadata={"a": "b"})
        reads = [
            asyncio.create_task(store.list_completions("alice", wanted, Paging(1)))
            for _ in range(5)
        ]
        await until_blocked(database_url)
        async with asyncio.timeout(2):
            await store.save([make_record()])
        assert not any(read.done() for read in reads)
    await asyncio.gather(*reads)
    await store.close()


async def test_finding_nothing_costs_no_connection(store: PostgresStore, database_url: str) -> None:
    """What isn't there, an unknown cursor included, leaves the connection as good as it was."""
    await store.save([make_record()])
    before = backends(database_url)
    with pytest.raises(UnknownCursor):
        await store.list_completions("alice", CompletionFilter(), Paging(1, "unknown"))
    assert await store.view("alice", "unknown") is None
    assert await store.set_metadata("alice", "unknown", {}) is None
    assert not await store.delete("alice", "unknown")
    assert before == backends(database_url)


async def test_large_answers_make_small_pages(store: PostgresStore) -> None:
    """However long the texts, a page holds few megabytes, or one item; none is left out."""
    big = [make_record(user(f"{n}"), answer=f"{n}" * 1_500_000) for n in range(5)]
    huge = make_record(user("x" * 9_000_000), answer="y" * 9_000_000)
    await store.save([*big, huge])
    sizes, after = [], None
    while True:
        page = await store.list_completions("alice", CompletionFilter(), Paging(100, after))
        sizes.append(len(page.items))
        after = page.items[-1].completion.completion_id
        if not page.has_more:
            break
    assert [2, 2, 1, 1] == sizes
    conversation = rows_of(huge).conversation.conversation_id
    view = await store.view_conversation("alice", conversation, Paging(100))
    assert view is not None
    assert (1, True) == (len(view.nodes.items), view.nodes.has_more)
