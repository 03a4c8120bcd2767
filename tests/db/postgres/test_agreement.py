"""PostgreSQL and the plain store in memory show the same after every step of a random walk."""

import random
from typing import Any

import pytest

from db.memory.store import MemoryStore
from db.postgres.store import PostgresStore
from db.rows.history import rows_of
from db.store import CompletionFilter, Paging, Store
from statemachine import SessionRecord
from tests.db.postgres.servers import rows_left
from tests.db.records import assistant, make_partial, make_record, user
from tests.db.views import TOOLS

HIDDEN = {"store": False}


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
async def test_both_stores_show_the_same(
    store: PostgresStore, database_url: str, seed: int
) -> None:
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
