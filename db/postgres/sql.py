"""Words the statements of a save and of the store's own questions; turns rows into values and back.

No driver here. Rows are sent as one JSON array, so that a statement serves one record or a hundred
and has one value to quote; they are inserted in their order.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin

from attrs import fields

from db.rows.columns import (
    ESCAPE,
    as_jsonb,
    from_jsonb,
    original_text,
    raw_bytes,
    readable,
    rows_json,
)
from db.rows.history import ByteDigits, JsonSource, TapedCompletion, ToolSetRow
from db.store import (
    ExactText,
    Moment,
    Ordinal,
    StoredCompletion,
    StoredConversation,
    StoredMessage,
    StoredToolCall,
)
from statemachine import State

MIGRATIONS: Final = Path(__file__).parents[1] / "migrations"

Columns = Mapping[str, str]
"""Columns in their order: name → type."""

_TYPES: Final[Mapping[Any, str]] = {
    bool: "boolean",
    ByteDigits: "bytea",
    dict[str, Any]: "jsonb",
    ExactText: "text",
    float: "double precision",
    int: "bigint",
    JsonSource: "json",
    Moment: "timestamptz",
    Ordinal: "integer",
    Sequence[Any]: "jsonb",
    State: "text",
    str: "text",
}
"""A field's type → its column's."""


def _columns_of(row: type) -> Iterator[tuple[str, str]]:
    """The columns of a kind of row: one for each field, and for an exact text one more."""
    for field in fields(row):
        kind: Any = field.type
        if get_origin(kind) in (Union, UnionType):
            (kind,) = (one for one in get_args(kind) if one is not NoneType)
        yield field.name, _TYPES[kind]
        if kind == ExactText:
            yield field.name + _RAW, "bytea"


_RAW: Final = "_raw"
"""Ends the name of the column that holds a text exactly where its text column can't."""

CONVERSATIONS: Final = dict(_columns_of(StoredConversation))
CLIENT_KEYS: Final = {"completion_id": "text", "client_key": "text"}
"""For each completion the one column of its conversation that it doesn't have itself."""
TOOL_SETS: Final = dict(_columns_of(ToolSetRow))
COMPLETIONS: Final = dict(_columns_of(StoredCompletion))
SAVED_COMPLETIONS: Final = dict(_columns_of(TapedCompletion))
"""With the tape, which few ever read."""
MESSAGES: Final = dict(_columns_of(StoredMessage))
TOOL_CALLS: Final = dict(_columns_of(StoredToolCall))

_GIVEN_AS: Final = {"timestamptz": "double precision", "json": "text"}
"""Times are sent as seconds. Until 2242 a float of them is exact to the microsecond, as the column is.
JSON is taken as it is written, be it written as such or as a text."""
_TAKEN_AS: Final = {"timestamptz": "to_timestamp({})", "json": "{}::json"}


def _insert(table: str, columns: Columns, condition: str = "") -> str:
    names = ", ".join(columns)
    given = {name: _GIVEN_AS.get(kind, kind) for name, kind in columns.items()}
    kinds = ", ".join(f"{name} {kind}" for name, kind in given.items())
    values = ", ".join(_TAKEN_AS.get(kind, "{}").format(name) for name, kind in columns.items())
    return (
        f"INSERT INTO {table} ({names})"
        f" SELECT {values} FROM json_to_recordset(%(rows)s) AS new ({kinds}){condition}"
    )


def update(table: str, key: str, columns: Columns) -> str:
    """The statement that sets these columns, the key among them, of the row that has the key."""
    given = {name: _GIVEN_AS.get(kind, kind) for name, kind in columns.items()}
    kinds = ", ".join(f"{name} {kind}" for name, kind in given.items())
    changes = ", ".join(
        f"{name} = {_TAKEN_AS.get(kind, '{}').format(f'new.{name}')}"
        for name, kind in columns.items()
        if name != key
    )
    return (
        f"UPDATE {table} SET {changes} FROM json_to_recordset(%(rows)s) AS new ({kinds})"
        f" WHERE {table}.{key} = new.{key}"
    )


def select_list(columns: Columns, prefix: str = "") -> str:
    # jsonb as text: `db.rows.columns` parses it.
    return ", ".join(
        f"{prefix}{name}::text" if kind == "jsonb" else f"{prefix}{name}"
        for name, kind in columns.items()
    )


# The server gives up by itself, too: while it waits for a lock it doesn't notice that its client has
# gone, and such backends would pile up.
@cache
def begin(timeout_ms: int) -> bytes:
    """The statement that begins a save which may take so long."""
    return (
        f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {timeout_ms};"
        f" SET LOCAL idle_in_transaction_session_timeout = {timeout_ms}"
    ).encode()


INSERT_COMPLETIONS: Final = (
    _insert(
        "completions",
        SAVED_COMPLETIONS,
        " WHERE NOT EXISTS (SELECT FROM deletions WHERE deletions.id = new.completion_id)",
    )
    + " ON CONFLICT (completion_id) DO NOTHING"
)
_SAVED_HERE = "completions.xmin = pg_current_xact_id()::xid"
"""True of the completions that this transaction has inserted, and of no others."""
# One row per conversation, from its first beginning to its last end; hidden if all of it is.
UPSERT_CONVERSATIONS: Final = (
    "INSERT INTO conversations"
    " (conversation_id, owner, client_key, created_at, updated_at, hidden)"
    " SELECT conversation_id, owner, client_key,"
    " min(created_at), max(finished_at), bool_and(hidden)"
    " FROM json_to_recordset(%(rows)s) AS new (completion_id text, client_key text)"
    f" JOIN completions USING (completion_id) WHERE {_SAVED_HERE}"
    " GROUP BY conversation_id, owner, client_key ORDER BY conversation_id"
    " ON CONFLICT (conversation_id) DO UPDATE SET"
    " updated_at = greatest(conversations.updated_at, excluded.updated_at),"
    " hidden = conversations.hidden AND excluded.hidden"
    " WHERE conversations.updated_at < excluded.updated_at"
    " OR (conversations.hidden AND NOT excluded.hidden)"
)
INSERT_TOOL_SETS: Final = _insert("tool_sets", TOOL_SETS) + " ON CONFLICT (digest) DO NOTHING"
# Without a target, since a sent message may be there by its id as well as by its digest.
INSERT_MESSAGES: Final = _insert("messages", MESSAGES) + " ON CONFLICT DO NOTHING"

INSERT_TOOL_CALLS: Final = _insert("tool_calls", TOOL_CALLS)

# Which of these digests are there, and whether hidden; which of these completions were inserted by
# this transaction, and whether somebody has deleted them meanwhile. A tool set that is found is
# locked as its foreign key will lock it at the commit, so that none is deleted between the two.
_KNOWN: Final = (
    "SELECT digest, hidden, false AS is_completion FROM messages"
    " WHERE digest = ANY (%(digests)s::text[])"
    " UNION ALL SELECT digest, false, false FROM (SELECT digest FROM tool_sets"
    " WHERE digest = ANY (%(digests)s::text[]) ORDER BY digest FOR KEY SHARE) AS held"
    " UNION ALL SELECT completion_id,"
    " EXISTS (SELECT FROM deletions WHERE deletions.id = completion_id), true FROM completions"
    f" WHERE completion_id = ANY (%(completion_ids)s::text[]) AND {_SAVED_HERE}"
)
_KNOWN_PARTS: Final = [part.encode() for part in re.split(r"%\(\w+\)s", _KNOWN)]


def known(digests: Iterable[str], completion_ids: Iterable[str]) -> bytes:
    """The question which of these are there. Raises ValueError for a NUL in one of them."""
    sought = text_array(digests)
    first, second, third, last = _KNOWN_PARTS
    return b"".join((first, sought, second, sought, third, text_array(completion_ids), last))


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
"""The longest walk up the tree. Digests form no ring, unless somebody edits rows by hand."""

# Of several rows with one digest an answer comes first: it holds more than the copy that a client
# sent back. But hidden rows come last.
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


def migration_ids() -> frozenset[str]:
    """The ids of the migrations that these statements need, as in yoyo's table."""
    return frozenset(path.stem for path in MIGRATIONS.glob("*.sql"))


# --- values ---------------------------------------------------------------------------------

_ESCAPE: Final = ESCAPE.encode()
_FROM_COLUMN: Final[dict[str, Callable[[Any], Any]]] = {
    "jsonb": from_jsonb,
    "timestamptz": datetime.timestamp,
    "bytea": bytes,
}


def with_rows(statement: str, columns: Columns, values: Sequence[Any]) -> bytes:
    """An insert into a table with these columns, with a row for each value in it.

    Args:
        values: objects with a `__dict__` and an attribute for each column, except for the column
            beside an exact text; where there is none, the column is NULL.
    """
    try:
        source = rows_json([vars(value) for value in values])
    except TypeError:  # lone surrogates, integers beyond 64 bits, more than 254 levels
        source = _ESCAPE
    if b"\\u0000" in source or _ESCAPE in source:  # hardly ever: some column would refuse it
        source = rows_json([_storable_row(columns, value) for value in values])
    return in_dollars(source, *_around_rows(statement))


@cache
def _around_rows(statement: str) -> tuple[bytes, bytes]:
    before, _, after = statement.partition("%(rows)s")
    return before.encode(), after.encode()


def in_dollars(source: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """A literal of these bytes, which have no NUL, quoted by dollars and a tag that isn't in them.

    Nothing within needs escaping: to go through a million-character answer for that would block
    the loop as long as the rest of its save. What stands before and after the literal is put around
    it at once, as each copy may be of 100 MB.
    """
    tag, number = b"$rows$", 0
    while tag[:-1] in source:  # hardly ever: somebody chats about this very line
        number += 1
        tag = b"$rows%d$" % number
    return b"".join((before, tag, source, tag, after))


def text_array(texts: Iterable[str]) -> bytes:
    """A literal that PostgreSQL reads as an array of these texts, at a third of what psycopg2 takes for
    it. Raises ValueError for a NUL or half a character in one of them."""
    quoted = [text.replace("\\", "\\\\").replace('"', '\\"') for text in texts]
    joined = ",".join([f'"{text}"' for text in quoted])
    if "\0" in joined:
        raise ValueError("a NUL in a text")
    return in_dollars(f"{{{joined}}}".encode())


def _storable_row(columns: Columns, value: Any) -> dict[str, Any]:
    """One row such that every column takes it."""
    given, row = vars(value), dict[str, Any]()
    for name, kind in columns.items():
        if name.endswith(_RAW):
            text = given[name.removesuffix(_RAW)]
            raw = None if text is None else raw_bytes(text)
            row[name] = None if raw is None else "\\x" + raw.hex()
            continue
        row[name] = item = given.get(name)
        if item is not None and kind == "jsonb":
            row[name] = as_jsonb(item)
        elif item is not None and kind == "text":
            row[name] = readable(item)
    return row


def completion_from(row: Sequence[Any]) -> StoredCompletion:
    """The completion in a row of all its columns."""
    values = _values(COMPLETIONS, row)
    return StoredCompletion(**{**values, "state": State(values["state"])})


def conversation_from(row: Sequence[Any]) -> StoredConversation:
    """The conversation in a row of all its columns."""
    return StoredConversation(**_values(CONVERSATIONS, row))


def message_from(row: Sequence[Any]) -> StoredMessage:
    """The message in a row of all its columns."""
    values = _values(MESSAGES, row)
    raw = values.pop("content_raw")
    return StoredMessage(**{**values, "content": original_text(values["content"], raw)})


def tool_call_from(row: Sequence[Any]) -> StoredToolCall:
    """The call in a row of all its columns."""
    values = _values(TOOL_CALLS, row)
    for name in ("arguments", "result"):
        values[name] = original_text(values[name], values.pop(name + _RAW))
    return StoredToolCall(**values)


def _values(columns: Columns, row: Sequence[Any]) -> dict[str, Any]:
    return {
        name: None if value is None else _FROM_COLUMN.get(kind, _as_it_is)(value)
        for (name, kind), value in zip(columns.items(), row, strict=True)
    }


def _as_it_is(value: Any) -> Any:
    return value
