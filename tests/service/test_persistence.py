"""What keeps answers, at the start: the tables come as soon as the database does."""

import asyncio
from typing import Any

import pytest

from db.store import RecordRejected, StoreError, StoreUnavailable
from service import persistence


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
