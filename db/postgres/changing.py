"""Changes a completion's metadata, and deletes completions, each in one transaction.

Never sees to connections or errors.

1. Messages are shared by the completions whose prompts lead over them. Deleting a completion
   removes those that no other prompt leads over. An answer that others go on from stays, as what
   their clients sent.
2. A deletion locks the conversation's row before it looks at the messages, and so does a save
   (`db.postgres.saving`): neither builds on rows that the other takes away. The isolation level is
   READ COMMITTED on purpose: each later statement sees what was committed before it got the lock.
3. A deletion leaves a row in `deletions`. Without it a record that is saved a second time, after a
   crash or a lost answer, would bring the completion back.
"""

from collections.abc import Collection, Mapping
from math import ceil
from typing import Any, Final

from db.postgres import reading, sql
from db.postgres.saving import Cursor
from db.rows.columns import readable, to_jsonb
from db.rows.messages import sent_copy
from db.store import CompletionView

SET_METADATA: Final = (
    "UPDATE completions SET metadata = %(metadata)s::jsonb"
    " WHERE completion_id = %(completion_id)s AND owner = %(owner)s AND NOT hidden"
    " RETURNING completion_id"
)
DELETE_LABELS: Final = "DELETE FROM completion_labels WHERE completion_id = %(completion_id)s"

FIND_CONVERSATION: Final = (
    "SELECT conversation_id FROM completions"
    " WHERE completion_id = %(completion_id)s AND owner = %(owner)s AND NOT hidden"
)
LOCK_CONVERSATION: Final = (
    "SELECT FROM conversations WHERE conversation_id = %(conversation_id)s FOR UPDATE"
)
# The completion's answers that others go on from, unless another row has the same digest and may
# be shown; and whether all of those others are hidden.
_FOLLOWERS = "SELECT hidden FROM messages AS follower WHERE follower.parent_digest = answer.digest"
_ASKERS = (
    "SELECT hidden FROM completions AS asker WHERE asker.prompt_digest = answer.digest"
    " AND asker.completion_id <> answer.completion_id"
)
FOLLOWED_ANSWERS: Final = f"""
SELECT {sql.select_list(sql.MESSAGES, "answer.")}, needed.hidden
FROM messages AS answer
CROSS JOIN LATERAL (
    SELECT bool_and(hidden) AS hidden FROM ({_FOLLOWERS} UNION ALL {_ASKERS}) AS users
) AS needed
WHERE answer.completion_id = %(completion_id)s AND needed.hidden IS NOT NULL
AND NOT EXISTS (
    SELECT FROM messages AS other WHERE other.digest = answer.digest AND NOT other.hidden
    AND other.completion_id IS DISTINCT FROM answer.completion_id
)
"""
# Answers and labels go with their completion, by their foreign keys.
DELETE_COMPLETION: Final = """
WITH gone AS (
    DELETE FROM completions WHERE completion_id = %(completion_id)s
    RETURNING completion_id, owner, created_at, prompt_digest, tools_digest
), noted AS (
    INSERT INTO deletions (id, owner, created_at, deleted_at)
    SELECT completion_id, owner, created_at, now() FROM gone
)
SELECT prompt_digest, tools_digest FROM gone
"""


def _unused(condition: str) -> str:
    """The sent messages that nothing uses, from a prompt's last one upwards. A message is used by one
    below it, or by a prompt that ends with it, if either meets the condition."""
    return f"""
    WITH RECURSIVE unused (message_id, parent_digest) AS (
        SELECT ''::text, %(digest)s::text
        UNION ALL
        SELECT messages.message_id, messages.parent_digest
        FROM unused JOIN messages ON messages.digest = unused.parent_digest
        WHERE messages.completion_id IS NULL
        AND NOT EXISTS (
            SELECT FROM messages AS follower WHERE follower.parent_digest = messages.digest
            AND follower.message_id <> unused.message_id AND {condition}
        )
        AND NOT EXISTS (
            SELECT FROM completions WHERE completions.prompt_digest = messages.digest
            AND {condition}
        )
    )
    """


HIDE_UNSHOWN: Final = (
    _unused("NOT hidden") + "UPDATE messages SET hidden = true"
    " WHERE message_id IN (SELECT message_id FROM unused) AND NOT hidden"
)
DELETE_UNUSED: Final = (
    _unused("true") + "DELETE FROM messages WHERE message_id IN (SELECT message_id FROM unused)"
)
HIDE_CONVERSATION: Final = """
UPDATE conversations SET hidden = true
WHERE conversation_id = %(conversation_id)s AND NOT hidden AND NOT EXISTS (
    SELECT FROM completions
    WHERE completions.conversation_id = conversations.conversation_id AND NOT completions.hidden
)
"""
# A message that is still in it, since somebody edited rows by hand, goes with it by its foreign key.
DELETE_CONVERSATION: Final = """
WITH gone AS (
    DELETE FROM conversations
    WHERE conversation_id = %(conversation_id)s AND NOT EXISTS (
        SELECT FROM completions
        WHERE completions.conversation_id = conversations.conversation_id
    )
    RETURNING conversation_id, owner, created_at
)
INSERT INTO deletions (id, owner, created_at, deleted_at)
SELECT conversation_id, owner, created_at, now() FROM gone
ON CONFLICT (id) DO UPDATE SET created_at = excluded.created_at, deleted_at = excluded.deleted_at
"""
# Saves lock the tool sets that they found (`db.postgres.sql.known`), so this waits for them.
LOCK_TOOLS: Final = "SELECT FROM tool_sets WHERE digest = %(digest)s FOR UPDATE"
DELETE_TOOLS: Final = (
    "DELETE FROM tool_sets WHERE digest = %(digest)s"
    " AND NOT EXISTS (SELECT FROM completions WHERE tools_digest = %(digest)s)"
)


async def set_metadata(
    cursor: Cursor,
    owner: str,
    completion_id: str,
    metadata: Mapping[str, str] | None,
    timeout_seconds: float,
) -> CompletionView | None:
    """See `db.store.Readable.set_metadata`."""
    await _begin(cursor, timeout_seconds)
    key = {"completion_id": readable(completion_id), "owner": readable(owner)}
    column = None if metadata is None else to_jsonb(dict(metadata))
    await cursor.execute(SET_METADATA, {**key, "metadata": column})
    if not await cursor.fetchall():
        await cursor.execute("ROLLBACK")
        return None
    await cursor.execute(DELETE_LABELS, key)
    if metadata:
        await cursor.execute(sql.INSERT_LABELS, {"completion_ids": [key["completion_id"]]})
    view = await reading.view(cursor, owner, completion_id)
    await cursor.execute("COMMIT")
    return view


async def delete(cursor: Cursor, owner: str, completion_id: str, timeout_seconds: float) -> bool:
    """See `db.store.Readable.delete`."""
    await _begin(cursor, timeout_seconds)
    key: dict[str, Any] = {"completion_id": readable(completion_id), "owner": readable(owner)}
    await cursor.execute(FIND_CONVERSATION, key)
    rows = await cursor.fetchall()
    if rows:
        key["conversation_id"] = rows[0][0]
        await cursor.execute(LOCK_CONVERSATION, key)
        await keep_followed_answers(cursor, key)
        await cursor.execute(DELETE_COMPLETION, key)
        rows = await cursor.fetchall()
    if not rows:  # it never was, or another deletion came first
        await cursor.execute("ROLLBACK")
        return False
    ((prompt_digest, tools_digest),) = rows
    for statement in (HIDE_UNSHOWN, DELETE_UNUSED):
        await cursor.execute(statement, {"digest": prompt_digest})
    for statement in (HIDE_CONVERSATION, DELETE_CONVERSATION):
        await cursor.execute(statement, key)
    if tools_digest is not None:
        for statement in (LOCK_TOOLS, DELETE_TOOLS):
            await cursor.execute(statement, {"digest": tools_digest})
    await cursor.execute("COMMIT")
    return True


async def keep_followed_answers(
    cursor: Cursor, key: Mapping[str, Any], staying: Collection[str] = ()
) -> None:
    """Leave a copy of each of a completion's answers that others go on from, as a client would send it back.

    Args:
        staying: the digests of answers that aren't about to go.
    """
    await cursor.execute(FOLLOWED_ANSWERS, key)
    found = [(sql.message_from(row), hidden) for *row, hidden in await cursor.fetchall()]
    copies = [sent_copy(row, hidden) for row, hidden in found if row.digest not in staying]
    if copies:
        copies.sort(key=lambda row: row.message_id)
        await cursor.execute(sql.with_rows(sql.INSERT_MESSAGES, sql.MESSAGES, copies))
        shown = [copy.digest for copy in copies if not copy.hidden]
        await cursor.execute(sql.SHOW_MESSAGES, {"digests": shown})


async def _begin(cursor: Cursor, timeout_seconds: float) -> None:
    await cursor.execute(sql.begin(ceil(timeout_seconds * 1000)))
