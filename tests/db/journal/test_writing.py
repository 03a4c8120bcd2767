"""The journal: what is on disk after each call, when it goes, and what a bad disk does to it."""

import asyncio
import fcntl
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from db.journal import Fsync, Journal
from db.journal import writing as journal_module
from db.journal.format import Damage, read_lines
from db.journal.replay import Replay
from statemachine import (
    ChunkReceived,
    ClientLeft,
    SessionPolicy,
    SessionRecord,
    TimePassed,
    UpstreamFinished,
)
from tests.db.journal.journals import (
    begin,
    collect,
    dead_journal,
    ids,
    lines,
    live,
    open_journal,
    replayed,
    say,
    segments,
    words,
)
from tests.db.records import make_request
from tests.statemachine.conftest import text_chunk

Small = Callable[[int], None]


@contextmanager
def segments_of(size: int) -> Iterator[None]:
    """Segments end at this many bytes."""
    old = journal_module.SEGMENT_BYTES, journal_module._IDLE_SEGMENT_BYTES
    journal_module.SEGMENT_BYTES = journal_module._IDLE_SEGMENT_BYTES = size
    try:
        yield
    finally:
        journal_module.SEGMENT_BYTES, journal_module._IDLE_SEGMENT_BYTES = old


@contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """A soft limit on this process's resources."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def size_on_disk(directory: Path) -> int:
    return sum(path.stat().st_size for path in segments(directory))


def write_calls() -> int:
    """How many write(2) this process has made."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["syscw"])


def open_files() -> dict[str, str]:
    """This process's descriptors and what they are of."""
    names = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            names[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listed the directory
    return names


# --- appending --------------------------------------------------------------------------------


def test_what_was_appended_is_in_the_file_when_the_call_returns(tmp_path: Path) -> None:
    """Each call writes its one line, at the end, and counts its bytes."""
    journal = open_journal(tmp_path)
    assert begin(journal, "a")
    say(journal, "a", "one", 2.0)
    assert [0, 1] == [line["n"] for line in lines(journal.directory)]
    assert begin(journal, "b")
    say(journal, "a", "two", 3.0)
    expected = [("a", 0), ("a", 1), ("b", 0), ("a", 2)]
    assert expected == [(line["id"], line["n"]) for line in lines(journal.directory)]
    assert [{"chunk": text_chunk("two")}] == lines(journal.directory)[-1]["events"]
    assert 3.0 == lines(journal.directory)[-1]["at"]
    assert size_on_disk(journal.directory) == journal.size
    assert 2 == len(journal)
    journal.close()


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs Linux's I/O accounting")
def test_all_that_came_in_one_read_is_one_write(tmp_path: Path) -> None:
    """However many events are appended at once, the kernel is called once."""
    journal = open_journal(tmp_path)
    begin(journal, "a")
    before = write_calls()
    journal.append("a", [ChunkReceived(text_chunk("x" * 5000))] * 50, 1.0)
    after = write_calls()
    assert 1 == after - before
    assert 50 == len(lines(journal.directory)[-1]["events"])
    journal.close()


def test_what_says_nothing_is_not_written(tmp_path: Path) -> None:
    """The passing of time and completions that never began leave no bytes."""
    journal = open_journal(tmp_path)
    begin(journal, "a")
    size = journal.size
    journal.append("a", [TimePassed()], 1.0)
    journal.append("a", [], 1.0)
    say(journal, "unknown", "x")
    journal.forget(["unknown"])
    assert size == journal.size == size_on_disk(journal.directory)
    journal.append("a", [TimePassed(), ClientLeft()], 1.0)
    assert [{"event": "ClientLeft"}] == lines(journal.directory)[-1]["events"]
    journal.close()


def test_a_completion_begins_once(tmp_path: Path) -> None:
    """A second beginning under a running id is refused, and the first goes on."""
    with segments_of(100):
        journal = open_journal(tmp_path)
        assert begin(journal, "a")
        assert not begin(journal, "a")
        say(journal, "a", "x")
        journal.forget(["a"])
        assert 0 == len(journal)
        assert 1 == len(segments(journal.directory))  # nothing holds the others
        journal.close()


def test_forgetting_is_for_those_that_began_here(tmp_path: Path) -> None:
    """Unknown and repeated ids change nothing, among known ones too."""
    journal = open_journal(tmp_path)
    begin(journal, "a")
    begin(journal, "b")
    journal.forget(["c", "a", "c"])
    journal.forget(["a"])
    assert [["a"]] == [line["saved"] for line in lines(journal.directory) if "saved" in line]
    assert 1 == len(journal)
    journal.close()


# --- segments ---------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(st.sampled_from(["begin", "say", "say", "forget", "forget two"]), st.integers(0, 5)),
    max_size=60,
)


@settings(max_examples=50, deadline=None)
@given(walk=steps, limit=st.sampled_from([1, 400, 1500]))
def test_segments_hold_what_is_needed_and_no_more(walk: list[tuple[str, int]], limit: int) -> None:
    """After every call: all lines of all that aren't committed are there; each segment but the
    last is needed by one of them; committed ones never come back; bytes and descriptors agree."""
    descriptors = len(open_files())
    with TemporaryDirectory(prefix="verbatim-") as path, segments_of(limit):
        journal = open_journal(Path(path))
        counts: dict[str, int] = {}
        for number, (step, chosen) in enumerate(walk):
            names = sorted(counts)
            if step == "begin":
                counts[f"c{number}"] = 1
                assert begin(journal, f"c{number}")
            elif names and step == "say":
                name = names[chosen % len(names)]
                counts[name] += 1
                say(journal, name, "x")
            elif names:
                gone = {names[chosen % len(names)], names[0]} if "two" in step else {names[-1]}
                journal.forget(gone)
                for name in gone:
                    del counts[name]
            found = lines(journal.directory)
            for name, count in counts.items():
                assert list(range(count)) == [item["n"] for item in found if item.get("id") == name]
            *full, _ = segments(journal.directory)
            for segment in full:
                held = {item.get("id") for item in read_lines(segment.read_bytes())}  # type: ignore[union-attr]
                assert held & counts.keys()
            assert size_on_disk(journal.directory) == journal.size
            assert len(counts) == len(journal)
            assert descriptors + 2 == len(open_files())  # the lock and the last segment
        assert sorted(counts) == sorted(ids(replayed(journal.directory)))
        journal.close()
    assert descriptors == len(open_files())


def test_a_long_stream_does_not_hold_later_segments(tmp_path: Path) -> None:
    """Segments go in any order; that what they marked as saved is saved stays known."""
    with segments_of(2000):
        journal = open_journal(tmp_path)
        begin(journal, "long")
        live(journal, "first", ["x"])
        while len(segments(journal.directory)) < 3:
            say(journal, "first", "late")
        journal.forget(["first"])
        for number in range(20):
            live(journal, f"c{number}", ["x"])
            journal.forget([f"c{number}"])
        first, *others = segments(journal.directory)
        assert "000001.jsonl" == first.name
        assert 1 == len(others)
        assert ["long"] == ids(replayed(journal.directory))
        journal.close()


def test_an_idle_segment_is_dropped_without_waiting_for_its_end(tmp_path: Path) -> None:
    """A current segment that nobody needs is replaced once it is worth it."""
    journal = open_journal(tmp_path)
    begin(journal, "a", messages=[{"role": "user", "content": "x" * 1_100_000}])
    journal.forget(["a"])
    assert 0 == journal.size == size_on_disk(journal.directory)
    assert ["000002.jsonl"] == [path.name for path in segments(journal.directory)]
    journal.close()


def test_max_bytes_refuses_beginnings_only(tmp_path: Path) -> None:
    """A full journal takes no new sessions and says why; running ones are written on; it takes
    new ones again once there is room."""
    with segments_of(500):
        journal = open_journal(tmp_path, max_bytes=2000)
        number = 0
        while begin(journal, f"c{number}"):
            assert journal.size < 3000
            number += 1
        assert journal.size >= 2000
        assert f"the journal is full ({journal.size} bytes of journal.max_bytes)" == journal.check()
        size = journal.size
        say(journal, "c0", "still written")
        assert journal.size > size
        assert journal.has_whole("c0")
        assert number == len(journal)
        journal.forget([f"c{index}" for index in range(number)])
        assert journal.check() is None
        assert begin(journal, "next")
        journal.close()


def test_segments_of_names_the_files_to_read_back(tmp_path: Path) -> None:
    """The files that hold any of the completions, oldest first, each once."""
    with segments_of(1):
        journal = open_journal(tmp_path)
        for name in ("a", "b", "a", "c", "b"):
            if not begin(journal, name):
                say(journal, name, "x")
        names = [f"{number:06}.jsonl" for number in (1, 2, 3, 4, 5)]
        assert names == [path.name for path in segments(journal.directory)]
        held = [path.name for path in journal.segments_of(["b", "a", "unknown"])]
        assert [names[index] for index in (0, 1, 2, 4)] == held
        journal.close()


# --- reading back -----------------------------------------------------------------------------


async def test_a_journal_gives_back_what_it_has_whole(tmp_path: Path) -> None:
    """The saver's backlog: records as they were lived, until they are forgotten."""
    journal = open_journal(tmp_path)
    expected: list[SessionRecord] = [live(journal, name, ["x", name]) for name in "abc"]
    assert [True, False] == [journal.has_whole(name) for name in ("a", "z")]
    journal.forget(["b"])
    assert not journal.has_whole("b")
    wanted = ["c", "a", "z"]
    assert [expected[0], expected[2]] == [record async for record in journal.read_back(wanted)]
    assert [] == [record async for record in journal.read_back([])]
    journal.close()


# --- a disk that refuses ----------------------------------------------------------------------


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
    assert 1 == len(journal)
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
    """ENOSPC, short writes included, tears no line, is logged once, refuses new sessions, and
    is over as soon as there is room."""
    with tiny_disk(128 * 1024) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(64 * 1024))
        _fill_and_free(disk / "journal", ballast.unlink, os.strerror(28))


def test_a_limit_on_the_file_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    """The same of any other refusal that the kernel comes up with, here EFBIG."""
    with limited(resource.RLIMIT_FSIZE, 50_001):
        old = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        _fill_and_free(
            tmp_path,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (old, old)),
            os.strerror(27),
        )


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
        assert 0 == len(journal)
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


# --- crashes ----------------------------------------------------------------------------------


class _Killed(BaseException):
    """The process ends here."""


class _Fuse:
    """Ends the process at the n-th call that changes the disk; a write may come through in part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: int, torn: bool) -> None:
        self.calls = calls
        self._torn = torn
        for owner, name in ((os, "write"), (os, "open"), (Path, "unlink"), (Path, "rename")):
            monkeypatch.setattr(owner, name, self._guarded(name, getattr(owner, name)))

    def _guarded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **named: Any) -> Any:
            self.calls -= 1
            if self.calls > 0:
                return call(*arguments, **named)
            if name == "write" and self._torn:
                fd, data = arguments
                call(fd, data[: len(data) // 2])
            raise _Killed

        return guarded


@pytest.mark.parametrize("torn", [False, True])
def test_a_crash_between_any_two_steps_loses_no_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    """Killed before any call that changes the disk: all that was appended comes back, and what
    was committed comes back whole or not at all."""
    for calls in range(1, 200):
        directory = tmp_path / str(calls)
        said: dict[str, str] = {}
        forgotten: set[str] = set()
        with segments_of(900), monkeypatch.context() as patched:
            _Fuse(patched, calls, torn)
            try:
                journal = open_journal(directory)
                for number in range(9):
                    name = f"c{number}"
                    assert begin(journal, name)
                    said[name] = ""
                    for held in sorted(said.keys() - forgotten):
                        say(journal, held, name)
                        said[held] += name
                    if number % 3 == 2:
                        gone = [name, f"c{number - 1}"]
                        forgotten.update(gone)
                        journal.forget(gone)
                finished = True
            except _Killed:
                finished = False
        (path,) = directory.iterdir() if directory.exists() else (None,)
        records = replayed(path) if path is not None else []
        found = {record.completion_id: record for record in records}
        for name, text in said.items():
            if name not in found:
                assert name in forgotten
            else:
                shown = words(found[name])
                assert shown in (text, text + f"c{len(said) - 1}")  # the last one, not yet told
                assert "process_died" == found[name].failure.code  # type: ignore[union-attr]
                assert not found[name].failure.message.startswith("Part")  # type: ignore[union-attr]
        if finished:
            assert not forgotten & found.keys()
            break
    assert finished
    assert calls > 30


def test_a_journal_being_made_is_no_journal_yet(tmp_path: Path) -> None:
    """It gets its name once it is locked, so that whoever sees it finds it locked."""
    journal = open_journal(tmp_path)
    lock = os.open(journal.directory / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    journal.close()
    os.close(lock)


# --- the end ----------------------------------------------------------------------------------


def test_closing_an_empty_journal_removes_it(tmp_path: Path) -> None:
    """What everybody is done with leaves nothing behind."""
    journal = open_journal(tmp_path)
    live(journal, "a", ["x"])
    journal.forget(["a"])
    journal.close()
    assert [] == list(tmp_path.iterdir())


def test_closing_an_unfinished_journal_leaves_it_unlocked(tmp_path: Path) -> None:
    """What isn't committed waits for whoever adopts it."""
    path = dead_journal(tmp_path, ["a", "b"])
    assert [path] == list(tmp_path.iterdir())
    lock = os.open(path / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)
    assert ["a", "b"] == ids(replayed(path))


async def test_nothing_breaks_after_closing(tmp_path: Path) -> None:
    """A stream that outlives the journal goes on without it."""
    descriptors = len(open_files())
    journal = open_journal(tmp_path, Fsync.ALWAYS)
    begin(journal, "a")
    journal.close()
    assert descriptors == len(open_files())
    say(journal, "a", "late")
    assert not begin(journal, "b")
    await asyncio.wait_for(journal.settle(is_final=True), 1)
    journal.forget(["a"])
    journal.close()
    assert descriptors == len(open_files())
    assert [0] == [line["n"] for line in lines(journal.directory)]


def test_two_journals_in_one_directory_are_strangers(tmp_path: Path) -> None:
    """Neither writes to, counts or removes anything of the other's."""
    one, other = open_journal(tmp_path), open_journal(tmp_path)
    assert one.directory != other.directory
    begin(one, "a")
    say(other, "a", "not begun here")
    begin(other, "b")
    other.forget(["a", "b"])
    other.close()
    assert [one.directory] == list(tmp_path.iterdir())
    say(one, "a", "x")
    assert [0, 1] == [line["n"] for line in lines(one.directory)]
    one.close()


# --- fsync ------------------------------------------------------------------------------------


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
async def test_the_mode_says_what_waits_for_the_disk(
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


def test_a_small_journal_is_full_only_while_it_is_needed(tmp_path: Path) -> None:
    """However small `max_bytes`, a journal whose completions are all committed takes new ones."""
    journal = Journal.open(tmp_path, Fsync.NEVER, 300)
    first, second = make_request(), make_request()
    assert journal.begin(first, SessionPolicy())
    assert not journal.begin(second, SessionPolicy())
    assert "max_bytes" in str(journal.check())
    journal.forget([first.completion_id])
    assert journal.check() is None
    assert journal.begin(second, SessionPolicy())
    journal.close()


def test_deleted_while_in_use(tmp_path: Path) -> None:
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
