"""Reading and deleting where it takes a real server: races, growth, size, and agreement with the
plain store in memory over many random walks."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from db.memory.store import MemoryStore
from db.postgres import saving
from db.postgres.store import PostgresStore
from db.rows.history import rows_of
from db.store import CompletionFilter, Paging, Store, UnknownCursor
from statemachine import SessionRecord
from tests.conftest import execute
from tests.db.postgres.test_store import backends, locked, until_blocked
from tests.db.records import assistant, make_partial, make_record, user

HIDDEN = {"store": False}
TOOLS = [{"type": "function", "function": {"name": "look"}}]
TABLES = ("conversations", "completions", "messages", "tool_sets", "completion_labels")


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    opened = await PostgresStore.open(database_url, pool_max_size=8)
    yield opened
    await opened.close()


def rows_left(dsn: str) -> dict[str, int]:
    """How many rows each table has, those that have any."""
    counts = {name: execute(dsn, f"SELECT count(*) FROM {name}")[0][0] for name in TABLES}
    return {name: count for name, count in counts.items() if count}


async def prompt(store: Store, record: SessionRecord) -> list[Any] | None:
    page = await store.list_prompt("alice", record.completion_id, Paging(100))
    return None if page is None else [row.message for row in page.items]


# --- races ------------------------------------------------------------------------------------


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


async def test_a_page_is_of_one_moment(store: PostgresStore) -> None:
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


async def test_no_answer_costs_a_connection(store: PostgresStore, database_url: str) -> None:
    """What isn't there, an unknown cursor included, leaves the connection as good as it was."""
    await store.save([make_record()])
    before = backends(database_url)
    with pytest.raises(UnknownCursor):
        await store.list_completions("alice", CompletionFilter(), Paging(1, "unknown"))
    assert await store.view("alice", "unknown") is None
    assert await store.set_metadata("alice", "unknown", {}) is None
    assert not await store.delete("alice", "unknown")
    assert before == backends(database_url)


# --- size and growth --------------------------------------------------------------------------


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
        await save(Counting(cursor), *arguments)

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


# --- the same as in memory --------------------------------------------------------------------


def random_record(chance: random.Random, threads: list[list[dict[str, Any]]]) -> SessionRecord:
    """A turn of one of the threads, which it adds to: new, edited, regenerated, cut, hidden."""
    history = [*chance.choice(threads), user(chance.choice("PQ"))]
    if chance.random() < 0.2:
        history = [{"role": "system", "content": "S"}, *history]
    text = chance.choice("XY")
    answers = (text, "Z") if chance.random() < 0.2 else (text,)
    make = make_partial if chance.random() < 0.2 else make_record
    fields: dict[str, Any] = {"choices": ()} if chance.random() < 0.15 else {}
    request = {
        "parameters": HIDDEN if chance.random() < 0.25 else {},
        "metadata": {"a": chance.choice("12")} if chance.random() < 0.5 else None,
        "tools": TOOLS if chance.random() < 0.3 else None,
    }
    threads.append([*history, assistant(text)])
    return make(*history, answer=answers, request=request, **fields)


async def everything(store: Store, conversations: set[str]) -> list[Any]:
    """All that can be seen of a store, in one value."""
    seen: list[Any] = []
    for wanted in (CompletionFilter(), CompletionFilter(metadata={"a": "1"})):
        page = await store.list_completions("alice", wanted, Paging(100))
        seen.append(page)
    for view in page.items:
        name = view.completion.completion_id
        seen.append((name, await store.list_prompt("alice", name, Paging(100))))
    seen.append(await store.list_conversations("alice", Paging(100)))
    for name in sorted(conversations):
        seen.append((name, await store.view_conversation("alice", name, Paging(1000))))
    return seen


@pytest.mark.parametrize("seed", range(6))
async def test_both_stores_agree(store: PostgresStore, database_url: str, seed: int) -> None:
    """After every step of a random walk PostgreSQL shows what the plain store shows; in the end
    nothing visible is left in either."""
    chance, plain = random.Random(seed), MemoryStore()
    threads: list[list[dict[str, Any]]] = [[]]
    records: list[SessionRecord] = []
    conversations: set[str] = set()
    for _ in range(20):
        if records and chance.random() < 0.35:
            name = chance.choice(records).completion_id
            assert await plain.delete("alice", name) == await store.delete("alice", name)
        else:
            batch = [random_record(chance, threads) for _ in range(chance.choice((1, 1, 2)))]
            records += batch
            conversations |= {rows_of(each).conversation.conversation_id for each in batch}
            for each in (plain, store):
                await each.save(batch)
        assert await everything(plain, conversations) == await everything(store, conversations)
    for record in records:
        for each in (plain, store):
            await each.delete("alice", record.completion_id)
    seen = await everything(store, conversations)
    assert await everything(plain, conversations) == seen
    assert [(name, None) for name in sorted(conversations)] == seen[3:]
    hidden = [record for record in records if record.request.parameters]
    if not hidden:
        assert {} == rows_left(database_url)
    for record in hidden:
        found = await store.find(record.completion_id)
        assert found is not None and found.prompt_digest is not None
        thread = await store.thread(found.prompt_digest)
        assert record.request.messages == [{"role": m.role, "content": m.content} for m in thread]
