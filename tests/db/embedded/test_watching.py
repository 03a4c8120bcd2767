"""The embedded server dies under its users: it is started again, and never behind a stop's back."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psycopg2
import pytest
from structlog.testing import capture_logs

from db.embedded import EmbeddedPostgres, EmbeddedUnavailable, watching
from tests.db.embedded.test_embedded import is_running
from tests.postgres import UNSAFE_BUT_FAST, execute, temporary_data_dir


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A data directory whose cluster is made; each test leaves it as it was."""
    with temporary_data_dir() as path:
        yield path


@pytest.fixture
def server(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedPostgres]:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(watching, "_FIRST_WAIT_SECONDS", 0.2)
    started = EmbeddedPostgres.start(made, settings=UNSAFE_BUT_FAST)
    yield started
    started.stop()


@asynccontextmanager
async def watched(server: EmbeddedPostgres) -> AsyncIterator[None]:
    watching_it = asyncio.create_task(watching.keep_running(server))
    yield
    watching_it.cancel()
    await asyncio.gather(watching_it, return_exceptions=True)


def kill(server: EmbeddedPostgres) -> None:
    pid = int((server.data_dir / "cluster" / "postmaster.pid").read_text().split("\n")[0])
    os.kill(pid, signal.SIGKILL)


async def until_it_answers(server: EmbeddedPostgres) -> None:
    async with asyncio.timeout(20):
        while True:
            with suppress(psycopg2.OperationalError):
                await asyncio.to_thread(execute, server.dsn, "SELECT 1")
                return
            await asyncio.sleep(0.05)


async def test_a_server_that_was_killed_is_started_again(server: EmbeddedPostgres) -> None:
    """Each time it is killed it comes back by itself, with the settings it had, and it is logged."""
    with capture_logs() as logs:
        async with watched(server):
            for _ in range(2):
                kill(server)
                await asyncio.sleep(0.1)
                await until_it_answers(server)
                await asyncio.sleep(0.2)  # then it is logged
    assert [("off",)] == execute(server.dsn, "SHOW fsync")
    said = [entry["event"] for entry in logs]
    assert ["embedded PostgreSQL died", "embedded PostgreSQL runs again"] * 2 == said
    assert server.stop()


async def test_a_stop_is_never_undone(server: EmbeddedPostgres) -> None:
    """Whoever stops it while it is being started again has it stopped in the end."""
    kill(server)
    reviving = threading.Thread(target=server.revive)
    reviving.start()
    await asyncio.to_thread(server.stop)
    reviving.join()
    assert not is_running(server.data_dir)
    assert not server.revive()
    assert not is_running(server.data_dir)


async def test_a_server_that_runs_is_left_alone(server: EmbeddedPostgres) -> None:
    """Looking changes nothing, and neither does reviving what lives."""
    assert server.is_running()
    assert not server.revive()


async def test_a_vanished_directory_is_said_and_not_replaced(server: EmbeddedPostgres) -> None:
    """Without its files it can't be started again; no empty cluster takes their place, and the
    attempts keep their distance."""
    cluster = server.data_dir / "cluster"
    kill(server)
    await asyncio.sleep(0.3)  # its children end
    with capture_logs() as logs:
        async with watched(server):
            cluster.rename(server.data_dir / "away")
            await asyncio.sleep(1)
    assert not cluster.exists()
    (server.data_dir / "away").rename(cluster)
    said = [entry for entry in logs if entry["event"] == "embedded PostgreSQL not started"]
    assert 1 <= len(said) <= 6
    assert "has vanished" in said[-1]["reason"]


async def test_a_vanished_data_directory_is_said(server: EmbeddedPostgres) -> None:
    """The same of the directory with all that is in it."""
    kill(server)
    await asyncio.sleep(0.3)
    away = server.data_dir.with_suffix(".away")
    server.data_dir.rename(away)
    with pytest.raises(EmbeddedUnavailable, match="can't be started again"):
        server.revive()
    away.rename(server.data_dir)
