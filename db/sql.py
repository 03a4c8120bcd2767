"""The statements, one for each step of a save and each question, and the values that go in and
come out. No driver here.

Rows go in as one JSON array, so that a statement serves one record or a hundred and has one value
to quote; they are inserted in the order they are given in. Called by `db.transaction` and `db.postgres`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from db.columns import as_jsonb, from_jsonb, original_text, raw_bytes, readable, rows_json
from db.store import StoredCompletion, StoredConversation, StoredMessage
from statemachine import State

MIGRATIONS: Final = Path(__file__).parent / "migrations"

CONVERSATIONS: Final = {
    "conversation_id": "text",
    "owner": "text",
    "client_key": "text",
    "created_at": "timestamptz",
    "updated_at": "timestamptz",
    "hidden": "boolean",
}
TOOL_SETS: Final = {"digest": "text", "tools": "jsonb"}
COMPLETIONS: Final = {
    "completion_id": "text",
    "conversation_id": "text",
    "owner": "text",
    "agent": "text",
    "model": "text",
    "upstream_id": "text",
    "upstream_model": "text",
    "upstream_created": "bigint",
    "state": "text",
    "finish_reason": "text",
    "error": "jsonb",
    "usage": "jsonb",
    "usage_source": "text",
    "token_count": "bigint",
    "chunk_count": "bigint",
    "ttft_ms": "double precision",
    "duration_ms": "double precision",
    "trace_id": "text",
    "request": "jsonb",
    "tools_digest": "text",
    "metadata": "jsonb",
    "prompt_digest": "text",
    "extra": "jsonb",
    "created_at": "timestamptz",
    "finished_at": "timestamptz",
    "client_left_at": "timestamptz",
    "hidden": "boolean",
}
MESSAGES: Final = {
    "message_id": "text",
    "conversation_id": "text",
    "completion_id": "text",
    "choice_index": "integer",
    "role": "text",
    "content": "text",
    "content_raw": "bytea",
    "parts": "jsonb",
    "state": "text",
    "digest": "text",
    "parent_digest": "text",
    "created_at": "timestamptz",
    "hidden": "boolean",
}


def _insert(table: str, columns: dict[str, str], condition: str = "") -> str:
    names = ", ".join(columns)
    kinds = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    return (
        f"INSERT INTO {table} ({names})"
        f" SELECT {names} FROM json_to_recordset(%(rows)s) AS new ({kinds}){condition}"
    )


def select_list(columns: dict[str, str], prefix: str = "") -> str:
    # jsonb as text: we read it with our own parser, see `db.columns`.
    return ", ".join(
        f"{prefix}{name}::text" if kind == "jsonb" else f"{prefix}{name}"
        for name, kind in columns.items()
    )


BEGIN: Final = (
    "BEGIN; SET LOCAL statement_timeout = %(timeout_ms)s;"
    " SET LOCAL idle_in_transaction_session_timeout = %(timeout_ms)s"
)
INSERT_COMPLETIONS: Final = (
    _insert(
        "completions",
        COMPLETIONS,
        " WHERE NOT EXISTS (SELECT FROM deletions WHERE deletions.id = new.completion_id)",
    )
    + " ON CONFLICT (completion_id) DO NOTHING RETURNING completion_id"
)
UPSERT_CONVERSATIONS: Final = (
    _insert("conversations", CONVERSATIONS) + " ON CONFLICT (conversation_id) DO UPDATE SET"
    " updated_at = greatest(conversations.updated_at, excluded.updated_at),"
    " hidden = conversations.hidden AND excluded.hidden"
    " WHERE conversations.updated_at < excluded.updated_at"
    " OR (conversations.hidden AND NOT excluded.hidden)"
)
INSERT_TOOL_SETS: Final = _insert("tool_sets", TOOL_SETS) + " ON CONFLICT (digest) DO NOTHING"
# Without a target, since a sent message may be there by its id as well as by its digest.
INSERT_MESSAGES: Final = _insert("messages", MESSAGES) + " ON CONFLICT DO NOTHING"

# Which of these are there, and whether hidden. A tool set found is locked as the foreign key
# would lock it at the commit, so that none is deleted between the two.
KNOWN: Final = (
    "SELECT digest, hidden FROM messages WHERE digest = ANY (%(digests)s::text[])"
    " UNION ALL SELECT digest, false FROM (SELECT digest FROM tool_sets"
    " WHERE digest = ANY (%(digests)s::text[]) ORDER BY digest FOR KEY SHARE) AS held"
    " UNION ALL SELECT id, NULL FROM deletions WHERE id = ANY (%(completion_ids)s::text[])"
)
SHOW_MESSAGES: Final = (
    "UPDATE messages SET hidden = false"
    " WHERE digest = ANY (%(digests)s::text[]) AND completion_id IS NULL AND hidden"
)
INSERT_LABELS: Final = (
    "INSERT INTO completion_labels (label, created_at, completion_id)"
    " SELECT completion_label(owner, key, value), created_at, completion_id"
    " FROM completions, jsonb_each_text(metadata)"
    " WHERE completion_id = ANY (%(completion_ids)s::text[]) AND NOT hidden"
    " AND value IS NOT NULL ORDER BY completion_id"
)

FIND_COMPLETION: Final = (
    f"SELECT {select_list(COMPLETIONS)} FROM completions WHERE completion_id = %(completion_id)s"
)
ANSWER: Final = (
    f"SELECT {select_list(MESSAGES)} FROM messages"
    " WHERE completion_id = %(completion_id)s ORDER BY choice_index"
)

THREAD_MAX_MESSAGES: Final = 100_000
"""Where a walk gives up. Digests can't form a ring unless somebody edits rows by hand."""

# Of several rows with one digest an answer comes first: it holds more than its copy sent back.
# But what is hidden comes last.
ONE_OF: Final = "ORDER BY hidden, completion_id IS NULL, created_at, message_id LIMIT 1"
THREAD: Final = f"""
WITH RECURSIVE walk AS (
    (SELECT messages.*, 1 AS steps FROM messages WHERE digest = %(digest)s {ONE_OF})
    UNION ALL
    SELECT parent.*, walk.steps + 1
    FROM walk, LATERAL (
        SELECT messages.* FROM messages WHERE messages.digest = walk.parent_digest {ONE_OF}
    ) AS parent
    WHERE walk.steps < {THREAD_MAX_MESSAGES}
)
SELECT {select_list(MESSAGES)} FROM walk ORDER BY steps DESC
"""

CHECK: Final = (
    "SELECT current_setting('transaction_read_only') = 'on',"
    " has_table_privilege('completions', 'INSERT')"
    " AND has_table_privilege('messages', 'INSERT'),"
    " current_setting('server_encoding'),"
    " ARRAY(SELECT migration_id FROM _yoyo_migrations)::text[]"
)


def migration_ids() -> frozenset[str]:
    """The ids of the migrations that these statements need, as yoyo notes them."""
    return frozenset(path.stem for path in MIGRATIONS.glob("*.sql"))


# --- values ---------------------------------------------------------------------------------

_TO_COLUMN: Final[dict[str, Callable[[Any], Any]]] = {
    "jsonb": as_jsonb,
    "timestamptz": lambda seconds: datetime.fromtimestamp(seconds, UTC),
    "bytea": lambda text: None if (raw := raw_bytes(text)) is None else "\\x" + raw.hex(),
}
_FROM_COLUMN: Final[dict[str, Callable[[Any], Any]]] = {
    "jsonb": from_jsonb,
    "timestamptz": datetime.timestamp,
    "bytea": bytes,
}


class _Shape:
    """How values become rows of some columns: their attributes of the columns' names, most of them
    as they are. `content_raw` is made of `content`; it is no attribute."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._names = tuple(columns)
        of = ["content" if name == "content_raw" else name for name in columns]
        self._attributes = attrgetter(*of)
        self._texts = [name for name, kind in columns.items() if kind == "text"]
        self._conversions = [
            (name, _TO_COLUMN[kind]) for name, kind in columns.items() if kind in _TO_COLUMN
        ]

    def row(self, value: Any) -> dict[str, Any]:
        """One row, texts as they are."""
        row = dict(zip(self._names, self._attributes(value), strict=True))
        for name, convert in self._conversions:
            if (item := row[name]) is not None:
                row[name] = convert(item)
        return row

    def readable_row(self, value: Any) -> dict[str, Any]:
        """One row, its texts such that a column takes them."""
        row = self.row(value)
        for name in self._texts:
            if (text := row[name]) is not None:
                row[name] = readable(text)
        return row


@cache
def _shape(columns: tuple[tuple[str, str], ...]) -> _Shape:
    return _Shape(dict(columns))


def rows(columns: Mapping[str, str], values: Sequence[Any]) -> dict[str, str]:
    """The parameter of an insert into a table with these columns: a row for each value."""
    shape = _shape(tuple(columns.items()))
    with suppress(TypeError):  # a lone surrogate
        text = rows_json([shape.row(value) for value in values])
        if "\\u0000" not in text:  # nearly always: no column refuses any of it
            return {"rows": text}
    return {"rows": rows_json([shape.readable_row(value) for value in values])}


def completion_from(row: Sequence[Any]) -> StoredCompletion:
    """The completion in a row of all its columns."""
    fields = _fields(COMPLETIONS, row)
    return StoredCompletion(**{**fields, "state": State(fields["state"])})


def conversation_from(row: Sequence[Any]) -> StoredConversation:
    """The conversation in a row of all its columns."""
    return StoredConversation(**_fields(CONVERSATIONS, row))


def message_from(row: Sequence[Any]) -> StoredMessage:
    """The message in a row of all its columns."""
    fields = _fields(MESSAGES, row)
    raw = fields.pop("content_raw")
    return StoredMessage(**{**fields, "content": original_text(fields["content"], raw)})


def _fields(columns: Mapping[str, str], row: Sequence[Any]) -> dict[str, Any]:
    return {
        name: None if value is None else _FROM_COLUMN.get(kind, _as_it_is)(value)
        for (name, kind), value in zip(columns.items(), row, strict=True)
    }


def _as_it_is(value: Any) -> Any:
    return value
