"""Reads for owners: pages of lists, one completion, its tape, a conversation's tree. No SQL here.

Never sees to connections or errors.

1. All steps of a call see the rows of one moment (REPEATABLE READ), whatever is saved or deleted
   between them.
2. A page starts after a key (time and id), not after a count: rows that come or go meanwhile shift
   nothing, so no row that was there all the time is shown twice or left out.
3. Keys and sizes are read first, then the rows that fit on a page.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from math import ceil
from typing import Any, TypeVar

import structlog
from attrs import frozen

from db.postgres import reading_sql, sql
from db.postgres.saving import Cursor
from db.rows.columns import from_jsonb, readable, to_jsonb
from db.rows.tapes import TapeDamaged, tape_of
from db.store import (
    PAGE_BYTES,
    CompletionFilter,
    CompletionView,
    ConversationView,
    Page,
    Paging,
    Replayable,
    StoredCompletion,
    StoredConversation,
    StoredMessage,
    StoredToolCall,
    ThreadNode,
    UnknownCursor,
)

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_LONG_TAPE = 256 * 1024
"""From so many characters on, those of its texts included, a tape is read in a thread."""


async def at_one_moment(
    cursor: Cursor, timeout_seconds: float, read: Callable[[], Awaitable[_T]]
) -> _T:
    """Run `read` in one transaction that sees the rows as they were at its beginning."""
    await cursor.execute(reading_sql.BEGIN, {"timeout_ms": ceil(timeout_seconds * 1000)})
    try:
        found = await read()
    except UnknownCursor:
        await cursor.execute("ROLLBACK")
        raise
    await cursor.execute("COMMIT")
    return found


async def completions(
    cursor: Cursor, owner: str, wanted: CompletionFilter, paging: Paging
) -> Page[CompletionView]:
    """See `db.store.Readable.list_completions`."""
    parameters = {
        **await _place(cursor, reading_sql.COMPLETION_PLACE, paging, owner=readable(owner)),
        "model": wanted.model and readable(wanted.model),
        "metadata": to_jsonb(dict(wanted.metadata or {})),
        "state": wanted.state and wanted.state.value,
    }
    statement = reading_sql.completion_keys(
        model=parameters["model"],
        pairs=len(wanted.metadata or {}),
        after=paging.after is not None,
        descending=paging.descending,
        state=parameters["state"],
    )
    keys, has_more = _fitting(await ask(cursor, statement, **parameters), paging.limit)
    found = await _completions(cursor, keys)
    return Page(tuple(await _views(cursor, [found[key] for key in keys])), has_more)


async def view(cursor: Cursor, owner: str | None, completion_id: str) -> CompletionView | None:
    """See `db.store.Readable.view`."""
    found = await find(cursor, owner, completion_id)
    return None if found is None else (await _views(cursor, [found]))[0]


async def find(cursor: Cursor, owner: str | None, completion_id: str) -> StoredCompletion | None:
    """The owner's completion as it is shown to them, or None. Without an owner: whoever's it is."""
    key = {"owner": owner and readable(owner), "completion_id": readable(completion_id)}
    rows = await ask(cursor, reading_sql.FIND_SHOWN, **key)
    return sql.completion_from(rows[0]) if rows else None


@frozen
class TapedView:
    """A completion with its tape's columns, both or neither."""

    view: CompletionView
    tape: str | None
    lengths: bytes | None


async def taped(
    cursor: Cursor, owner: str, completion_id: str, hidden_since: float | None
) -> TapedView | None:
    """Read what `replayable_of` makes a completion of."""
    key = {"owner": readable(owner), "completion_id": readable(completion_id)}
    rows = await ask(cursor, reading_sql.FIND_REPLAYABLE, **key, hidden_since=hidden_since)
    if not rows:
        return None
    tape, lengths, *row = rows[0]
    (view,) = await _views(cursor, [sql.completion_from(row)])
    return TapedView(view, tape, None if lengths is None else bytes(lengths))


async def replayable_of(found: TapedView) -> Replayable:
    """See `db.store.Readable.replayable`. Asks the database nothing."""
    if found.tape is None or found.lengths is None:
        return Replayable(found.view, None)
    columns = found.tape, found.lengths, found.view.choices
    size = len(found.tape) + len(found.lengths)
    size += sum(len(answer.content or "") for answer in found.view.answers)
    try:
        if size > _LONG_TAPE:
            return Replayable(found.view, await asyncio.to_thread(tape_of, *columns))
        return Replayable(found.view, tape_of(*columns))
    except TapeDamaged:
        log.error("tape damaged", completion_id=found.view.completion.completion_id)
        return Replayable(found.view, None)


async def prompt(
    cursor: Cursor, owner: str | None, completion_id: str, paging: Paging
) -> Page[StoredMessage] | None:
    """See `db.store.Readable.list_prompt`."""
    completion = await find(cursor, owner, completion_id)
    if completion is None:
        return None
    walk = await ask(cursor, reading_sql.PROMPT, digest=completion.prompt_digest)
    ids = [message_id for (message_id,) in walk]  # the newest first
    if not paging.descending:
        ids.reverse()
    if paging.after is not None:
        if paging.after not in ids:
            raise UnknownCursor(paging.after)
        ids = ids[ids.index(paging.after) + 1 :]
    wanted = ids[: paging.limit + 1]
    sizes = dict(await ask(cursor, reading_sql.MESSAGE_SIZES, message_ids=wanted))
    page, has_more = _fitting([(name, sizes[name]) for name in wanted], paging.limit)
    messages = await _messages(cursor, page)
    return Page(tuple(messages[name] for name in page), has_more)


async def conversations(cursor: Cursor, owner: str, paging: Paging) -> Page[StoredConversation]:
    """See `db.store.Readable.list_conversations`."""
    place = await _place(cursor, reading_sql.CONVERSATION_PLACE, paging, owner=readable(owner))
    statement = reading_sql.conversations(paging.after is not None, paging.descending)
    rows = await ask(cursor, statement, **place)
    found = tuple(sql.conversation_from(row) for row in rows[: paging.limit])
    return Page(found, len(rows) > paging.limit)


async def conversation(
    cursor: Cursor, owner: str | None, conversation_id: str, paging: Paging
) -> ConversationView | None:
    """See `db.store.Readable.view_conversation`."""
    key = {"owner": owner and readable(owner), "conversation_id": readable(conversation_id)}
    rows = await ask(cursor, reading_sql.FIND_CONVERSATION, **key)
    if not rows:
        return None
    parameters = await _place(cursor, reading_sql.NODE_PLACE, paging, **key)
    statement = reading_sql.node_keys(paging.after is not None, paging.descending)
    page, has_more = _fitting(await ask(cursor, statement, **parameters), paging.limit)
    nodes = Page(tuple(await _nodes(cursor, page)), has_more)
    return ConversationView(sql.conversation_from(rows[0]), nodes)


# --- keys to rows -----------------------------------------------------------------------------


async def ask(cursor: Cursor, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
    await cursor.execute(statement, parameters)
    return await cursor.fetchall()


async def _place(
    cursor: Cursor, statement: str, paging: Paging, **key: str | None
) -> dict[str, Any]:
    """The parameters of a page: how many rows, and after which time and id."""
    parameters: dict[str, Any] = {**key, "limit": paging.limit + 1}
    if paging.after is not None:
        rows = await ask(cursor, statement, **key, after=readable(paging.after))
        if not rows:
            raise UnknownCursor(paging.after)
        parameters["at"], parameters["after"] = rows[0]
    return parameters


def _fitting(keys: Sequence[Sequence[Any]], limit: int) -> tuple[list[str], bool]:
    """The keys of (key, bytes) that fit on a page, and whether there are more."""
    page: list[str] = []
    filled = 0
    for key, size in keys[:limit]:
        filled += size
        if page and filled > PAGE_BYTES:
            break
        page.append(key)
    return page, len(page) < len(keys)


async def _views(cursor: Cursor, found: Sequence[StoredCompletion]) -> list[CompletionView]:
    ids = [row.completion_id for row in found]
    answers: dict[str, list[StoredMessage]] = {name: [] for name in ids}
    for row in await ask(cursor, reading_sql.ANSWERS, completion_ids=ids):
        answer = sql.message_from(row)
        answers[answer.completion_id or ""].append(answer)
        await asyncio.sleep(0)  # a page may take long, and streams don't wait for it
    calls = await _tool_calls(cursor, ids)
    digests = sorted({row.tools_digest for row in found if row.tools_digest})
    tools = dict(await ask(cursor, reading_sql.TOOLS, digests=digests)) if digests else {}
    return [
        CompletionView(
            row,
            tuple(answers[row.completion_id]),
            from_jsonb(tools.get(row.tools_digest)),
            tuple(calls.get(row.completion_id, ())),
        )
        for row in found
    ]


async def _tool_calls(
    cursor: Cursor, completion_ids: Sequence[str]
) -> dict[str, list[StoredToolCall]]:
    calls: dict[str, list[StoredToolCall]] = {}
    if completion_ids:
        for row in await ask(cursor, reading_sql.TOOL_CALLS, completion_ids=completion_ids):
            calls.setdefault(row[0], []).append(sql.tool_call_from(row))
            await asyncio.sleep(0)
    return calls


async def _completions(
    cursor: Cursor, completion_ids: Iterable[str]
) -> dict[str, StoredCompletion]:
    ids = list(completion_ids)
    rows = await ask(cursor, reading_sql.COMPLETIONS, completion_ids=ids) if ids else []
    return {row[0]: sql.completion_from(row) for row in rows}


async def _messages(cursor: Cursor, message_ids: Sequence[str]) -> dict[str, StoredMessage]:
    messages = {}
    for row in await ask(cursor, reading_sql.MESSAGES, message_ids=list(message_ids)):
        messages[row[0]] = sql.message_from(row)
        await asyncio.sleep(0)
    return messages


async def _nodes(cursor: Cursor, node_ids: Sequence[str]) -> list[ThreadNode]:
    """The nodes with these ids, each of a message or of a completion without any."""
    messages = await _messages(cursor, node_ids)
    answered = {row.completion_id for row in messages.values() if row.completion_id}
    completions = await _completions(cursor, answered | (set(node_ids) - messages.keys()))
    calls = await _tool_calls(cursor, sorted(completions))
    above = {name: row.parent_digest for name, row in messages.items()}
    above.update((name, row.prompt_digest) for name, row in completions.items())
    digests = sorted({above[name] or "" for name in node_ids})
    parents = dict(await ask(cursor, reading_sql.PARENTS, digests=digests))
    nodes = []
    for name in node_ids:
        message = messages.get(name)
        owner_id = name if message is None else message.completion_id
        nodes.append(
            ThreadNode(
                node_id=name,
                parent_id=parents.get(above[name]),
                message=message,
                completion=completions.get(owner_id or ""),
                tool_calls=tuple(calls.get(owner_id or "", ())),
            )
        )
    return nodes
