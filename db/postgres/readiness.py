"""Finds out whether a save would work now, and if not, why, in words. Never keeps anything.

Never sees to connections, and never caches. Three steps, each of which may tell the reason:

1. The catalogs are asked: what the session is (a standby, read-only, its encoding), which tables
   the unqualified names of our statements reach, with which columns, and what may be done to them.
2. What a save writes is written (`db.postgres.saving`), with every constraint checked, and rolled
   back: rights, locks, triggers, a full disk.
3. Where commits wait for a synchronous standby, an empty one is made, as no rollback shows that.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from uuid import uuid4

from attrs import frozen

from db.postgres import saving, sql
from db.rows.history import rows_of
from db.store import StoreUnavailable, TablesUnfit
from statemachine import Choice, SessionRecord, SessionRequest, State, UsageSource

PROBE_SECONDS = 1.2
"""How long the server may take for one statement of the trial: less than a probe waits."""
COMMIT_SECONDS = 0.8
"""How long a commit may take where a standby has to confirm it."""

_MIGRATIONS: Final = "_yoyo_migrations"
_COLUMNS: Final[Mapping[str, Sequence[str]]] = {
    "conversations": tuple(sql.CONVERSATIONS),
    "tool_sets": tuple(sql.TOOL_SETS),
    "completions": tuple(sql.SAVED_COMPLETIONS),
    "messages": tuple(sql.MESSAGES),
    "tool_calls": tuple(sql.TOOL_CALLS),
    "completion_labels": ("label", "created_at", "completion_id"),
    "deletions": ("id", "owner", "created_at", "deleted_at"),
}
RIGHTS: Final[Mapping[str, Sequence[str]]] = {
    "conversations": ("SELECT", "INSERT", "UPDATE"),
    "tool_sets": ("SELECT", "INSERT", "UPDATE"),  # to lock a row wants UPDATE
    "completions": ("SELECT", "INSERT"),
    "messages": ("SELECT", "INSERT", "UPDATE"),
    "tool_calls": ("INSERT",),
    "completion_labels": ("INSERT",),
    "deletions": ("SELECT",),
}
"""What a save does to each table."""

FACTS: Final = """
SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
    current_setting('server_encoding'), current_user::text, current_schema()::text,
    coalesce(has_schema_privilege(current_schema(), 'CREATE'), false),
    current_setting('synchronous_standby_names') <> ''
        AND current_setting('synchronous_commit') NOT IN ('off', 'local'),
    ARRAY(
        SELECT json_build_object(
            'name', wanted,
            'schema', nspname,
            'columns', ARRAY(
                SELECT attname FROM pg_attribute
                WHERE attrelid = found.oid AND attnum > 0 AND NOT attisdropped
            ),
            'rights', ARRAY(
                SELECT allowed FROM unnest('{SELECT,INSERT,UPDATE}'::text[]) AS allowed
                WHERE has_table_privilege(found.oid, allowed)
            ),
            'elsewhere', ARRAY(
                SELECT relnamespace::regnamespace::text FROM pg_class AS other
                WHERE other.relname = wanted AND other.relkind IN ('r', 'p') ORDER BY 1
            )
        )::text
        FROM unnest(%(tables)s::text[]) AS wanted
        LEFT JOIN pg_class AS found ON found.oid = to_regclass(wanted)
        LEFT JOIN pg_namespace ON pg_namespace.oid = found.relnamespace
    )
"""
APPLIED: Final = f"SELECT migration_id FROM {_MIGRATIONS}"
# Empty, but for the server's log to be on the way to the standby: a commit waits for it.
EMPTY_COMMIT: Final = "BEGIN; SELECT pg_logical_emit_message(true, 'verbatim-chat', ''); COMMIT"


class ReadOnly(StoreUnavailable):
    """This session takes no writes; a new one may, perhaps on another host."""


@frozen
class _Table:
    """What stands behind a name in our statements; `schema` is None if nothing does."""

    name: str
    schema: str | None
    columns: frozenset[str]
    rights: frozenset[str]
    elsewhere: Sequence[str]


@frozen
class _Facts:
    """What the catalogs say of this session, in the order of `FACTS`."""

    in_recovery: bool
    read_only: bool
    encoding: str
    user: str
    schema: str | None
    may_create: bool
    waits_for_standby: bool
    tables: Mapping[str, _Table]


async def check(
    cursor: saving.Cursor, where: str, timeout_seconds: float, cancel: Callable[[], object]
) -> None:
    """Return if a save would work.

    Args:
        cancel: cancels what the cursor's connection does at that moment. It may block.

    Raises:
        StoreUnavailable: it would not, and why.
        psycopg2.Error: the server's own word for why not.
    """
    facts = await _facts(cursor)
    if (why := session_obstacle(facts.in_recovery, facts.read_only)) is not None:
        raise ReadOnly(f"PostgreSQL at {where}: {why}")
    if facts.encoding != "UTF8":
        raise StoreUnavailable(
            f"The database at {where} is encoded in {facts.encoding}, which can't hold every "
            "text; create one with ENCODING 'UTF8'"
        )
    applied = await _applied(cursor, facts)
    if (why := _tables_obstacle(facts, applied)) is not None:
        raise TablesUnfit(f"PostgreSQL at {where}: {why}")
    if (why := _rights_obstacle(facts)) is not None:
        raise StoreUnavailable(f"PostgreSQL at {where}: {why}")
    trial = rows_of(_trial())
    await saving.try_out(cursor, [trial], min(timeout_seconds, PROBE_SECONDS))
    if facts.waits_for_standby and not await _commits(cursor, cancel):
        raise StoreUnavailable(
            f"PostgreSQL at {where}: commits wait for a synchronous standby that doesn't "
            "answer; bring it back or change synchronous_standby_names"
        )


async def _commits(cursor: saving.Cursor, cancel: Callable[[], object]) -> bool:
    """True if a commit comes back in time. One that doesn't is cancelled, as no timeout of the server
    ends its waiting, nor does its client's leaving; then it only stops to wait."""
    committing = asyncio.ensure_future(cursor.execute(EMPTY_COMMIT))
    try:
        done, _ = await asyncio.wait({committing}, timeout=COMMIT_SECONDS)
        if not done:
            await asyncio.to_thread(cancel)
        await committing
    except BaseException:
        committing.cancel()
        raise
    return bool(done)


def session_obstacle(in_recovery: bool, read_only: bool) -> str | None:
    """Why a session takes no writes at all, or None."""
    if in_recovery:
        return (
            "it is a standby and takes no writes; point DATABASE_URL at the primary, or name all "
            "hosts in it and add target_session_attrs=read-write"
        )
    if read_only:
        return (
            "it is set read-only (default_transaction_read_only) and takes no writes; "
            "set that off, or point DATABASE_URL at another"
        )
    return None


async def _facts(cursor: saving.Cursor) -> _Facts:
    await cursor.execute(FACTS, {"tables": [*_COLUMNS, _MIGRATIONS]})
    ((*session, found),) = await cursor.fetchall()
    tables = {}
    for source in found:
        table = json.loads(source)
        tables[table["name"]] = _Table(
            table["name"],
            table["schema"],
            frozenset(table["columns"]),
            frozenset(table["rights"]),
            table["elsewhere"],
        )
    return _Facts(*session, tables)  # type: ignore[call-arg]  # as many as there are columns


async def _applied(cursor: saving.Cursor, facts: _Facts) -> frozenset[str] | None:
    """The migrations that the database has; None if it doesn't say."""
    noted = facts.tables[_MIGRATIONS]
    if "SELECT" not in noted.rights or "migration_id" not in noted.columns:
        return None
    await cursor.execute(APPLIED)
    return frozenset(name for (name,) in await cursor.fetchall())


def _tables_obstacle(facts: _Facts, applied: frozenset[str] | None) -> str | None:
    """Why the tables are not those that this code knows, or None."""
    missing = [name for name in _COLUMNS if facts.tables[name].schema is None]
    if missing and not (applied and len(missing) < len(_COLUMNS)):
        return _missing_tables(facts, missing)
    behind = [] if applied is None else sorted(sql.migration_ids() - applied)
    if behind:
        return (
            f"its tables, in schema {_schema_of(facts)}, are too old: {', '.join(behind)} is "
            "missing; run the migrations: python -m db.migrate"
        )
    if missing:
        return _missing_tables(facts, missing)
    for name, columns in _COLUMNS.items():
        table = facts.tables[name]
        if lacking := [column for column in columns if column not in table.columns]:
            return _odd_table(table, lacking, applied)
    return None


def _missing_tables(facts: _Facts, missing: Sequence[str]) -> str:
    names = ", ".join(missing)
    if facts.schema is None:
        return f"the tables {names} are missing, and no schema of search_path exists; create one"
    elsewhere = sorted({schema for name in missing for schema in facts.tables[name].elsewhere})
    if elsewhere:
        return (
            f"the tables {names} are out of reach: there are some in schema "
            f"{', '.join(elsewhere)}, which isn't in search_path or which the user "
            f"{facts.user} may not use; GRANT USAGE on it, or set search_path"
        )
    if not facts.may_create:
        return (
            f"the tables {names} are missing, and the user {facts.user} may not create them; "
            f"GRANT CREATE ON SCHEMA {facts.schema} TO {facts.user}, or let their owner run "
            "python -m db.migrate"
        )
    return (
        f"the tables {names} are missing in schema {facts.schema}; run the migrations: "
        "python -m db.migrate"
    )


def _odd_table(table: _Table, lacking: Sequence[str], applied: frozenset[str] | None) -> str:
    newer = sorted((applied or frozenset()) - sql.migration_ids())
    if newer and applied and sql.migration_ids() <= applied:
        return (
            f"its tables are of a newer version ({', '.join(newer)}): {table.schema}.{table.name} "
            f"has no column {', '.join(lacking)}; update this service"
        )
    return (
        f"{table.schema}.{table.name} is not Verbatim's: it has no column {', '.join(lacking)}; "
        "give Verbatim a database or a schema of its own, first in search_path"
    )


def _rights_obstacle(facts: _Facts) -> str | None:
    for name, needed in RIGHTS.items():
        table = facts.tables[name]
        if lacking := [right for right in needed if right not in table.rights]:
            return (
                f"the user {facts.user} lacks permission; GRANT {', '.join(lacking)} "
                f"ON {table.schema}.{name} TO {facts.user}"
            )
    return None


def _schema_of(facts: _Facts) -> str:
    return next(table.schema for table in facts.tables.values() if table.schema) or ""


def _trial() -> SessionRecord:
    """A record that uses every table, shares no row with any other, and is never kept."""
    name = uuid4().hex
    now = time.time()
    request = SessionRequest(
        completion_id=f"readiness-{name}",
        created_at=now,
        trace_id="",
        owner="readiness",
        agent="",
        model="",
        messages=[{"role": "user", "content": "May I?"}],
        conversation_key=name,
        tools=[{"type": "function", "function": {"name": name}}],
        metadata={"readiness": name},
    )
    return SessionRecord(
        request=request,
        agent="",
        state=State.COMPLETED,
        finish_reason="stop",
        failure=None,
        choices=(Choice(0, {"role": "assistant", "content": "Yes."}, "stop"),),
        whole=True,
        usage=None,
        usage_source=UsageSource.UNKNOWN,
        token_count=0,
        chunk_count=1,
        ttft_ms=None,
        duration_ms=0.0,
        finished_at=now,
        client_left_at=None,
        upstream_id=None,
        upstream_model=None,
        upstream_created=None,
        extra={},
    )
