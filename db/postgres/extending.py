"""Saves records, and puts longer ones in the place of rows that are known to lack something.

Never sees to connections or errors. `db.rows.extending` says when a record is a longer truth.

1. A usual save isn't touched by this: only what was there already when it was saved is looked at, after
   that save's commit.
2. Each row is replaced in one transaction: the answer, its tape, how it ended, what it cost. What its owner
   has changed since, its metadata, stays.
3. A replacement locks the conversation's row, as a deletion does, before the completion's: so of two at once
   the second finds the first's row, and a deletion is over or hasn't begun.
4. An answer that others go on from as it was stays, as what their clients sent.
"""

import asyncio
from collections.abc import Sequence
from math import ceil
from typing import Any, Final

import structlog

from db.postgres import changing, reading, saving, sql
from db.postgres.saving import Cursor
from db.rows.extending import PROCESS_DIED, goes_on, has_more
from db.rows.history import RecordRows
from db.rows.tapes import TapeColumns

log = structlog.get_logger(__name__)

_OPEN: Final = f"state = 'failed' AND error->>'code' = '{PROCESS_DIED}' AND error->>'kind' IS NULL"
_TOLD_OF_CALLS: Final = (
    "(SELECT count(*) + count(*) FILTER (WHERE outcome <> 'unknown') FROM tool_calls"
    " WHERE tool_calls.completion_id = completions.completion_id)"
)
_CANDIDATES: Final = (
    f"SELECT completion_id, conversation_id, chunk_count, {_TOLD_OF_CALLS} FROM completions"
    f" WHERE completion_id = ANY (%(completion_ids)s::text[]) AND {_OPEN}"
)
_LOCK: Final = (
    f"SELECT tape::text, encode(tape_lengths, 'hex'), {_TOLD_OF_CALLS},"
    f" {sql.select_list(sql.COMPLETIONS)} FROM completions"
    f" WHERE completion_id = %(completion_id)s AND {_OPEN} FOR UPDATE"
)
_DELETE_ANSWERS: Final = "DELETE FROM messages WHERE completion_id = %(completion_id)s"
_DELETE_CALLS: Final = "DELETE FROM tool_calls WHERE completion_id = %(completion_id)s"
_KEPT: Final = frozenset(
    (
        "conversation_id",
        "owner",
        "model",
        "trace_id",
        "request_id",
        "request",
        "tools_digest",
        "metadata",
        "prompt_digest",
        "created_at",
        "hidden",
    )
)
"""The columns that stay: what was asked, and what its owner made of it."""
_COLUMNS: Final = {name: kind for name, kind in sql.SAVED_COMPLETIONS.items() if name not in _KEPT}
_UPDATE: Final = sql.update("completions", "completion_id", _COLUMNS)
_TOUCH_CONVERSATION: Final = (
    "UPDATE conversations SET updated_at = greatest(updated_at, to_timestamp(%(at)s))"
    " WHERE conversation_id = %(conversation_id)s"
)


async def save(cursor: Cursor, batch: Sequence[RecordRows], timeout_seconds: float) -> None:
    """Do what `db.postgres.saving.save` does, and then replace rows that records have more than."""
    there = await saving.save(cursor, batch, timeout_seconds)
    if not there:
        return
    rows = {each.completion.completion_id: each for each in there}
    for completion_id, conversation_id, *count in await reading.ask(
        cursor, _CANDIDATES, completion_ids=list(rows)
    ):
        if has_more(rows[completion_id], *count):
            await cursor.execute(sql.begin(ceil(timeout_seconds * 1000)))
            is_replaced = await _replace(cursor, conversation_id, rows[completion_id])
            await cursor.execute("COMMIT" if is_replaced else "ROLLBACK")


async def _replace(cursor: Cursor, conversation_id: str, new: RecordRows) -> bool:
    """Replace a row. False if that isn't to be."""
    key: dict[str, Any] = {
        "completion_id": new.completion.completion_id,
        "conversation_id": conversation_id,
    }
    await cursor.execute(changing.LOCK_CONVERSATION, key)
    found = await reading.ask(cursor, _LOCK, **key)
    if not found:
        return False  # deleted, or somebody else came first
    tape, lengths, told_of_calls, *columns = found[0]
    row = sql.completion_from(columns)
    answers = [sql.message_from(each) for each in await reading.ask(cursor, sql.ANSWER, **key)]
    known = None if tape is None else TapeColumns(tape.encode(), lengths)
    if not has_more(new, row.chunk_count, told_of_calls):
        return False
    if not await asyncio.to_thread(goes_on, new, row, answers, known):
        log.error("longer record contradicts the stored one", completion_id=row.completion_id)
        return False
    await changing.keep_followed_answers(cursor, key, {each.digest for each in new.answers})
    await cursor.execute(_DELETE_ANSWERS, key)
    if new.answers:
        await cursor.execute(await _worded(sql.INSERT_MESSAGES, sql.MESSAGES, new.answers))
    await cursor.execute(_DELETE_CALLS, key)
    if new.tool_calls:
        await cursor.execute(await _worded(sql.INSERT_TOOL_CALLS, sql.TOOL_CALLS, new.tool_calls))
    await cursor.execute(await _worded(_UPDATE, _COLUMNS, [new.saved_completion]))
    await cursor.execute(_TOUCH_CONVERSATION, {**key, "at": new.completion.finished_at})
    log.info("longer record kept", completion_id=row.completion_id, chunks=row.chunk_count)
    return True


async def _worded(statement: str, columns: sql.Columns, rows: Sequence[Any]) -> bytes:
    return await asyncio.to_thread(sql.with_rows, statement, columns, rows)
