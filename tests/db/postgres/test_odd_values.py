"""Whatever a backend says in place of a number or a text, its answer is kept: no dead letter."""

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from db.dead_letters import DeadLetters
from db.embedded import EmbeddedPostgres
from db.migrate import migrate
from db.postgres.store import PostgresStore
from db.saver import Saver
from db.store import StoreUnavailable
from statemachine import (
    ChunkReceived,
    Save,
    SessionPolicy,
    SessionRecord,
    StreamSession,
    UpstreamFinished,
)
from tests.db.records import make_record, make_request, user
from tests.db.saver.fakes import NO_JOURNAL
from tests.postgres import execute, with_database

ODD: tuple[Any, ...] = (
    *(True, False, 0, -1, 1.5, 2**31, 2**63, 10**30, -(10**30), float("nan"), float("inf"), 1e300),
    *(None, "", "1", "text\0\ud800", [], [1], {}, {"a": True}),
)


def lived(*chunks: dict[str, Any]) -> SessionRecord:
    """The record of a session that was sent these chunks, then an ordinary end."""
    request = make_request(user("Hello"))
    session = StreamSession(request, SessionPolicy())
    end = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
    effects: list[Any] = []
    for event in (*map(ChunkReceived, [*chunks, end]), UpstreamFinished()):
        effects += session.handle(event, request.created_at + 1)
        if any(isinstance(effect, Save) for effect in effects):
            break
    (record,) = (effect.record for effect in effects if isinstance(effect, Save))
    return record


def chunk(**fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": None}
    return {"id": "x", "created": 1, "model": "m", "choices": [choice], **fields}


def of_choice(**fields: Any) -> dict[str, Any]:
    return chunk(choices=[{"index": 0, "delta": {"content": "a"}, **fields}])


SPOTS = {
    "created": lambda value: chunk(created=value),
    "id": lambda value: chunk(id=value),
    "model": lambda value: chunk(model=value),
    "system_fingerprint": lambda value: chunk(system_fingerprint=value),
    "unknown field": lambda value: chunk(odd=value),
    "usage": lambda value: chunk(usage=value),
    "prompt_tokens": lambda value: chunk(usage={"prompt_tokens": value}),
    "completion_tokens": lambda value: chunk(usage={"completion_tokens": value}),
    "total_tokens": lambda value: chunk(usage={"total_tokens": value, "completion_tokens": value}),
    "index": lambda value: of_choice(index=value),
    "finish_reason": lambda value: of_choice(finish_reason=value),
    "logprobs": lambda value: of_choice(logprobs=value),
    "field of a choice": lambda value: of_choice(odd=value),
    "role": lambda value: of_choice(delta={"role": value, "content": "a"}),
    "content": lambda value: of_choice(delta={"content": value}),
    "field of a delta": lambda value: of_choice(delta={"content": "a", "odd": value}),
    "tool call": lambda value: of_choice(delta={"tool_calls": [{"index": value, "id": "t"}]}),
}


@pytest.mark.parametrize("spot", SPOTS)
async def test_no_odd_value_costs_an_answer(store: PostgresStore, spot: str) -> None:
    """Each place of a chunk, with each kind of value that has no business there."""
    # A choice's number is a number by the time that a session sees it.
    odd = ODD if spot != "index" else [value for value in ODD if isinstance(value, (int, float))]
    records = [lived(SPOTS[spot](value)) for value in odd]
    await store.save(records)
    for record in records:
        assert await store.find(record.completion_id) is not None


@pytest.mark.parametrize(
    "field", ["token_count", "upstream_created", "upstream_id", "upstream_model", "finish_reason"]
)
async def test_no_odd_field_of_a_record_costs_it(store: PostgresStore, field: str) -> None:
    """The same of a record that some other session or an old journal made."""
    records = [evolve(make_record(), **{field: value}) for value in ODD]
    await store.save(records)


async def test_a_boolean_is_no_moment(store: PostgresStore) -> None:
    """`"created": true` is a value without meaning, and none is kept."""
    record = lived(chunk(created=True))
    await store.save([record])
    found = await store.find(record.completion_id)
    assert found is not None
    assert found.upstream_created is None


async def test_what_a_fitter_database_would_take_waits_for_it(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """A text that a LATIN1 database can't hold is nobody's fault: no dead letter, and no save until
    the database can."""
    execute(postgres.dsn, "DROP DATABASE IF EXISTS narrow WITH (FORCE)")
    execute(postgres.dsn, "CREATE DATABASE narrow ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    dsn = with_database(postgres.dsn, "narrow")
    migrate(dsn)
    narrow = await PostgresStore.open(dsn)
    record = make_record(user("Żółć, 你好"))
    with pytest.raises(StoreUnavailable, match="encoded in LATIN1, which can't hold"):
        await narrow.save([record])
    saver = Saver(narrow, NO_JOURNAL, DeadLetters(tmp_path).add)
    saver.start()
    done = saver.save(record)
    left = await saver.stop(0.5)
    assert (1, False) == (left, done.done())
    assert "LATIN1" in str(saver.failure)
    assert [] == DeadLetters(tmp_path).paths()
    await narrow.close()
    execute(postgres.dsn, "DROP DATABASE narrow WITH (FORCE)")
