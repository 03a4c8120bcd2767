"""What keeps answers, at the start: the tables come as soon as the database does."""

import asyncio
import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import web

from db.claims import Claim, ClaimsUnavailable, MemoryClaims, SqliteClaims
from db.memory.store import MemoryStore
from db.postgres.store import PostgresStore
from db.store import RecordRejected, StoreError, StoreUnavailable
from service import persistence
from service.persistence import Persistence
from service.settings.config import Config, DatabaseConfig, JournalConfig
from tests.db.claims.claiming import make_claim


async def logged_by_migrating(
    failures: list[StoreError], monkeypatch: pytest.MonkeyPatch, log_lines: list[Any]
) -> list[tuple[str, int | None]]:
    """Each line's event and attempt, where the first attempts fail so; start-up has waited for
    the first one only."""
    left = list(failures)

    def migrate(_dsn: str) -> list[str]:
        if left:
            raise left.pop(0)
        return ["0001"]

    monkeypatch.setattr(persistence, "migrate", migrate)
    monkeypatch.setattr(persistence, "_FIRST_WAIT_SECONDS", 0.01)
    tried = asyncio.Event()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(persistence._migrate("postgresql://", tried))
        await tried.wait()
        assert 1 == len(log_lines)
    return [(line["event"], line.get("attempt")) for line in log_lines]


async def test_migrating_goes_on_until_the_database_is_there(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[Any]
) -> None:
    """Each attempt that finds no database is logged; the one that does is the last."""
    failures: list[StoreError] = [StoreUnavailable("nothing listens there")] * 2
    found = await logged_by_migrating(failures, monkeypatch, log_lines)
    assert [("database not ready", 1), ("database not ready", 2), ("database ready", None)] == found
    assert "nothing listens there" == log_lines[0]["reason"]


async def test_a_migration_that_the_data_refuse_is_said_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[Any]
) -> None:
    """Whatever the store's error, nobody is left to wonder why the tables don't come."""
    found = await logged_by_migrating([RecordRejected("SQLSTATE 23505")], monkeypatch, log_lines)
    assert [("database not ready", 1), ("database ready", None)] == found


async def test_whatever_a_migration_fails_at_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[Any]
) -> None:
    """An error that nobody foresaw is no reason to serve without tables for ever."""
    left = [KeyError("odd"), OSError(24, "Too many open files")]

    def migrate(_dsn: str) -> list[str]:
        if left:
            raise left.pop()
        return []

    monkeypatch.setattr(persistence, "migrate", migrate)
    monkeypatch.setattr(persistence, "_FIRST_WAIT_SECONDS", 0.01)
    async with asyncio.timeout(5):
        await persistence._migrate("postgresql://", asyncio.Event())
    assert ["database not ready"] * 2 + ["database ready"] == [line["event"] for line in log_lines]


async def test_a_start_waits_for_no_database(
    monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    """A server that takes the connection and says nothing keeps neither a start nor a stop."""
    monkeypatch.setattr(persistence, "_START_PATIENCE_SECONDS", 0.2)
    config = DatabaseConfig(url=f"postgresql://u@127.0.0.1:{unused_tcp_port}/chat")
    keep = persistence._database(config, PostgresStore(), persistence._Migration())
    with closing(socket.create_server(("127.0.0.1", unused_tcp_port))):
        async with asyncio.timeout(2):
            running = keep(web.Application())
            await anext(running)
            await anext(running, None)


async def test_many_probes_are_one_question() -> None:
    """Whoever asks within the same moment gets the same answer, and a later one a new one."""
    asked = 0

    async def check() -> str | None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.01)
        return f"answer {asked}"

    shared = persistence._shared(check)
    assert {"answer 1"} == set(await asyncio.gather(*(shared() for _ in range(50))))
    await asyncio.sleep(persistence._FRESH_SECONDS)
    assert "answer 2" == await shared()


async def through_a_life(keeping: Persistence, claim: Claim) -> Claim:
    """What a service that starts, is asked for this claim and stops gives for it."""
    running = [keep(web.Application()) for keep in keeping.contexts]
    for each in running:
        await anext(each)
    held = await keeping.claims.take(claim)
    for each in reversed(running):
        await anext(each, None)
    with pytest.raises(ClaimsUnavailable):
        await keeping.claims.find(claim.key)
    return held


def claims_of(journal: JournalConfig, keep_seconds: float = 60.0) -> Persistence:
    return Persistence.from_config(Config(journal=journal), MemoryStore(), lambda: keep_seconds)


async def test_claims_are_kept_beside_the_journals(tmp_path: Path) -> None:
    """What one process claimed the next one finds, as long as claims are kept."""
    first = make_claim("chatcmpl-1", claimed_at=time.time() - 30)
    second = make_claim("chatcmpl-2", claimed_at=time.time())
    config = JournalConfig(directory=str(tmp_path))
    assert first == await through_a_life(claims_of(config), first)
    assert ["claims.lock", "claims.sqlite3"] == sorted(path.name for path in tmp_path.iterdir())
    assert first == await through_a_life(claims_of(config), second)
    assert second == await through_a_life(claims_of(config, keep_seconds=20.0), second)


async def test_without_a_journal_claims_are_in_memory() -> None:
    """They end with the process, and are kept like others until then."""
    for completion_id in ("chatcmpl-1", "chatcmpl-2"):
        claim = make_claim(completion_id, claimed_at=time.time())
        keeping = claims_of(JournalConfig(directory=None))
        assert isinstance(keeping.claims, MemoryClaims)
        assert claim == await through_a_life(keeping, claim)


@pytest.mark.parametrize(("fsync", "expected"), [("never", 1), ("terminal", 2), ("always", 2)])
async def test_claims_are_as_safe_as_the_journal(
    fsync: Literal["never", "terminal", "always"], expected: int, tmp_path: Path
) -> None:
    """Who wants the ends of answers on the disk itself wants no second answer after a power loss."""
    keeping = claims_of(JournalConfig(directory=str(tmp_path), fsync=fsync))
    assert isinstance(keeping.claims, SqliteClaims)
    ((synchronous,),) = await keeping.claims._call(
        lambda connection: connection.execute("PRAGMA synchronous").fetchall()
    )
    assert expected == synchronous
    await keeping.claims.close()
