"""Looking over everybody's completions in PostgreSQL: bounded work, and time."""

import time
from collections.abc import AsyncIterator
from contextlib import closing

import psycopg2
import pytest

from db.overview import Sought
from db.postgres import overview_sql
from db.postgres.store import PostgresStore
from db.store import TooSlow
from tests.db.records import make_record


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    opened = await PostgresStore.open(database_url)
    yield opened
    await opened.close()


async def test_a_rare_pair_of_common_things_is_found_in_steps(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page looks at so many rows and no more: it may come empty, and says where to go on."""
    monkeypatch.setattr(overview_sql, "LOOKED_AT", 3)
    records = [
        make_record(request={"owner": "abc"[number % 3], "model": "xy"[number // 6]})
        for number in range(12)
    ]
    await store.save(records)
    sought = Sought(owner="a", model="x")
    expected = [r.completion_id for r in reversed(records[:6]) if r.request.owner == "a"]
    found, pages, after = list[str](), 0, None
    while True:
        stretch = await store.list_all(sought, 5, after)
        found += [row.completion_id for row in stretch.items]
        pages += 1
        if (after := stretch.next) is None:
            break
    assert expected == found
    assert pages > 1


def test_a_conversations_page_is_read_along_its_index(database_url: str) -> None:
    """In the list's order: nothing is sorted, however long the conversation."""
    statement = overview_sql.page("conversation_id", Sought(conversation_id="c"), None)
    with closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute(overview_sql.PLANNER)
        cursor.execute(f"EXPLAIN {statement}", {"conversation_id": "c", "limit": 21})
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Backward using completions_everybodys_by_conversation_idx" in plan
    assert "Sort" not in plan


async def test_a_slow_call_is_given_up(store: PostgresStore, database_url: str) -> None:
    """After two seconds by the server itself, and the store goes on."""
    record = make_record()
    await store.save([record])
    with closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLE completions IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        with pytest.raises(TooSlow):
            await store.list_all(Sought(), 5)
        assert 1.5 < time.monotonic() - began < 3.5
    assert 1 == len((await store.list_all(Sought(), 5)).items)
