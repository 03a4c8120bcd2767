"""The saver: bounded memory while the store is away; what it has no room for waits in the journal."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from db import saver as saver_module
from db.saver import NotKept, Saver
from statemachine import ParsedChunk, SessionRecord
from tests.db.journal.journals import ids, live, open_journal
from tests.db.records import make_record, user
from tests.db.saver.fakes import FakeBacklog, FakeStore, finish, make_records, started
from tests.db.tapes import record_of
from tests.statemachine.conftest import text_chunk


async def test_past_the_bound_records_wait_in_the_journal(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the store away, only so many are kept in memory; the others come back from a real
    journal, each exactly once and equal to what it was, and the journal ends empty."""
    monkeypatch.setattr(saver_module, "MAX_WAITING", 10)
    monkeypatch.setattr(saver_module, "MAX_BATCH", 7)
    journal = open_journal(tmp_path)
    saver = started(store, journal)
    store.free.clear()
    texts = [["word ", str(number), "\ud800"] for number in range(60)]
    references, futures = [], []
    for number in range(60):
        record = live(journal, f"c{number}", texts[number])
        futures.append(saver.save(record))
        references.append(weakref.ref(record))
        await asyncio.sleep(0)
    del record
    gc.collect()
    assert 60 == saver.unsaved
    assert sum(reference() is not None for reference in references) <= 10 + 7
    store.free.set()
    await asyncio.gather(*futures)
    assert [f"c{number}" for number in range(60)] == sorted(
        ids(store.committed), key=lambda name: int(name[1:])
    )
    again = open_journal(tmp_path / "again")
    expected = [live(again, f"c{number}", texts[number]) for number in range(60)]
    again.close()
    committed = {record.completion_id: record for record in store.committed}
    assert expected == [committed[record.completion_id] for record in expected]
    assert 0 == journal.uncommitted
    await finish(saver)
    journal.close()
    assert not journal.directory.exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_record(user("x" * 2000)),
        lambda: record_of(ParsedChunk(text_chunk("x"), b" " * 2000)),
    ],
    ids=["text", "tape"],
)
async def test_much_text_waits_in_the_journal_too(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch, make: Callable[[], SessionRecord]
) -> None:
    """A few enormous records fill the memory as many small ones would."""
    monkeypatch.setattr(saver_module, "MAX_WAITING_CHARACTERS", 5000)
    records = [make() for _ in range(6)]
    backlog = FakeBacklog(*records)
    saver = Saver(store, backlog)
    futures = [saver.save(record) for record in records]
    backlog.records = {it.completion_id: it for it in make_marked(records)}
    saver.start()
    await asyncio.gather(*futures)
    from_disk = [record for record in store.committed if record.extra.get("from") == "disk"]
    assert ids(records[3:]) == ids(from_disk)
    assert ids(records) == ids(store.committed)
    await asyncio.gather(*(saver.save(record) for record in records[:3]))
    assert records[:3] == store.committed[6:]  # there is room in memory again
    await finish(saver)


def make_marked(records: Iterable[SessionRecord]) -> list[SessionRecord]:
    return [make_record(request=record.request, extra={"from": "disk"}) for record in records]


async def test_what_waited_in_the_journal_comes_back_by_size(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of large records only so many are read back at a time as fit a transaction, of small ones
    more; one that is larger comes alone."""
    monkeypatch.setattr(saver_module, "MAX_WAITING", 0)
    monkeypatch.setattr(saver_module, "MAX_BATCH_CHARACTERS", 5000)
    sizes = [2000, 2000, 2000, 9000, 100, 100, 100]
    records = [make_record(user("x" * size)) for size in sizes]
    backlog = FakeBacklog(*records)
    saver = Saver(store, backlog)
    futures = [saver.save(record) for record in records]
    saver.start()
    await asyncio.gather(*futures)
    assert [2, 1, 1, 3] == [len(call) for call in store.calls]
    await finish(saver)


async def test_nobody_waits_for_an_enormous_record(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is saved beside the others, one such at a time, from memory as from the journal."""
    monkeypatch.setattr(saver_module, "MAX_BATCH_CHARACTERS", 5000)
    monkeypatch.setattr(saver_module, "MAX_WAITING", 3)
    large = [make_record(user("x" * 9000)) for _ in range(4)]
    small = make_records(6)
    free, running, most, save = asyncio.Event(), 0, 0, store.save

    async def slow(batch: Sequence[SessionRecord]) -> None:
        nonlocal running, most
        if batch[0] in large:
            running += 1
            most = max(most, running)
            await free.wait()
            running -= 1
        await save(batch)

    monkeypatch.setattr(store, "save", slow)
    saver = started(store, FakeBacklog(*large, *small))
    slow_ones = [saver.save(record) for record in large]
    async with asyncio.timeout(5):
        await asyncio.gather(*(saver.save(record) for record in small))
    assert 4 == saver.unsaved
    free.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*slow_ones)
    assert 1 == most
    monkeypatch.setattr(store, "save", save)
    await finish(saver)


async def test_new_records_do_not_keep_back_those_in_the_journal(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sessions end during every transaction, those that memory had no room for get their
    turn all the same, and so do the new ones while the journal can't be read."""
    monkeypatch.setattr(saver_module, "MAX_WAITING", 2)
    monkeypatch.setattr(saver_module, "COMMIT_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(saver_module, "_READ_AGAIN_SECONDS", 0.1)
    records = make_records(5)
    backlog = FakeBacklog(*records)
    backlog.failures = [OSError(24, "Too many open files")]
    saver, save = Saver(store, backlog), store.save

    async def save_while_others_end(batch: Sequence[SessionRecord]) -> None:
        saver.save(make_record())
        await save(batch)
        await asyncio.sleep(0.01)

    monkeypatch.setattr(store, "save", save_while_others_end)
    futures = [saver.save(record) for record in records]
    saver.start()
    async with asyncio.timeout(5):
        await asyncio.gather(*futures)
    assert ids(records[:2]) == store.calls[0]
    assert 5 < store.calls.index(ids(records[2:])) < 50  # others went while it couldn't be read
    monkeypatch.setattr(store, "save", save)
    await finish(saver)


async def test_a_record_that_the_journal_has_not_whole_stays_in_memory(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound gives way before a word is lost."""
    monkeypatch.setattr(saver_module, "MAX_WAITING", 2)
    records = make_records(5)
    saver = Saver(store, FakeBacklog(records[3]))
    futures = [saver.save(record) for record in records]
    assert 5 == saver.unsaved
    saver.start()
    await asyncio.gather(*futures)
    assert sorted(ids(records)) == sorted(ids(store.committed))
    await finish(saver)


async def test_a_journal_that_can_not_be_read_now_is_read_later(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing in the middle loses nothing of what was read before, and what comes meanwhile is
    saved."""
    monkeypatch.setattr(saver_module, "MAX_WAITING", 0)
    records = make_records(4)
    backlog = FakeBacklog(*records)
    backlog.failures = [OSError(24, "Too many open files"), OSError(5, "Input/output error")]
    saver = started(store, backlog)
    with capture_logs() as logs:
        futures = [saver.save(record) for record in records]
        await asyncio.sleep(0.005)
        new = make_record()
        await asyncio.gather(saver.save(new), *futures)
    assert ["journal not readable"] * 2 == [entry["event"] for entry in logs]
    assert sorted(ids([*records, new])) == sorted(ids(store.committed))
    await finish(saver)


async def test_a_record_that_the_journal_lost_is_logged_and_given_up(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that can't be read back is logged and left in the journal; its waiter gets an error."""
    monkeypatch.setattr(saver_module, "MAX_WAITING", 0)
    lost, kept = make_records(2)
    backlog = FakeBacklog(lost, kept)
    saver = Saver(store, backlog)
    futures = [saver.save(record) for record in (lost, kept)]
    del backlog.records[lost.completion_id]
    with capture_logs() as logs:
        saver.start()
        await futures[1]
        with pytest.raises(NotKept):
            await futures[0]
    assert ["record not readable in the journal"] == [entry["event"] for entry in logs]
    assert [kept.completion_id] == backlog.forgotten
    await finish(saver)
