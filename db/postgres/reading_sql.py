"""Words the statements that read for owners, each so that an index answers it. No driver here.

`python -m benchmarks.questions.history` shows their plans.

Statements for a page take `limit` and, if it isn't the first, `at` and `after`: the time and the id
of the row before it.
"""

from typing import Final

from db.postgres import sql
from db.postgres.sql import ONE_OF, THREAD_MAX_MESSAGES
from statemachine import State

BEGIN: Final = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = %(timeout_ms)s"
)

_MESSAGE_BYTES = "coalesce(octet_length(content), 0) + coalesce(pg_column_size(parts), 0)"


def _after(columns: str, after: bool, descending: bool) -> str:
    """The condition that a page's rows come after its `at` and `after`."""
    sign = "<" if descending else ">"
    return f" AND ({columns}) {sign} (%(at)s, %(after)s)" if after else ""


def _ordered(columns: str, descending: bool) -> str:
    direction = " DESC" if descending else ""
    return " ORDER BY " + ", ".join(f"{column}{direction}" for column in columns.split(", "))


# --- completions ------------------------------------------------------------------------------

_PLACE = "created_at, completion_id"

COMPLETION_PLACE: Final = (
    "SELECT created_at, completion_id FROM completions"
    " WHERE completion_id = %(after)s AND owner = %(owner)s AND NOT hidden"
    " UNION ALL SELECT created_at, id FROM deletions WHERE id = %(after)s AND owner = %(owner)s"
)

INDEXED_MODEL: Final = 200
"""The characters of a model's name that `completions_listed_by_model_idx` holds."""

_LABELS = """
    SELECT completion_label(%(owner)s, key, value) AS label
    FROM jsonb_each_text(%(metadata)s::jsonb)
"""
# The rarest of several pairs, counted up to a thousand rows: the list is read by this one.
_RAREST_LABEL = f"""
    SELECT label FROM ({_LABELS}) AS wanted
    ORDER BY (
        SELECT count(*) FROM (
            SELECT FROM completion_labels WHERE completion_labels.label = wanted.label LIMIT 1000
        ) AS few
    )
    LIMIT 1
"""


def _listed(model: str | None, state: str | None) -> str:
    """The condition for completions with this model that ended in this state."""
    shown = "owner = %(owner)s AND NOT hidden"
    is_by_state = state not in (None, State.COMPLETED)
    if state is not None:
        shown += " AND state = %(state)s"
    if model is not None and is_by_state:
        # Most end well, so any other state is rarer than most models. The planner expects two hundred
        # times too few rows of a model's beginning, and would fetch and sort all of them.
        shown += " AND model = %(model)s"
    elif model is not None:
        shown += f" AND left(model, {INDEXED_MODEL}) = left(%(model)s, {INDEXED_MODEL})"
    if model is not None and len(model) >= INDEXED_MODEL and not is_by_state:
        # Only where the index isn't enough: the planner takes the two conditions for independent,
        # expects few rows of a common model, and would fetch and sort them all.
        shown += " AND model = %(model)s"
    return shown


def completion_keys(
    *, model: str | None, pairs: int, after: bool, descending: bool, state: str | None = None
) -> str:
    """The ids of a page of completions, and how many bytes each takes."""
    shown = _listed(model, state)
    ordered = _ordered(_PLACE, descending)
    rows = f"SELECT * FROM completions WHERE {shown}{_after(_PLACE, after, descending)}{ordered}"
    if pairs:
        label = _LABELS if pairs == 1 else _RAREST_LABEL
        # OFFSET 0 keeps the planner from another order than this: labels first, each with its
        # completion. It takes the conditions for independent, and would expect few rows.
        rows = f"""
        SELECT completions.* FROM (
            SELECT completion_id FROM completion_labels
            WHERE label = ({label}){_after(_PLACE, after, descending)}{ordered} OFFSET 0
        ) AS labelled CROSS JOIN LATERAL (
            SELECT * FROM completions
            WHERE completion_id = labelled.completion_id AND {shown}
            AND metadata @> %(metadata)s::jsonb OFFSET 0
        ) AS completions
        """
    return f"""
    SELECT completion_id, (
        pg_column_size(request) + coalesce(pg_column_size(extra), 0)
        + coalesce((
            SELECT sum({_MESSAGE_BYTES}) FROM messages
            WHERE messages.completion_id = page.completion_id
        ), 0)
        + coalesce((
            SELECT pg_column_size(tools) FROM tool_sets WHERE digest = page.tools_digest
        ), 0)
    )::bigint
    FROM ({rows} LIMIT %(limit)s) AS page{ordered}
    """


_IS_OWNED = "(owner = %(owner)s OR %(owner)s IS NULL)"
"""Without an owner: whoever's it is. For what is found by its id; the server drops what doesn't apply."""
FIND_SHOWN: Final = (
    sql.FIND_COMPLETION + f" AND {_IS_OWNED} AND NOT hidden"  # found by the id's index
)
FIND_REPLAYABLE: Final = (
    f"SELECT tape::text, tape_lengths, {sql.select_list(sql.COMPLETIONS)} FROM completions"
    " WHERE completion_id = %(completion_id)s AND owner = %(owner)s"
    " AND (NOT hidden OR finished_at >= to_timestamp(%(hidden_since)s))"
)
COMPLETIONS: Final = (
    f"SELECT {sql.select_list(sql.COMPLETIONS)} FROM completions"
    " WHERE completion_id = ANY (%(completion_ids)s::text[])"
)
ANSWERS: Final = (
    f"SELECT {sql.select_list(sql.MESSAGES)} FROM messages"
    " WHERE completion_id = ANY (%(completion_ids)s::text[]) ORDER BY completion_id, choice_index"
)
TOOL_CALLS: Final = (
    f"SELECT {sql.select_list(sql.TOOL_CALLS)} FROM tool_calls"
    " WHERE completion_id = ANY (%(completion_ids)s::text[])"
    " ORDER BY completion_id, turn, position"
)
TOOLS: Final = "SELECT digest, tools::text FROM tool_sets WHERE digest = ANY (%(digests)s::text[])"

# --- messages ---------------------------------------------------------------------------------

PROMPT: Final = f"""
WITH RECURSIVE walk AS (
    (SELECT message_id, parent_digest, 1 AS steps FROM messages
    WHERE digest = %(digest)s {ONE_OF})
    UNION ALL
    SELECT parent.message_id, parent.parent_digest, walk.steps + 1
    FROM walk, LATERAL (
        SELECT message_id, parent_digest FROM messages
        WHERE messages.digest = walk.parent_digest {ONE_OF}
    ) AS parent
    WHERE walk.steps < {THREAD_MAX_MESSAGES}
)
SELECT message_id FROM walk ORDER BY steps
"""
MESSAGE_SIZES: Final = (
    f"SELECT message_id, {_MESSAGE_BYTES} FROM messages"
    " WHERE message_id = ANY (%(message_ids)s::text[])"
)
MESSAGES: Final = (
    f"SELECT {sql.select_list(sql.MESSAGES)} FROM messages"
    " WHERE message_id = ANY (%(message_ids)s::text[])"
)

# --- conversations ----------------------------------------------------------------------------

CONVERSATION_PLACE: Final = (
    "SELECT created_at, conversation_id FROM conversations"
    " WHERE conversation_id = %(after)s AND owner = %(owner)s AND NOT hidden"
    " UNION ALL SELECT created_at, id FROM deletions WHERE id = %(after)s AND owner = %(owner)s"
)
_CONVERSATIONS = f"SELECT {sql.select_list(sql.CONVERSATIONS)} FROM conversations"
FIND_CONVERSATION: Final = (
    f"{_CONVERSATIONS} WHERE conversation_id = %(conversation_id)s AND {_IS_OWNED} AND NOT hidden"
)


def conversations(after: bool, descending: bool) -> str:
    """A page of conversations."""
    place = "created_at, conversation_id"
    return (
        f"{_CONVERSATIONS} WHERE owner = %(owner)s AND NOT hidden"
        f"{_after(place, after, descending)}{_ordered(place, descending)} LIMIT %(limit)s"
    )


NODE_PLACE: Final = (
    "SELECT created_at, message_id FROM messages"
    " WHERE message_id = %(after)s AND conversation_id = %(conversation_id)s AND NOT hidden"
    " UNION ALL SELECT finished_at, completion_id FROM completions"
    " WHERE completion_id = %(after)s AND conversation_id = %(conversation_id)s AND NOT hidden"
)


def node_keys(after: bool, descending: bool) -> str:
    """The ids of a page of a conversation's nodes, and how many bytes each takes.

    Nodes are messages, except copies of an answer that is shown itself, and completions without an
    answer. The search for the latter ends where a full page of messages ends: up to there each
    completion passed over has at least one of these messages.
    """
    messages, unanswered = "created_at, message_id", "finished_at, completion_id"
    last, never = ("min", "-infinity") if descending else ("max", "infinity")
    beyond = ">=" if descending else "<="
    return f"""
    WITH talk AS MATERIALIZED (
        SELECT message_id, created_at, {_MESSAGE_BYTES} AS bytes FROM messages
        WHERE conversation_id = %(conversation_id)s AND NOT hidden
        AND (completion_id IS NOT NULL OR NOT EXISTS (
            SELECT FROM messages AS answer WHERE answer.digest = messages.digest
            AND answer.completion_id IS NOT NULL AND NOT answer.hidden
        ))
        {_after(messages, after, descending)}{_ordered(messages, descending)} LIMIT %(limit)s
    )
    SELECT node_id, bytes FROM (
        SELECT message_id, created_at, bytes FROM talk
        UNION ALL
        (
            SELECT completion_id, finished_at, 0 FROM completions
            WHERE conversation_id = %(conversation_id)s AND NOT hidden
            AND NOT EXISTS (
                SELECT FROM messages WHERE messages.completion_id = completions.completion_id
            )
            AND finished_at {beyond} (
                SELECT CASE WHEN count(*) < %(limit)s THEN '{never}' ELSE {last}(created_at) END
                FROM talk
            )
            {_after(unanswered, after, descending)}{_ordered(unanswered, descending)}
            LIMIT %(limit)s
        )
    ) AS nodes (node_id, at, bytes)
    {_ordered("at, node_id", descending)} LIMIT %(limit)s
    """


PARENTS: Final = f"""
SELECT digest, shown.message_id FROM unnest(%(digests)s::text[]) AS wanted (digest)
CROSS JOIN LATERAL (
    SELECT message_id FROM messages WHERE messages.digest = wanted.digest AND NOT hidden {ONE_OF}
) AS shown
"""
