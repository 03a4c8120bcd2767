"""What waits for the disk itself, as `journal.fsync` says, and who shares the wait."""

import asyncio
import os
import resource
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from db.journal import Fsync
from db.journal.replay import Replay
from tests.db.journal.journals import (
    begin,
    collect,
    limited,
    live,
    open_files,
    open_journal,
    say,
    segments,
    segments_of,
)


class SlowDisk:
    """Notes which files are synced, and waits where a test wants it to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[str] = []
        self.free = threading.Event()
        self.free.set()
        self.fails = False
        monkeypatch.setattr(os, "fdatasync", self._sync)
        monkeypatch.setattr(os, "fsync", self._sync)

    def _sync(self, fd: int) -> None:
        assert self.free.wait(10)
        self.synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        if self.fails:
            raise OSError(5, "Input/output error")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


@pytest.mark.parametrize(
    ("fsync", "is_final", "waits"),
    [
        (Fsync.NEVER, False, False),
        (Fsync.NEVER, True, False),
        (Fsync.TERMINAL, False, False),
        (Fsync.TERMINAL, True, True),
        (Fsync.ALWAYS, False, True),
        (Fsync.ALWAYS, True, True),
    ],
)
async def test_fsync_decides_what_waits_for_the_disk(
    tmp_path: Path, disk: SlowDisk, fsync: Fsync, is_final: bool, waits: bool
) -> None:
    """`never` waits for nothing, `terminal` for the end, `always` for everything."""
    journal = open_journal(tmp_path, fsync)
    begin(journal, "a")
    await journal.settle(is_final=is_final)
    assert waits == ("000001.jsonl" in disk.synced)
    journal.close()


async def test_those_who_wait_share_a_sync(tmp_path: Path, disk: SlowDisk) -> None:
    """However many wait, one sync runs, and the next one serves all who came meanwhile."""
    journal = open_journal(tmp_path, Fsync.ALWAYS)
    begin(journal, "a")
    await journal.settle(is_final=False)
    disk.synced.clear()
    disk.free.clear()
    say(journal, "a", "x")
    first = [asyncio.create_task(journal.settle(is_final=False)) for _ in range(100)]
    await asyncio.sleep(0.05)
    say(journal, "a", "y")
    second = [asyncio.create_task(journal.settle(is_final=False)) for _ in range(100)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in (*first, *second))
    disk.free.set()
    await asyncio.gather(*first, *second)
    assert ["000001.jsonl"] * 2 == disk.synced
    await journal.settle(is_final=True)
    assert 2 == len(disk.synced)  # nothing new, nothing to wait for
    journal.close()


async def test_whoever_wants_to_be_told_is_told_in_order_and_once_it_is_safe(
    tmp_path: Path, disk: SlowDisk
) -> None:
    """What is appended during a sync is told of after the next, and what is safe already at once."""
    journal = open_journal(tmp_path, Fsync.ALWAYS)
    begin(journal, "a")
    await journal.settle(is_final=False)
    told: list[str] = []
    journal.when_settled(partial(told.append, "at once"))
    assert ["at once"] == told
    disk.free.clear()
    say(journal, "a", "x")
    journal.when_settled(partial(told.append, "x"))
    await asyncio.sleep(0.05)
    say(journal, "a", "y")
    journal.when_settled(partial(told.append, "y"))
    await asyncio.sleep(0.05)
    assert ["at once"] == told
    disk.synced.clear()
    disk.free.set()
    await journal.settle(is_final=False)
    await asyncio.sleep(0)
    assert ["at once", "x", "y"] == told
    assert ["000001.jsonl"] * 2 == disk.synced
    journal.close()


async def test_without_a_sync_before_chunks_everybody_is_told_at_once(tmp_path: Path) -> None:
    """Also once the journal is closed."""
    for fsync in (Fsync.NEVER, Fsync.TERMINAL, Fsync.ALWAYS):
        journal = open_journal(tmp_path / fsync, fsync)
        begin(journal, "a")
        if fsync is Fsync.ALWAYS:
            journal.close()
        told: list[str] = []
        journal.when_settled(partial(told.append, "told"))
        assert ["told"] == told
        if fsync is not Fsync.ALWAYS:
            journal.close()


async def test_a_waiter_that_is_cancelled_takes_no_one_along(
    tmp_path: Path, disk: SlowDisk
) -> None:
    """The sync goes on for the others."""
    journal = open_journal(tmp_path, Fsync.ALWAYS)
    begin(journal, "a")
    disk.free.clear()
    gone = asyncio.create_task(journal.settle(is_final=False))
    stays = asyncio.create_task(journal.settle(is_final=False))
    await asyncio.sleep(0.05)
    gone.cancel()
    await asyncio.wait((gone,))
    assert not stays.done()
    disk.free.set()
    await asyncio.wait_for(stays, 5)
    journal.close()


async def test_full_segments_and_directories_are_synced_too(tmp_path: Path, disk: SlowDisk) -> None:
    """What was appended before a new segment began is safe as well, and so are the files' names;
    no stream waits for that outside of `settle`."""
    with segments_of(1):
        journal = open_journal(tmp_path, Fsync.TERMINAL)
        begin(journal, "a")
        for _ in range(3):
            say(journal, "a", "x")
        assert [] == disk.synced
        await journal.settle(is_final=True)
        directories = [journal.directory.name, tmp_path.name]
        expected = [f"{number:06}.jsonl" for number in (1, 2, 3, 4)] + directories
        assert expected == disk.synced
        disk.synced.clear()
        say(journal, "a", "x")
        await journal.settle(is_final=True)
        assert ["000004.jsonl", "000005.jsonl", *directories] == disk.synced
        journal.close()


async def test_a_disk_that_will_not_sync_holds_up_no_stream(
    tmp_path: Path, disk: SlowDisk, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a failing sync nor a lack of descriptors for one makes `settle` fail or hang."""
    journal = open_journal(tmp_path, Fsync.ALWAYS)
    begin(journal, "a")
    disk.fails = True
    with capture_logs() as logs:
        await asyncio.wait_for(journal.settle(is_final=False), 5)
    assert ["journal not synced"] == [entry["event"] for entry in logs]
    disk.fails = False
    say(journal, "a", "x")
    with limited(resource.RLIMIT_NOFILE, 1), capture_logs() as logs:
        await asyncio.wait_for(journal.settle(is_final=False), 5)
    assert ["journal not synced"] == [entry["event"] for entry in logs]
    disk.synced.clear()
    say(journal, "a", "y")
    await asyncio.wait_for(journal.settle(is_final=False), 5)
    assert "000001.jsonl" in disk.synced
    journal.close()


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """Through segments, syncs and their end, descriptors are given back."""
    await asyncio.to_thread(int)  # the pool's own
    before = len(open_files())
    with segments_of(500):
        for fsync in Fsync:
            journal = open_journal(tmp_path, fsync)
            for number in range(5):
                live(journal, f"c{number}", ["x"] * 5)
                await journal.settle(is_final=True)
            assert before + 2 == len(open_files())
            journal.forget(["c0", "c1"])
            journal.close()
            assert before == len(open_files())
    assert 9 == sum([len(await collect_all(path)) for path in tmp_path.iterdir()])


async def collect_all(path: Path) -> list[Any]:
    return await collect(Replay(segments(path)))
