"""Bringing tables up to date: once, whoever and however many try."""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path

import psycopg2
import pytest

import db.migrate as module
from db.migrate import main, migrate
from db.postgres import sql
from db.postgres.store import PostgresStore
from db.store import CompletionFilter, Paging, StoreUnavailable
from statemachine import ParsedChunk, State
from tests.db.starters import migrated_by_four
from tests.db.tapes import record_of
from tests.postgres import execute
from tests.statemachine.conftest import text_chunk

ALL = sorted(sql.migration_ids())
ALL_TABLES = [
    "completion_labels",
    "completions",
    "conversations",
    "deletions",
    "messages",
    "tool_calls",
    "tool_sets",
]
TABLES = (
    "SELECT table_name FROM information_schema.tables"
    " WHERE table_schema = 'public' AND table_name NOT LIKE '\\_yoyo%' ORDER BY 1"
)


def tables(dsn: str) -> list[str]:
    return [name for (name,) in execute(dsn, TABLES)]


def test_an_empty_database_gets_every_table(empty_database_url: str) -> None:
    """Migrating applies all there is, in order, and says so."""
    assert ALL == migrate(empty_database_url)
    assert ALL_TABLES == tables(empty_database_url)


def test_migrating_again_does_nothing(empty_database_url: str) -> None:
    """Once all is applied there is nothing more to apply."""
    migrate(empty_database_url)
    assert [] == migrate(empty_database_url)


def test_several_processes_may_migrate_at_once(empty_database_url: str) -> None:
    """Of several processes that start together one migrates, the others wait; none fails."""
    applied = [f"applied {name}" for name in ALL]
    expected = sorted(["\n".join(applied), *["nothing to apply"] * 3])
    assert expected == sorted(migrated_by_four(empty_database_url))


def test_a_killed_migration_blocks_nobody(empty_database_url: str) -> None:
    """The lock goes with its connection: who holds it and dies leaves the way free."""
    with closing(psycopg2.connect(empty_database_url)) as connection:
        connection.cursor().execute(f"SELECT pg_advisory_lock({module._LOCK})")
    assert ALL == migrate(empty_database_url)


def test_waiting_for_another_migration_is_bounded(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If somebody else migrates for ever, the wait ends, saying what to look for."""
    monkeypatch.setattr(module, "LOCK_TIMEOUT_SECONDS", 0.1)
    with closing(psycopg2.connect(empty_database_url)) as connection:
        connection.cursor().execute(f"SELECT pg_advisory_lock({module._LOCK})")
        with pytest.raises(StoreUnavailable, match="a migration that hangs"):
            migrate(empty_database_url)


def test_a_failing_migration_leaves_nothing(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration is applied and noted as a whole, or not at all; those before it stay."""
    (tmp_path / "0001_good.sql").write_text("CREATE TABLE good (a int);")
    bad = tmp_path / "0002_bad.sql"
    bad.write_text("CREATE TABLE half (a int);\nINSERT INTO missing VALUES (1);")
    monkeypatch.setattr(module, "MIGRATIONS", tmp_path)
    with pytest.raises(StoreUnavailable):
        migrate(empty_database_url)
    assert ["good"] == tables(empty_database_url)
    bad.write_text("CREATE TABLE half (a int);")
    assert ["0002_bad"] == migrate(empty_database_url)
    assert ["good", "half"] == tables(empty_database_url)


def test_a_migration_and_its_note_commit_together(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dying between the tables and the note that they are made undoes the tables."""

    def die(*_: object, **__: object) -> None:
        raise psycopg2.OperationalError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(module._Backend, "mark_one", die)
        with pytest.raises(StoreUnavailable, match="killed"):
            migrate(empty_database_url)
    assert [] == tables(empty_database_url)
    assert ALL == migrate(empty_database_url)


def test_the_migrations_hold_nothing_that_outlives_a_transaction() -> None:
    """Each runs in one transaction, so no statement may need to stand outside of one or leave a
    setting behind."""
    for path in sql.MIGRATIONS.glob("*.sql"):
        text = path.read_text().upper()
        assert "CONCURRENTLY" not in text
        assert "VACUUM" not in text
        assert "\nSET " not in text


def test_what_migrating_sets_ends_with_it(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lock and settings are the transaction's: none of them is on the connection afterwards, which
    behind a pooler somebody else gets next."""
    left: list[tuple[object, ...]] = []

    class Watched(module._Backend):
        def __exit__(self, *about: object) -> None:
            for statement in (
                "SELECT current_setting('lock_timeout')",
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
            ):
                left.extend(self.execute(statement).fetchall())
            super().__exit__(*about)

    monkeypatch.setattr(module, "_Backend", Watched)
    assert ALL == migrate(empty_database_url)
    assert [("0",), (0,)] == left


def test_who_waited_sees_what_the_other_did(empty_database_url: str) -> None:
    """Also where transactions see the rows of their beginning, unless told otherwise."""
    name = execute(empty_database_url, "SELECT current_database()")[0][0]
    execute(
        empty_database_url,
        f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'",
    )
    with ThreadPoolExecutor() as threads:
        applied = list(threads.map(migrate, [empty_database_url] * 3))
    assert ALL == sorted(chain(*applied))


def test_rows_that_a_migration_refuses_are_said_in_a_sentence(
    empty_database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`python -m db.migrate` prints no traceback for what an operator has to mend."""
    (tmp_path / "0001_odd.sql").write_text("SELECT 1 / 0;")
    monkeypatch.setattr(module, "MIGRATIONS", tmp_path)
    assert 1 == main([empty_database_url])
    said = capsys.readouterr().err
    assert re.fullmatch(r"A migration fails on rows that are in .* SQLSTATE 22012\n", said)


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m db.migrate` fails with one line, without the password."""
    assert 1 == main(["postgresql://u:hunter2@127.0.0.1:1/chat"])
    said = capsys.readouterr().err
    assert re.fullmatch(r"PostgreSQL at 127\.0\.0\.1:1/chat: nothing listens there.*\n", said)


def test_every_table_is_described(database_url: str) -> None:
    """Whoever looks into the database finds in it what each table is for."""
    described = "SELECT relname::text FROM pg_class WHERE obj_description(oid, 'pg_class') <> ''"
    names = [name for (name,) in execute(database_url, described)]
    assert set(ALL_TABLES) <= set(names)


def migrate_to(number: int, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have only the first so many migrations applied."""
    for name in ALL[:number]:
        (tmp_path / f"{name}.sql").write_text((sql.MIGRATIONS / f"{name}.sql").read_text())
    with monkeypatch.context() as patch:
        patch.setattr(module, "MIGRATIONS", tmp_path)
        migrate(dsn)


async def test_rows_from_before_a_migration_can_be_read(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows from before there were labels and hidden ones are found by their metadata, and hidden
    if their client wanted that; so are the messages that only such completions have."""
    migrate_to(1, empty_database_url, tmp_path, monkeypatch)
    for name, store in (("a", "true"), ("b", "false")):
        execute(
            empty_database_url,
            f"""
            INSERT INTO conversations VALUES ('both', 'alice', NULL, now(), now())
            ON CONFLICT DO NOTHING;
            INSERT INTO messages (message_id, conversation_id, role, content, state, digest,
                parent_digest, created_at)
            VALUES ('root', 'both', 'user', 'root', 'complete', 'root', NULL, now()),
                ('sent-{name}', 'both', 'user', '{name}', 'complete', 'sent-{name}', 'root', now())
            ON CONFLICT DO NOTHING;
            INSERT INTO completions (completion_id, conversation_id, owner, agent, model, state,
                usage_source, token_count, chunk_count, duration_ms, trace_id, request, metadata,
                prompt_digest, created_at, finished_at)
            VALUES ('{name}', 'both', 'alice', 'demo', 'demo', 'completed', 'unknown', 1, 1, 1, '',
                '{{"store": {store}}}', '{{"k": "v"}}', 'sent-{name}', now(), now())
            """,
        )
    assert ALL[1:] == migrate(empty_database_url)
    opened = await PostgresStore.open(empty_database_url)
    page = await opened.list_completions("alice", CompletionFilter("demo", {"k": "v"}), Paging(9))
    assert ["a"] == [view.completion.completion_id for view in page.items]
    talk = await opened.view_conversation("alice", "both", Paging(9))
    assert talk is not None
    assert {"root", "sent-a", "a"} == {node.node_id for node in talk.nodes.items}
    await opened.close()


async def test_answers_from_before_there_were_tapes_can_be_read(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, as ever, and listed by how they ended; what is saved next has its tape."""
    migrate_to(2, empty_database_url, tmp_path, monkeypatch)
    execute(
        empty_database_url,
        """
        INSERT INTO conversations VALUES ('old', 'alice', NULL, now(), now());
        INSERT INTO completions (completion_id, conversation_id, owner, agent, model, state,
            usage_source, token_count, chunk_count, duration_ms, trace_id, request,
            created_at, finished_at)
        VALUES ('old', 'old', 'alice', 'demo', 'demo', 'failed', 'unknown', 1, 1, 1, '', '{}',
            now(), now());
        INSERT INTO messages (message_id, conversation_id, completion_id, choice_index, role,
            content, state, digest, created_at)
        VALUES ('old-0', 'old', 'old', 0, 'assistant', 'Hi', 'partial', 'old', now())
        """,
    )
    assert ALL[2:] == migrate(empty_database_url)
    opened = await PostgresStore.open(empty_database_url)
    new = record_of(ParsedChunk(text_chunk("Hello")))
    await opened.save([new])
    page = await opened.list_completions("alice", CompletionFilter(state=State.FAILED), Paging(9))
    assert ["old"] == [view.completion.completion_id for view in page.items]
    found = await opened.replayable("alice", "old")
    assert found is not None and found.tape is None
    assert "Hi" == found.view.choices[0].message["content"]
    found = await opened.replayable("alice", new.completion_id)
    assert found is not None and found.tape is not None
    await opened.close()
