"""A save, step by step: many records in one transaction. Called by `db.postgres`, which sees to
connections and errors; whoever loses the connection midway has saved nothing.

1. The completions go first. Only those that turn out to be new get anything else written.
2. What is there already isn't sent: a long chat comes with all of its history every time, and
   every request with the same tools.
3. All transactions take their locks in the same order, table by table and key by key, so that
   two that save the same rows wait for each other instead of deadlocking.
4. Rows go out by the hundred: to quote thousands in one go would hold up every stream.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from typing import Any, Protocol, TypeVar

from attrs import evolve

from db import sql
from db.history import ConversationRow, RecordRows, rows_of
from db.store import RecordRejected
from statemachine import SessionRecord

_ROWS_PER_STATEMENT = 100
_DIGESTS_PER_STATEMENT = 2_000
_LONG_CHAT = 200
"""Messages from which on a request's rows are made in a thread: it takes milliseconds."""

_T = TypeVar("_T")


class Cursor(Protocol):
    """As much of a cursor as a save needs."""

    async def execute(self, operation: str, parameters: Any = None) -> None: ...

    async def fetchall(self) -> list[tuple[Any, ...]]: ...


async def rows_of_all(records: Sequence[SessionRecord]) -> list[RecordRows]:
    """Each record's rows; of several records with one id, the first one's.

    Raises:
        RecordRejected: a record isn't what it should be, and never will be.
    """
    batch: dict[str, RecordRows] = {}
    for record in records:
        if record.completion_id in batch:
            continue
        try:
            if len(record.request.messages) < _LONG_CHAT:
                batch[record.completion_id] = rows_of(record)
                await asyncio.sleep(0)
            else:
                batch[record.completion_id] = await asyncio.to_thread(rows_of, record)
        except Exception as error:
            raise RecordRejected(
                f"{record.completion_id!r} can't be made into rows: {type(error).__name__}"
            ) from error
    return list(batch.values())


async def save(cursor: Cursor, batch: Sequence[RecordRows], timeout_seconds: float) -> None:
    """Write what is new of the batch, and commit.

    The server itself gives up after `timeout_seconds` without progress: it doesn't notice that a
    client has gone while it waits for a lock, and those who wait for nobody would pile up.
    """
    await cursor.execute(sql.BEGIN, {"timeout_ms": ceil(timeout_seconds * 1000)})
    inserted: set[str] = set()
    completions = sorted((rows.completion for rows in batch), key=lambda row: row.completion_id)
    for chunk in _chunks(completions, _ROWS_PER_STATEMENT):
        await cursor.execute(sql.INSERT_COMPLETIONS, sql.arrays(sql.COMPLETIONS, chunk))
        inserted.update(completion_id for (completion_id,) in await cursor.fetchall())
    if new := [rows for rows in batch if rows.completion.completion_id in inserted]:
        conversations = _merged(rows.conversation for rows in new)
        await _insert(cursor, sql.UPSERT_CONVERSATIONS, sql.CONVERSATIONS, conversations)
        await _save_tools_and_messages(cursor, new)
    await cursor.execute("COMMIT")


async def _save_tools_and_messages(cursor: Cursor, new: Sequence[RecordRows]) -> None:
    tool_sets = {rows.tool_set.digest: rows.tool_set for rows in new if rows.tool_set}
    sent = {message.digest: message for rows in reversed(new) for message in rows.sent}
    answers = [answer for rows in new for answer in rows.answers]
    known = {answer.digest for answer in answers}
    for digests in _chunks([*tool_sets, *sent], _DIGESTS_PER_STATEMENT):
        await cursor.execute(sql.KNOWN_DIGESTS, {"digests": digests})
        known.update(digest for (digest,) in await cursor.fetchall())
    unknown_tools = [tool_sets[digest] for digest in sorted(tool_sets.keys() - known)]
    await _insert(cursor, sql.INSERT_TOOL_SETS, sql.TOOL_SETS, unknown_tools)
    messages = answers + [sent[digest] for digest in sent.keys() - known]
    messages.sort(key=lambda row: row.message_id)
    await _insert(cursor, sql.INSERT_MESSAGES, sql.MESSAGES, messages)


async def _insert(
    cursor: Cursor, statement: str, columns: Mapping[str, str], rows: Sequence[Any]
) -> None:
    for chunk in _chunks(rows, _ROWS_PER_STATEMENT):
        await cursor.execute(statement, sql.arrays(columns, chunk))


def _merged(conversations: Iterable[ConversationRow]) -> list[ConversationRow]:
    """One row per conversation, from its first beginning to its last end, by id."""
    merged: dict[str, ConversationRow] = {}
    for row in conversations:
        other = merged.get(row.conversation_id, row)
        merged[row.conversation_id] = evolve(
            row,
            created_at=min(row.created_at, other.created_at),
            updated_at=max(row.updated_at, other.updated_at),
        )
    return [merged[conversation_id] for conversation_id in sorted(merged)]


def _chunks(rows: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
