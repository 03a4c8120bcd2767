"""The journal of a running process: what is on disk after each call, after a crash, and at the end."""

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from db.journal import Fsync, Journal
from statemachine import ChunkReceived, ClientLeft, SessionPolicy, SessionRecord, TimePassed
from tests.db.journal.journals import (
    begin,
    dead_journal,
    ids,
    lines,
    live,
    open_files,
    open_journal,
    replayed,
    say,
    segments,
    segments_of,
    size_on_disk,
    words,
)
from tests.db.records import make_request
from tests.statemachine.conftest import text_chunk


def write_calls() -> int:
    """How many write(2) this process has made."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["syscw"])


# --- appending --------------------------------------------------------------------------------


def test_a_line_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
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
    assert 2 == journal.uncommitted
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


def test_passing_time_and_unknown_completions_are_not_written(tmp_path: Path) -> None:
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
        assert 0 == journal.uncommitted
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
    assert 1 == journal.uncommitted
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
    """A journal gets its name once it is locked, so that whoever sees it finds it locked."""
    journal = open_journal(tmp_path)
    lock = os.open(journal.directory / "lock", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    journal.close()
    os.close(lock)


# --- the end ----------------------------------------------------------------------------------


def test_closing_an_empty_journal_removes_it(tmp_path: Path) -> None:
    """A journal whose completions are all committed leaves no file behind."""
    journal = open_journal(tmp_path)
    live(journal, "a", ["x"])
    journal.forget(["a"])
    journal.close()
    assert [] == list(tmp_path.iterdir())


def test_closing_an_unfinished_journal_leaves_it_unlocked(tmp_path: Path) -> None:
    """Completions that aren't committed wait for the process that adopts the journal."""
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


def test_journals_in_one_directory_leave_each_other_alone(tmp_path: Path) -> None:
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


def test_a_journal_that_is_not_started_leaves_nothing(tmp_path: Path) -> None:
    """It can be made before it is needed: until `start` it takes no session and makes no file."""
    journal = Journal(tmp_path / "journal", Fsync.NEVER, 10**9)
    assert not journal.begin(make_request(), SessionPolicy())
    journal.close()
    assert [] == [*tmp_path.iterdir()]
    journal.start()
    assert journal.begin(make_request(), SessionPolicy())
    journal.close()
