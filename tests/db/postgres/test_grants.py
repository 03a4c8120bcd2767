"""The rights that the documents tell operators to grant are those that every call needs."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from db.dead_letters import DeadLetters, _retry
from db.migrate import migrate
from db.postgres.readiness import RIGHTS
from db.postgres.store import PostgresStore
from db.store import CompletionFilter, Paging
from tests.db.records import make_record, user
from tests.postgres import execute

DOCUMENT = Path(__file__).parents[3] / "docs" / "operations.md"


def documented() -> list[str]:
    return re.findall(
        r'-c "(CREATE ROLE teller [^"]*|GRANT [^"]* TO teller)"', DOCUMENT.read_text()
    )


@pytest.fixture
async def teller(empty_database_url: str) -> AsyncIterator[str]:
    """A database's address for a user with the documented rights and no others."""
    migrate(empty_database_url)
    for statement in ("DROP OWNED BY teller", "DROP ROLE teller"):
        if execute(empty_database_url, "SELECT FROM pg_roles WHERE rolname = 'teller'"):
            execute(empty_database_url, statement)
    for statement in documented():
        execute(empty_database_url, statement)
    yield empty_database_url.replace("//postgres@", "//teller@")
    execute(empty_database_url, "DROP OWNED BY teller")


def test_the_grants_are_found() -> None:
    """Role, schema, reading and writing: four statements."""
    assert 4 == len(documented())


async def test_the_documented_rights_do_for_every_call(teller: str, tmp_path: Path) -> None:
    """Checking, saving, reading, changing, deleting, dead letters; and the migration that each start
    tries."""
    assert [] == migrate(teller)
    store = await PostgresStore.open(teller)
    await store.check()
    request = {"tools": [{"type": "function"}], "metadata": {"k": "v"}}
    hidden = make_record(user("Hello"), request={**request, "parameters": {"store": False}})
    first, second = (make_record(user("Hello"), request=request) for _ in range(2))
    for record in (hidden, first, second):
        await store.save([record])
        await store.save([record])
    owner, name = first.request.owner, first.completion_id
    found = await store.find(name)
    assert found is not None
    assert await store.answer(name)
    assert await store.thread(found.prompt_digest or "")
    assert await store.view(owner, name) is not None
    assert await store.list_prompt(owner, name, Paging(9)) is not None
    assert await store.set_metadata(owner, name, {"k": "w"}) is not None
    page = await store.list_completions(owner, CompletionFilter(metadata={"k": "w"}), Paging(9))
    assert [name] == [view.completion.completion_id for view in page.items]
    (conversation, *_) = (await store.list_conversations(owner, Paging(9))).items
    assert await store.view_conversation(owner, conversation.conversation_id, Paging(9))
    assert await store.delete(owner, name)
    assert await store.delete(owner, second.completion_id)
    letters = DeadLetters(tmp_path)
    letters.add(make_record(user("late")), "why not")
    assert 0 == await _retry(letters, teller)
    await store.close()


async def test_no_right_is_asked_for_in_vain(empty_database_url: str) -> None:
    """Without any one of the rights that the check names, saves do fail: ready is not too strict."""
    migrate(empty_database_url)
    execute(empty_database_url, "DROP ROLE IF EXISTS miser; CREATE ROLE miser LOGIN")
    everything = "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO miser"
    store = await PostgresStore.open(empty_database_url.replace("//postgres@", "//miser@"))
    for table, rights in RIGHTS.items():
        for right in rights:
            execute(empty_database_url, f"{everything}; REVOKE {right} ON {table} FROM miser")
            with pytest.raises(Exception, match=f"GRANT {right} ON public.{table} TO miser"):
                await store.check()
    execute(empty_database_url, everything)
    await store.check()
    await store.close()
    execute(empty_database_url, "DROP OWNED BY miser")
