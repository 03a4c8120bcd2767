"""Saves many records in one transaction, step by step.

Never sees to connections or errors: if the connection is lost midway, all was saved or nothing.

1. The completions are written first. Nothing else is written of one that was there already
   (`db.postgres.extending` looks whether there is more to say of it).
2. Messages and tools that are there already aren't sent: a long chat comes with all of its history
   every time, and every request with the same tools.
3. All transactions take their locks in the same order, table by table and key by key, so that
   two that save the same rows wait for each other instead of deadlocking.
4. A completion that was deleted isn't saved again. A save, like a deletion, locks a conversation's
   row before it looks at the messages: neither acts on rows that the other undoes.
5. Rows are sent by the hundred: making thousands in one go would hold up every stream.
6. A statement without a result is sent together with the next one that has a result. So a usual
   save is two round trips: one asks what is new, one writes it and commits.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any, Protocol, TypeVar

from attrs import evolve, frozen

from db.postgres import sql
from db.rows.extending import is_longer
from db.rows.history import RecordRows, rows_of
from db.store import RecordRejected, StoredMessage
from statemachine import SessionRecord
from statemachine.tokens import plain_characters, texts_of

_ROWS_PER_STATEMENT = 100
_DIGESTS_PER_STATEMENT = 2_000
_MOST_HELD_BYTES = 1024 * 1024
_LONG_STATEMENT_BYTES = 64 * 1024
_LONG_BATCH = 20
"""So many messages' rows are made in one go; then other tasks get their turn."""
_LONG_CHAT = 200
"""From so many messages on, or so many texts where not all messages are plain, a record's rows are made
in a thread: that takes milliseconds."""
_LONG_TEXT = 256 * 1024
"""The same for the characters of all texts in a request and its answer, and for the bytes of its tape."""

_T = TypeVar("_T")


@frozen(slots=False)  # a row's attributes are its `__dict__`
class _ClientKey:
    """The one column of a conversation that its completions don't have."""

    completion_id: str
    client_key: str | None


class Cursor(Protocol):
    """As much of a cursor as the steps of a call need."""

    async def execute(self, operation: Any, parameters: Any = None) -> None:
        """`operation` may be bytes, which psycopg2 takes, although aiopg's types allow text only."""

    async def fetchall(self) -> list[tuple[Any, ...]]: ...

    def mogrify(self, operation: str, parameters: Any = None) -> bytes: ...


class _Outbox:
    """Statements on their way to the server, in their order.

    Attributes:
        is_long: some of them are so long that they are worded in a thread.
    """

    is_long = False

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._held: list[bytes] = []
        self._held_bytes = 0

    async def tell(self, statement: str | bytes, parameters: Any = None) -> None:
        """Send a statement without a result, together with a later one and before it."""
        await self._hold(statement, parameters)
        del statement  # it may be of 100 MB, and is held once
        if self._held_bytes > _MOST_HELD_BYTES:
            await self.flush()

    async def ask(self, statement: str | bytes, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Send all that is held, then this statement, and return its rows."""
        await self._hold(statement, parameters)
        await self.flush()
        return await self._cursor.fetchall()

    async def flush(self) -> None:
        """Send all that is held. If the server refuses one statement, its error is raised, and those
        after it are not carried out."""
        if self._held:
            held = self._held[0] if len(self._held) == 1 else b"; ".join(self._held)
            self._held, self._held_bytes = [], 0
            await self._cursor.execute(held)

    async def _hold(self, statement: str | bytes, parameters: Any) -> None:
        if isinstance(statement, str):
            whole = parameters is None
            statement = statement.encode() if whole else self._cursor.mogrify(statement, parameters)
        if len(statement) > _MOST_HELD_BYTES:
            await self.flush()  # it goes alone, as joining them would copy it
        self._held.append(statement)
        self._held_bytes += len(statement)
        if len(statement) > _LONG_STATEMENT_BYTES:
            await asyncio.sleep(0)  # making it took long enough for others to have waited


async def rows_of_all(records: Sequence[SessionRecord]) -> list[RecordRows]:
    """Each record's rows; of several records with one id, the first one's, or a longer one's.

    Raises:
        RecordRejected: a record isn't what it should be, and never will be.
    """
    batch: dict[str, RecordRows] = {}
    messages = 0
    for record in records:
        messages += 1 + len(record.request.messages)
        if messages >= _LONG_BATCH:
            messages = 0
            await asyncio.sleep(0)
        try:
            if _is_long(record):
                rows = evolve(await asyncio.to_thread(rows_of, record), is_long=True)
            else:
                rows = rows_of(record)
        except Exception as error:
            raise RecordRejected(
                f"{record.completion_id!r} can't be made into rows: {type(error).__name__}"
            ) from error
        known = batch.setdefault(record.completion_id, rows)
        if known is not rows and is_longer(rows, known):
            batch[record.completion_id] = rows
    return list(batch.values())


def _is_long(record: SessionRecord) -> bool:
    """True if making its rows, and wording them, takes milliseconds."""
    messages = record.request.messages
    if len(messages) >= _LONG_CHAT or (record.tape and record.tape.size > _LONG_TEXT):
        return True
    if record.tool_calls and sum(call.size for call in record.tool_calls) > _LONG_TEXT:
        return True
    said = (*messages, *[choice.message for choice in record.choices])
    characters = plain_characters(said)
    if characters is not None:
        return characters > _LONG_TEXT  # nearly always
    texts = texts_of(said)
    return len(texts) >= _LONG_CHAT or sum(map(len, texts)) > _LONG_TEXT


def characters_of(batch: Sequence[RecordRows]) -> int:
    """About how much text the rows hold, their tapes included."""
    characters = 0
    for rows in batch:
        if rows.tape is not None:
            characters += len(rows.tape.tape) + len(rows.tape.lengths)
        characters += sum(len(call.arguments) + len(call.result or "") for call in rows.tool_calls)
        for row in (*rows.sent, *rows.answers):
            characters += len(row.content or "")
            if row.parts:
                characters += sum(map(len, texts_of(row.parts)))
    return characters


async def save(
    cursor: Cursor, batch: Sequence[RecordRows], timeout_seconds: float
) -> Sequence[RecordRows]:
    """Write what is new of the batch, and commit. The server may commit also if we give up.

    Returns:
        What wasn't written, since it is there already, or was deleted.
    """
    outbox = _Outbox(cursor)
    if True in [rows.is_long for rows in batch]:
        outbox.is_long = True
    while (there := await _try_save(outbox, batch, timeout_seconds)) is None:
        await outbox.tell("ROLLBACK")
    await outbox.tell("COMMIT")
    await outbox.flush()
    return there


async def try_out(cursor: Cursor, batch: Sequence[RecordRows], timeout_seconds: float) -> None:
    """Write all of the batch but its commit, with every constraint checked, and take it back."""
    outbox = _Outbox(cursor)
    await _try_save(outbox, batch, timeout_seconds)
    await outbox.tell("SET CONSTRAINTS ALL IMMEDIATE")
    await outbox.tell("ROLLBACK")
    await outbox.flush()


async def _try_save(
    outbox: _Outbox, batch: Sequence[RecordRows], timeout_seconds: float
) -> Sequence[RecordRows] | None:
    """Write all but the commit; see `save`. None if one of the batch was deleted at this very moment; the
    next try sees that it was."""
    await outbox.tell(sql.begin(ceil(timeout_seconds * 1000)))
    saved_rows = (rows.saved_completion for rows in batch)
    completions = sorted(saved_rows, key=lambda row: row.completion_id)
    await _insert(outbox, sql.INSERT_COMPLETIONS, sql.SAVED_COMPLETIONS, completions)
    await _insert(outbox, sql.UPSERT_CONVERSATIONS, sql.CLIENT_KEYS, _client_keys(batch))
    tool_sets = {rows.tool_set.digest: rows.tool_set for rows in batch if rows.tool_set}
    known, saved = await _known(
        outbox,
        [*tool_sets, *{message.digest for rows in batch for message in rows.sent}],
        [row.completion_id for row in completions],
    )
    if any(saved.values()):
        return None
    new = [rows for rows in batch if rows.completion.completion_id in saved]
    unknown_tools = [tool_sets[digest] for digest in sorted(tool_sets.keys() - known.keys())]
    await _insert(outbox, sql.INSERT_TOOL_SETS, sql.TOOL_SETS, unknown_tools)
    answers = [answer for rows in new for answer in rows.answers]
    await _save_messages(outbox, answers, _merged_messages(new), known)
    if calls := [call for rows in new for call in rows.tool_calls]:
        calls.sort(key=lambda call: (call.completion_id, call.turn, call.position))
        await _insert(outbox, sql.INSERT_TOOL_CALLS, sql.TOOL_CALLS, calls)
    labelled = [row.completion_id for row in completions if row.metadata and not row.hidden]
    if ids := [name for name in labelled if name in saved]:
        await outbox.tell(sql.INSERT_LABELS, {"completion_ids": ids})
    if len(new) == len(batch):
        return ()  # nearly always
    return [rows for rows in batch if rows.completion.completion_id not in saved]


def _client_keys(batch: Sequence[RecordRows]) -> list[_ClientKey]:
    """One for each completion, sorted by conversation, and within it by time."""
    ordered = sorted(
        batch, key=lambda rows: (rows.conversation.conversation_id, rows.completion.created_at)
    )
    return [
        _ClientKey(rows.completion.completion_id, rows.conversation.client_key) for rows in ordered
    ]


async def _known(
    outbox: _Outbox, digests: Sequence[str], completion_ids: Sequence[str]
) -> tuple[dict[str, bool], dict[str, bool]]:
    """Ask what is there already, and what this transaction has inserted.

    Returns:
        Each known digest: False if any row with it may be shown, True if all are hidden.
        Each completion that was inserted: True if it was deleted meanwhile.
    """
    known: dict[str, bool] = {}
    saved: dict[str, bool] = {}
    for part in _slices(digests or [""], _DIGESTS_PER_STATEMENT):
        for name, flag, is_completion in await outbox.ask(sql.known(part, completion_ids)):
            if is_completion:
                saved[name] = flag
            else:
                known[name] = flag and known.get(name, True)
    return known, saved


async def _save_messages(
    outbox: _Outbox,
    answers: Sequence[StoredMessage],
    sent: Mapping[str, StoredMessage],
    known: Mapping[str, bool],
) -> None:
    """Write the answers, and those of the sent messages that are unknown, or hidden until now."""
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
    outbox: _Outbox, statement: str, columns: sql.Columns, rows: Sequence[Any]
) -> None:
    for part in _slices(rows, _ROWS_PER_STATEMENT):
        if outbox.is_long:
            await outbox.tell(await asyncio.to_thread(sql.with_rows, statement, columns, part))
        else:
            await outbox.tell(sql.with_rows(statement, columns, part))


def _merged_messages(batch: Sequence[RecordRows]) -> dict[str, StoredMessage]:
    """The sent messages by digest, as the first record has them; hidden only if all of them are."""
    merged: dict[str, StoredMessage] = {}
    for message in (message for rows in batch for message in rows.sent):
        first = merged.setdefault(message.digest, message)
        if first.hidden and not message.hidden:
            merged[message.digest] = evolve(first, hidden=False)
    return merged


def _slices(rows: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
