"""A save, step by step: many records in one transaction. Called by `db.postgres`, which sees to
connections and errors; whoever loses the connection midway has saved nothing.

1. The completions go first. Only those that turn out to be new get anything else written.
2. What is there already isn't sent: a long chat comes with all of its history every time, and
   every request with the same tools.
3. All transactions take their locks in the same order, table by table and key by key, so that
   two that save the same rows wait for each other instead of deadlocking.
4. A completion that was deleted isn't saved again. A conversation's row is locked before its
   messages are looked at, by a save as by a deletion: neither acts on what the other undoes.
5. Rows go out by the hundred: to quote thousands in one go would hold up every stream.
6. A statement without a result goes out together with the next that has one: a usual save is
   four round trips.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from typing import Any, Protocol, TypeVar

from attrs import evolve

from db import sql
from db.history import RecordRows, rows_of
from db.store import RecordRejected, StoredConversation, StoredMessage
from statemachine import SessionRecord

_ROWS_PER_STATEMENT = 100
_DIGESTS_PER_STATEMENT = 2_000
_MOST_HELD_BYTES = 1024 * 1024
_LONG_STATEMENT_BYTES = 64 * 1024
_LONG_CHAT = 200
"""Messages from which on a request's rows are made in a thread: it takes milliseconds."""

_T = TypeVar("_T")


class Cursor(Protocol):
    """As much of a cursor as a save needs."""

    async def execute(self, operation: str, parameters: Any = None) -> None: ...

    async def fetchall(self) -> list[tuple[Any, ...]]: ...

    def mogrify(self, operation: str, parameters: Any = None) -> bytes: ...


class _Outbox:
    """Statements on their way to the server, in their order."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._held: list[bytes] = []
        self._held_bytes = 0

    async def tell(self, statement: str, parameters: Any = None) -> None:
        """Send this one with a later one. It has no result, and takes effect before theirs."""
        await self._hold(statement, parameters)
        if self._held_bytes > _MOST_HELD_BYTES:
            await self.flush()

    async def ask(self, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Send this one, with all that is held, and return its rows."""
        await self._hold(statement, parameters)
        await self.flush()
        return await self._cursor.fetchall()

    async def flush(self) -> None:
        """Send what is held. Raises what the server says to the first that it refuses; the
        others are not carried out then."""
        if self._held:
            held, self._held, self._held_bytes = b"; ".join(self._held), [], 0
            await self._cursor.execute(held.decode("utf-8"))

    async def _hold(self, statement: str, parameters: Any) -> None:
        quoted = self._cursor.mogrify(statement, parameters)
        self._held.append(quoted)
        self._held_bytes += len(quoted)
        if len(quoted) > _LONG_STATEMENT_BYTES:
            await asyncio.sleep(0)  # quoting took its time


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
    outbox = _Outbox(cursor)
    while not await _try_save(outbox, batch, timeout_seconds):
        await outbox.tell("ROLLBACK")
    await outbox.flush()
    await cursor.execute("COMMIT")  # by itself: who gave up waiting has saved nothing


async def _try_save(outbox: _Outbox, batch: Sequence[RecordRows], timeout_seconds: float) -> bool:
    """All but the commit. False if one of the batch was deleted in this very moment; the next
    try knows of that."""
    await outbox.tell(sql.BEGIN, {"timeout_ms": ceil(timeout_seconds * 1000)})
    inserted: set[str] = set()
    completions = sorted((rows.completion for rows in batch), key=lambda row: row.completion_id)
    for chunk in _chunks(completions, _ROWS_PER_STATEMENT):
        rows = await outbox.ask(sql.INSERT_COMPLETIONS, sql.rows(sql.COMPLETIONS, chunk))
        inserted.update(completion_id for (completion_id,) in rows)
    new = [rows for rows in batch if rows.completion.completion_id in inserted]
    if not new:
        return True
    conversations = _merged(rows.conversation for rows in new)
    await _insert(outbox, sql.UPSERT_CONVERSATIONS, sql.CONVERSATIONS, conversations)
    tool_sets = {rows.tool_set.digest: rows.tool_set for rows in new if rows.tool_set}
    sent = _merged_messages(new)
    known = await _known(outbox, [*tool_sets, *sent], [*inserted])
    if None in known.values():
        return False
    unknown_tools = [tool_sets[digest] for digest in sorted(tool_sets.keys() - known.keys())]
    await _insert(outbox, sql.INSERT_TOOL_SETS, sql.TOOL_SETS, unknown_tools)
    await _save_messages(outbox, [answer for rows in new for answer in rows.answers], sent, known)
    if labelled := [row.completion_id for row in completions if row.metadata and not row.hidden]:
        ids = sorted(inserted.intersection(labelled))
        await outbox.tell(sql.INSERT_LABELS, {"completion_ids": ids})
    return True


async def _known(
    outbox: _Outbox, digests: Sequence[str], completion_ids: Sequence[str]
) -> dict[str, bool | None]:
    """Which of these digests are there: False if any row with it may be shown, True if all are
    hidden. A completion's id is among them, with None, if that completion was deleted."""
    known: dict[str, bool | None] = {}
    for chunk in _chunks(digests or [""], _DIGESTS_PER_STATEMENT):
        asked = {"digests": chunk, "completion_ids": completion_ids}
        for name, hidden in await outbox.ask(sql.KNOWN, asked):
            known[name] = hidden and known.get(name, True)
    return known


async def _save_messages(
    outbox: _Outbox,
    answers: Sequence[StoredMessage],
    sent: Mapping[str, StoredMessage],
    known: Mapping[str, bool | None],
) -> None:
    """Write the answers, and what of the sent is new: unknown, or hidden until now."""
    hidden = {**known}
    for answer in answers:
        hidden[answer.digest] = answer.hidden and hidden.get(answer.digest, True)
    fresh = [
        message
        for digest, message in sent.items()
        if digest not in hidden or (hidden[digest] and not message.hidden)
    ]
    if shown := sorted(message.digest for message in fresh if message.digest in known):
        await outbox.tell(sql.SHOW_MESSAGES, {"digests": shown})
    messages = sorted([*answers, *fresh], key=lambda row: row.message_id)
    await _insert(outbox, sql.INSERT_MESSAGES, sql.MESSAGES, messages)


async def _insert(
    outbox: _Outbox, statement: str, columns: Mapping[str, str], rows: Sequence[Any]
) -> None:
    for chunk in _chunks(rows, _ROWS_PER_STATEMENT):
        await outbox.tell(statement, sql.rows(columns, chunk))


def _merged(conversations: Iterable[StoredConversation]) -> list[StoredConversation]:
    """One row per conversation, from its first beginning to its last end, by id."""
    merged: dict[str, StoredConversation] = {}
    for row in conversations:
        other = merged.setdefault(row.conversation_id, row)
        if other is row:
            continue
        merged[row.conversation_id] = evolve(
            row,
            created_at=min(row.created_at, other.created_at),
            updated_at=max(row.updated_at, other.updated_at),
            hidden=row.hidden and other.hidden,
        )
    return [merged[conversation_id] for conversation_id in sorted(merged)]


def _merged_messages(batch: Sequence[RecordRows]) -> dict[str, StoredMessage]:
    """What was sent, by digest, as the first record has it; hidden only if all say so."""
    merged: dict[str, StoredMessage] = {}
    for message in (message for rows in batch for message in rows.sent):
        first = merged.setdefault(message.digest, message)
        if first.hidden and not message.hidden:
            merged[message.digest] = evolve(first, hidden=False)
    return merged


def _chunks(rows: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
