"""The journal on a disk that refuses to write, to truncate, to delete or to close."""

import asyncio
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from structlog.testing import capture_logs

from db.journal import Fsync, Journal
from db.journal.reading import Damage, read_lines
from db.journal.recovery import Recovery
from statemachine import SessionPolicy, SessionRecord, State, UpstreamFinished
from tests.db.journal.journals import (
    begin,
    ids,
    limited,
    lines,
    live,
    open_journal,
    replayed,
    say,
    segments,
    segments_of,
    size_on_disk,
    words,
)
from tests.db.records import make_request


@contextmanager
def tiny_disk(size: int) -> Iterator[Path]:
    """A file system of its own with this much room; skips where that can't be had."""
    with TemporaryDirectory(prefix="verbatim-") as path:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "verbatim", path]
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs the permission to mount a tmpfs")
        try:
            yield Path(path)
        finally:
            subprocess.run(["umount", path], check=True)


def _fill_and_free(directory: Path, make_room: Callable[[], None], reason: str) -> None:
    """The life of a journal whose disk fills up and is given room again."""
    journal = open_journal(directory)
    begin(journal, "a")
    with capture_logs() as logs:
        for number in range(200):
            say(journal, "a", f"{number} " * 50)
    assert ["journal not written"] == [entry["event"] for entry in logs]
    kept = len(lines(journal.directory))  # which asserts that nothing is torn
    assert 2 < kept < 200
    assert size_on_disk(journal.directory) == journal.size
    assert f"the journal can't be written: {reason}" == journal.check()
    assert not journal.has_whole("a")
    assert not begin(journal, "b", messages=[{"role": "user", "content": "x" * 5000}])
    assert 1 == journal.uncommitted
    make_room()
    say(journal, "a", "after", 301.0)
    assert journal.check() is None
    assert begin(journal, "c")
    assert journal.has_whole("c")
    journal.append("a", [UpstreamFinished()], 302.0)
    journal.close()
    records = {record.completion_id: record for record in replayed(journal.directory)}
    assert {"a", "c"} == records.keys()
    assert records["a"].failure is not None
    assert not records["a"].whole  # the gap tells
    assert words(records["a"]).startswith("0 0 0 ")
    assert words(records["a"]).endswith("after")


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    """ENOSPC, short writes included, tears no line, is logged once and refuses new sessions; once
    there is room, writing goes on."""
    with tiny_disk(128 * 1024) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(64 * 1024))
        _fill_and_free(disk / "journal", ballast.unlink, os.strerror(28))


def test_a_limit_on_the_file_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    """Any other refusal of the kernel costs as little as a full disk, here EFBIG."""
    with limited(resource.RLIMIT_FSIZE, 50_001):
        old = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        _fill_and_free(
            tmp_path,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (old, old)),
            os.strerror(27),
        )


@contextmanager
def refusing() -> Iterator[None]:
    """The kernel refuses every further byte of a file that has any."""
    with capture_logs(), limited(resource.RLIMIT_FSIZE, 1):  # what pytest writes, too
        yield


async def recovered(directory: Path) -> dict[str, SessionRecord]:
    found: dict[str, SessionRecord] = {}

    def save(record: SessionRecord) -> "asyncio.Future[None]":
        found[record.completion_id] = record
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    await Recovery(directory, None, save).run()
    return found


async def test_a_kill_while_the_disk_is_full_promises_no_word_too_many(tmp_path: Path) -> None:
    """Lines were refused up to the end, so no line can tell: what didn't end is damaged, what did is
    whole."""
    journal = open_journal(tmp_path)
    live(journal, "ended", ["all of it"])
    begin(journal, "running")
    say(journal, "running", "as far as")
    with refusing():
        say(journal, "running", " this")
    assert (journal.directory / "incomplete").exists()
    journal.close()
    found = await recovered(tmp_path)
    assert State.COMPLETED is found["ended"].state
    failure = found["running"].failure
    assert failure is not None
    assert "journal_damaged" == failure.code
    assert "could not be written" in failure.message
    assert "as far as" == words(found["running"])
    assert [] == list(tmp_path.iterdir())


async def test_once_there_is_room_only_those_that_lost_a_line_are_damaged(tmp_path: Path) -> None:
    """Then lines tell again, also of a session to which nothing more happens."""
    journal = open_journal(tmp_path)
    for name in ("lost", "idle"):
        begin(journal, name)
        say(journal, name, "before")
    with refusing():
        say(journal, "lost", " between")
        assert journal.check() is not None
    assert journal.check() is None
    assert not (journal.directory / "incomplete").exists()
    begin(journal, "later")
    journal.close()
    codes = {
        name: record.failure.code
        for name, record in (await recovered(tmp_path)).items()
        if record.failure
    }
    died = "process_died"
    assert {"lost": "journal_damaged", "idle": died, "later": died} == codes


async def test_a_gap_is_never_called_every_word_that_was_shown(tmp_path: Path) -> None:
    """A session with a line missing that never ended lost words, whatever ended it."""
    journal = open_journal(tmp_path)
    begin(journal, "a")
    say(journal, "a", "one")
    with refusing():
        say(journal, "a", " two")
    say(journal, "a", " three")
    journal.close()
    (record,) = (await recovered(tmp_path)).values()
    assert record.failure is not None
    assert "journal_damaged" == record.failure.code


def test_room_for_less_is_no_room_for_what_was_refused(tmp_path: Path) -> None:
    """While small lines can be written and a large request can't, no new one is to come."""
    journal = open_journal(tmp_path)
    begin(journal, "a")
    long = [{"role": "user", "content": "x" * 400_000}]
    with capture_logs(), limited(resource.RLIMIT_FSIZE, 300_000):
        assert not begin(journal, "b", messages=long)
        say(journal, "a", "a little")
        assert "can't be written" in str(journal.check())
    assert journal.check() is None
    assert begin(journal, "b", messages=long)
    journal.close()


def test_a_segment_that_can_not_follow_is_waited_for(tmp_path: Path) -> None:
    """Without a new segment (no descriptor is free, the name is taken) the old one goes on."""
    with segments_of(300):
        journal = open_journal(tmp_path)
        begin(journal, "a")
        with limited(resource.RLIMIT_NOFILE, 1), capture_logs() as logs:
            for number in range(5):
                say(journal, "a", f"{number} ")
        assert ["journal segment not made"] * len(logs) == [entry["event"] for entry in logs]
        assert 1 <= len(logs) < 5
        assert 1 == len(segments(journal.directory))
        assert journal.check() is None
        assert journal.has_whole("a")
        for number in range(5, 8):
            say(journal, "a", f"{number} ")
        assert len(segments(journal.directory)) > 1
        journal.close()
        (record,) = replayed(journal.directory)
        assert "0 1 2 3 4 5 6 7 " == words(record)


def test_a_torn_line_that_stays_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that won't even truncate, what follows the torn line is written, counted and
    read."""

    def refuse(_fd: int, _size: int) -> None:
        raise OSError(5, "Input/output error")

    journal = open_journal(tmp_path)
    begin(journal, "a")
    say(journal, "a", "kept")
    with monkeypatch.context() as broken, limited(resource.RLIMIT_FSIZE, journal.size + 20):
        broken.setattr(os, "ftruncate", refuse)
        say(journal, "a", "lost")
    assert size_on_disk(journal.directory) == journal.size
    say(journal, "a", " and kept")
    with limited(resource.RLIMIT_FSIZE, journal.size + 20):
        say(journal, "a", "lost, and cut off where it began")
    journal.append("a", [UpstreamFinished()], 9.0)
    assert size_on_disk(journal.directory) == journal.size
    (segment,) = segments(journal.directory)
    assert 1 == sum(isinstance(item, Damage) for item in read_lines(segment.read_bytes()))
    journal.close()
    (record,) = replayed(journal.directory)
    assert "kept and kept" == words(record)
    assert not record.whole


def test_a_segment_that_can_not_be_deleted_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk gone read-only is logged; forgetting, the saver's last step, does not fail on it."""

    def refuse(_path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    with segments_of(300):
        journal = open_journal(tmp_path)
        live(journal, "a", ["x"] * 5)
        monkeypatch.setattr(Path, "unlink", refuse)
        with capture_logs() as logs:
            journal.forget(["a"])
        assert {"journal segment not deleted"} == {entry["event"] for entry in logs}
        assert 0 == journal.uncommitted
        begin(journal, "b")
        journal.close()
    assert ["b"] == ids(replayed(journal.directory))


def test_a_segment_that_can_not_be_closed_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk may report only at the end that it lost something: that is logged, and neither
    a stream nor the saver fails on it."""
    close = os.close

    def refuse(fd: int) -> None:
        close(fd)
        raise OSError(5, "Input/output error")

    with segments_of(300):
        journal = open_journal(tmp_path)
        begin(journal, "a")
        with monkeypatch.context() as broken, capture_logs() as logs:
            broken.setattr(os, "close", refuse)
            for number in range(5):
                say(journal, "a", f"{number} ")
            journal.forget(["a"])
        assert {"journal not synced"} == {entry["event"] for entry in logs}
        assert journal.check() is None
        begin(journal, "b")
        journal.close()
    assert ["b"] == ids(replayed(journal.directory))


def test_a_journal_deleted_while_in_use_is_made_anew(tmp_path: Path) -> None:
    """A journal whose directory somebody deletes makes a new one with the next session."""
    journal = Journal.open(tmp_path, Fsync.NEVER, 10**9)
    first, second = make_request(), make_request()
    assert journal.begin(first, SessionPolicy())
    shutil.rmtree(journal.directory)
    assert journal.begin(second, SessionPolicy())
    assert not journal.has_whole(first.completion_id)
    assert journal.has_whole(second.completion_id)
    (segment,) = journal.segments_of([second.completion_id])
    assert second.completion_id.encode() in segment.read_bytes()
    assert (journal.directory / "lock").exists()
    journal.forget([first.completion_id, second.completion_id])
    journal.close()
    assert not journal.directory.exists()
