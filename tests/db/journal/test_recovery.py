"""Recovery: dead processes' journals, each adopted by one, deleted once all of it is committed.

Where a process must be dead or alive, it is a real one.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
from structlog.testing import capture_logs

from db.journal import NoJournal
from db.journal import recovery as recovery_module
from db.journal.recovery import Recovery
from db.memory.store import MemoryStore
from db.saver import Saver
from db.store import StoreUnavailable
from statemachine import SessionRecord, State
from tests.db.journal.journals import begin, dead_journal, live, open_journal, say, segments, words

ROOT = Path(__file__).resolve().parents[3]

LIVING = """
import sys
from pathlib import Path
from tests.db.journal.journals import begin, open_journal, say
journal = open_journal(Path(sys.argv[1]))
for number in range(3):
    begin(journal, f"c{number}")
    say(journal, f"c{number}", f"words of c{number}")
print(journal.directory.name, flush=True)
sys.stdin.read()
"""

RECOVERING = """
import asyncio, os, sys
from pathlib import Path
import structlog
from db.journal.recovery import Recovery
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
kept = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
patience = int(sys.argv[3])
def save(record):
    global patience
    future = asyncio.get_running_loop().create_future()
    patience -= 1
    if patience >= 0:
        os.write(kept, record.completion_id.encode() + b"\\n")
        future.set_result(None)
    return future
print("ready", flush=True)
sys.stdin.readline()
print(asyncio.run(Recovery(Path(sys.argv[1]), None, save).run()), flush=True)
"""


class Keeper:
    """A saver that keeps at once, unless `is_open` says to wait."""

    def __init__(self) -> None:
        self.records: dict[str, SessionRecord] = {}
        self.calls: Counter[str] = Counter()
        self.waiting: list[asyncio.Future[None]] = []
        self.most_waiting = 0
        self.is_open = True

    def save(self, record: SessionRecord) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.records[record.completion_id] = record
        self.calls[record.completion_id] += 1
        self.waiting.append(future)
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        if self.is_open:
            self.commit()
        return future

    def commit(self) -> None:
        for future in self.waiting:
            future.set_result(None)
        self.waiting.clear()


def has_waiting(keeper: Keeper, count: int) -> bool:
    return len(keeper.waiting) == count


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process of ours; killed at the end if it still runs."""
    started = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGKILL)
        started.wait(10)
        for pipe in (started.stdin, started.stdout):
            assert pipe is not None
            pipe.close()


def pipes(started: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert started.stdin is not None
    assert started.stdout is not None
    return started.stdin, started.stdout


# --- who adopts what --------------------------------------------------------------------------


async def test_a_living_process_keeps_its_journal_and_a_killed_one_loses_no_word(
    tmp_path: Path,
) -> None:
    """The kernel's lock tells them apart, and what a SIGKILL leaves is adopted whole."""
    keeper = Keeper()
    with process(LIVING, tmp_path) as other:
        name = await asyncio.to_thread(pipes(other)[1].readline)
        journal = tmp_path / name.strip()
        assert 0 == await Recovery(tmp_path, None, keeper.save).run()
        assert [journal] == list(tmp_path.iterdir())
        other.send_signal(signal.SIGKILL)
        await asyncio.to_thread(other.wait, 10)
    assert 3 == await Recovery(tmp_path, None, keeper.save).run()
    assert {f"c{number}": f"words of c{number}" for number in range(3)} == {
        name: words(record) for name, record in keeper.records.items()
    }
    assert {State.FAILED} == {record.state for record in keeper.records.values()}
    assert [] == list(tmp_path.iterdir())


def test_each_journal_has_one_adopter(tmp_path: Path) -> None:
    """Processes that start at once share the journals out, and no record is saved twice."""
    journals, kept = tmp_path / "journals", tmp_path / "kept"
    expected = {f"c{number}-{index}" for number in range(40) for index in range(3)}
    for number in range(40):
        dead_journal(journals, [f"c{number}-{index}" for index in range(3)])
    with (
        process(RECOVERING, journals, kept, 1000) as one,
        process(RECOVERING, journals, kept, 1000) as two,
        process(RECOVERING, journals, kept, 1000) as three,
    ):
        for started in (one, two, three):
            assert "ready\n" == pipes(started)[1].readline()
        for started in (one, two, three):
            pipes(started)[0].write("\n")
            pipes(started)[0].flush()
        counts = [int(pipes(started)[1].readline()) for started in (one, two, three)]
    saved = kept.read_text().split()
    assert len(saved) == len(set(saved))
    assert expected == set(saved)
    assert 120 == sum(counts)
    assert [] == list(journals.iterdir())


def test_a_killed_recovery_is_started_again(tmp_path: Path) -> None:
    """Killed in the middle, it leaves all that isn't committed to the next one."""
    journals, kept = tmp_path / "journals", tmp_path / "kept"
    first, second = (dead_journal(journals, [f"{x}{n}" for n in range(5)]) for x in "ab")
    with process(RECOVERING, journals, kept, 7) as started:
        pipes(started)[0].write("\n")
        pipes(started)[0].flush()
        for _ in range(500):
            if kept.exists() and len(kept.read_text().split()) == 7:
                break
            assert started.poll() is None
            os.sched_yield()
            signal.sigtimedwait([], 0.02)
        assert 1 == len({first, second} & set(journals.iterdir()))
        started.send_signal(signal.SIGKILL)
    with process(RECOVERING, journals, kept, 1000) as started:
        pipes(started)[0].write("\n")
        pipes(started)[0].flush()
        assert "ready\n" == pipes(started)[1].readline()
        assert "5\n" == pipes(started)[1].readline()
    assert {f"{x}{n}" for x in "ab" for n in range(5)} == set(kept.read_text().split())
    assert [] == list(journals.iterdir())


async def test_recoveries_in_one_process_adopt_each_journal_once(tmp_path: Path) -> None:
    """The lock belongs to whoever opened it, not to the process."""
    keeper = Keeper()
    for number in range(10):
        dead_journal(tmp_path, [f"c{number}"])
    runs = [Recovery(tmp_path, None, keeper.save).run() for _ in range(5)]
    assert 10 == sum(await asyncio.gather(*runs))
    assert {1} == set(keeper.calls.values())
    assert [] == list(tmp_path.iterdir())


async def test_an_adopter_that_comes_late_finds_nothing(tmp_path: Path) -> None:
    """Whoever opened the lock before its adopter was done must not adopt what is gone."""
    path = dead_journal(tmp_path, ["a"])
    opened = os.open(path / "lock", os.O_RDWR)
    assert 1 == await Recovery(tmp_path, None, Keeper().save).run()
    assert not recovery_module._is_locked(opened, path / "lock")
    os.close(opened)


async def test_a_process_never_adopts_its_own_journal(tmp_path: Path) -> None:
    """This process's journal is left alone, whatever is in it."""
    journal = open_journal(tmp_path)
    begin(journal, "a")
    dead_journal(tmp_path, ["b"])
    keeper = Keeper()
    assert 1 == await Recovery(tmp_path, journal.directory, keeper.save).run()
    assert {"b"} == keeper.records.keys()
    say(journal, "a", "still here")
    assert 1 == len(segments(journal.directory))
    journal.close()


async def test_directories_that_are_no_journal_are_left_alone(tmp_path: Path) -> None:
    """Dead letters, journals being made, files and foreign directories stay where they are."""
    (tmp_path / "dead-letters").mkdir()
    (tmp_path / "dead-letters" / "a.json").touch()
    (tmp_path / ".1767264752-1-ab").mkdir()
    (tmp_path / ".1767264752-1-ab" / "lock").touch()
    (tmp_path / "file").touch()
    (tmp_path / "no-lock").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with capture_logs() as logs:
        assert 0 == await Recovery(tmp_path, None, Keeper().save).run()
    assert (before, []) == (sorted(tmp_path.rglob("*")), logs)


# --- when it is deleted -----------------------------------------------------------------------


async def test_a_journal_is_deleted_only_after_its_last_commit(tmp_path: Path) -> None:
    """While one record waits for its commit, all of the journal stays."""
    path = dead_journal(tmp_path, ["a", "b", "c"])
    keeper = Keeper()
    keeper.is_open = False
    running = asyncio.create_task(Recovery(tmp_path, None, keeper.save).run())
    await until(lambda: len(keeper.waiting) == 3)
    last = keeper.waiting.pop()
    keeper.commit()
    await asyncio.sleep(0.05)
    assert not running.done()
    assert 1 == len(segments(path))
    last.set_result(None)
    assert 3 == await running
    assert [] == list(tmp_path.iterdir())


async def test_records_in_flight_are_bounded(tmp_path: Path) -> None:
    """However large a journal, only so many records are in memory; progress is logged."""
    dead_journal(tmp_path, [f"c{number}" for number in range(450)], texts=["x"])
    keeper = Keeper()
    keeper.is_open = False
    with capture_logs() as logs:
        running = asyncio.create_task(Recovery(tmp_path, None, keeper.save).run())
        for expected in (200, 200, 50):
            await until(partial(has_waiting, keeper, expected))
            await asyncio.sleep(0.01)
            assert expected == len(keeper.waiting)
            keeper.commit()
        assert 450 == await running
    assert 200 == keeper.most_waiting
    events = [(entry["event"], entry.get("completions")) for entry in logs]
    expected_events = [("recovering", None), ("recovering", 200), ("recovering", 400)]
    assert [*expected_events, ("recovered", 450)] == events
    assert (1, 0) == (logs[0]["segments"], logs[-1]["damages"])
    assert logs[0]["bytes"] > 450 * 100


async def test_a_database_that_is_down_leaves_all_for_the_next_start(tmp_path: Path) -> None:
    """Stopped while the store is away, nothing is deleted; the next run saves everything."""

    class Away(MemoryStore):
        async def save(self, records: Any) -> None:
            raise StoreUnavailable("away")

    path = dead_journal(tmp_path, ["a", "b"])
    saver = Saver(Away(), NoJournal())
    saver.start()
    running = asyncio.create_task(Recovery(tmp_path, None, saver.save).run())
    await until(lambda: saver.unsaved == 2)
    running.cancel()
    await asyncio.wait((running,))
    assert 2 == await saver.stop(0.01)
    assert 1 == len(segments(path))
    store = MemoryStore()
    saver = Saver(store, NoJournal())
    saver.start()
    assert 2 == await Recovery(tmp_path, None, saver.save).run()
    for name in ("a", "b"):
        (answer,) = await store.answer(name)
        assert "ab" == answer.content
    await saver.stop(1)
    assert [] == list(tmp_path.iterdir())


async def test_a_record_that_can_not_be_kept_keeps_its_journal(tmp_path: Path) -> None:
    """What the store refuses and nobody could set aside stays in its journal; other journals are
    recovered all the same."""

    def no_room(record: SessionRecord, reason: str) -> None:
        raise OSError(28, "No space left on device")

    class Picky(MemoryStore):
        async def save(self, records: Any) -> None:
            if any(record.completion_id == "bad" for record in records):
                raise ValueError
            await super().save(records)

    path = dead_journal(tmp_path, ["good", "bad"])
    dead_journal(tmp_path, ["other"])
    saver = Saver(Picky(), NoJournal(), no_room)
    saver.start()
    with capture_logs() as logs:
        async with asyncio.timeout(5):
            await Recovery(tmp_path, None, saver.save).run()
    assert [path] == list(tmp_path.iterdir())
    assert "journal not recovered" in [entry["event"] for entry in logs]
    await saver.stop(1)


async def test_a_half_deleted_journal_is_not_read_again(tmp_path: Path) -> None:
    """Killed while deleting, it left no journal but something to clear away."""
    path = dead_journal(tmp_path, ["a"])
    path.rename(tmp_path / f".{path.name}.done")
    keeper = Keeper()
    assert 0 == await Recovery(tmp_path, None, keeper.save).run()
    assert ({}, []) == (keeper.records, list(tmp_path.iterdir()))


async def test_an_empty_journal_is_cleared_away_in_silence(tmp_path: Path) -> None:
    """A process that was killed before its first session left nothing to tell."""
    path = dead_journal(tmp_path, ["a"])
    for segment in segments(path):
        segment.write_bytes(b"")
    with capture_logs() as logs:
        assert 0 == await Recovery(tmp_path, None, Keeper().save).run()
    assert ([], []) == (logs, list(tmp_path.iterdir()))


# --- disks and their ways ---------------------------------------------------------------------


@pytest.mark.parametrize("what", ["lock", "000002.jsonl"])
async def test_an_unreadable_journal_is_left_and_logged(tmp_path: Path, what: str) -> None:
    """An unreadable journal stays for a person to look at, and the others come back."""
    bad = dead_journal(tmp_path, ["a"])
    for name in ("b", "c"):
        dead_journal(tmp_path, [name])
    (bad / what).unlink(missing_ok=True)
    (bad / what).mkdir()
    keeper = Keeper()
    with capture_logs() as logs:
        assert 2 == await Recovery(tmp_path, None, keeper.save).run()
    assert [bad] == list(tmp_path.iterdir())
    assert {"b", "c"} <= keeper.records.keys()
    errors = [entry for entry in logs if entry["log_level"] == "error"]
    assert [("journal not recovered", str(bad))] == [(it["event"], it["journal"]) for it in errors]
    assert "Is a directory" in errors[0]["reason"]


def test_a_directory_of_somebody_else_is_left_and_logged() -> None:
    """What this user may not even look into holds up no other journal."""
    script = """
import asyncio, concurrent.futures.thread, os, sys, tempfile
from pathlib import Path
from structlog.testing import capture_logs
from db.journal.recovery import Recovery
from tests.db.journal.journals import dead_journal
from tests.db.journal.test_recovery import Keeper
with tempfile.TemporaryDirectory() as name:
    directory = Path(name)
    if os.getuid() == 0:
        os.chown(directory, 65534, 65534)
        os.setuid(65534)
    closed = dead_journal(directory, ["a"])
    for other in "bc":
        dead_journal(directory, [other])
    closed.chmod(0)
    with capture_logs() as logs:
        print(asyncio.run(Recovery(directory, None, Keeper().save).run()))
    print([path == closed for path in directory.iterdir()])
    print([entry["event"] for entry in logs if entry["log_level"] == "error"])
    closed.chmod(0o700)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert "2\n[True]\n['journal not recovered']\n" == done.stdout, done.stderr[-2000:]


async def test_a_directory_that_is_not_there_is_logged(tmp_path: Path) -> None:
    """A wrong path ends in a log line, not in a dead task."""
    with capture_logs() as logs:
        assert 0 == await Recovery(tmp_path / "nowhere", None, Keeper().save).run()
    assert ["journals not found"] == [entry["event"] for entry in logs]


async def test_a_damaged_journal_is_kept_for_people(tmp_path: Path) -> None:
    """All that can be read is saved; the file itself, perhaps the only place where the rest is
    left, is put aside under another name and not adopted again."""
    journal = open_journal(tmp_path)
    live(journal, "a", ["one ", "two ", "three"])
    live(journal, "b", ["x"])
    journal.close()
    (segment,) = segments(journal.directory)
    data = segment.read_bytes().replace(b"two ", b"tvo ")
    segment.write_bytes(data)
    keeper = Keeper()
    with capture_logs() as logs:
        assert 2 == await Recovery(tmp_path, None, keeper.save).run()
    assert "one three" == words(keeper.records["a"])
    assert State.COMPLETED == keeper.records["b"].state
    kept = tmp_path / f"damaged-{journal.directory.name}"
    assert [kept] == list(tmp_path.iterdir())
    assert data == (kept / segment.name).read_bytes()
    assert ("damaged journal kept", str(kept)) == (logs[-1]["event"], logs[-1]["journal"])
    assert 0 == await Recovery(tmp_path, None, keeper.save).run()
    assert [kept] == list(tmp_path.iterdir())
