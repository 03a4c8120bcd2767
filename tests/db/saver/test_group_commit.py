"""The saver: many records per transaction, and an orderly end."""

import asyncio
import gc
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from db import saver as saver_module
from db.saver import MAX_BATCH, Saver
from statemachine import SessionRecord
from tests.db.journal.journals import ids
from tests.db.records import make_record, user
from tests.db.saver.fakes import NO_JOURNAL, FakeBacklog, FakeStore, finish, make_records, started

# --- group commit -----------------------------------------------------------------------------


async def test_records_that_come_during_a_transaction_share_the_next(store: FakeStore) -> None:
    """One record commits at once; those that gather behind it commit together, in order."""
    saver = started(store)
    records = make_records(50)
    store.free.clear()
    first = saver.save(records[0])
    await asyncio.sleep(0.01)
    others = [saver.save(record) for record in records[1:]]
    assert 50 == saver.unsaved
    await asyncio.sleep(0.01)
    assert not any(future.done() for future in (first, *others))
    store.free.set()
    await asyncio.gather(first, *others)
    assert [[records[0].completion_id], ids(records[1:])] == store.calls
    assert records == store.committed
    assert 0 == saver.unsaved
    await finish(saver)


async def test_records_that_follow_each_other_closely_share_a_transaction(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them is committed at once; the others gather for a moment, but a whole batch
    waits for nothing."""
    monkeypatch.setattr(saver_module, "COMMIT_INTERVAL_SECONDS", 0.2)
    saver = started(store)
    records = make_records(3 + MAX_BATCH)
    async with asyncio.timeout(0.15):
        await saver.save(records[0])
    await asyncio.gather(*(saver.save(record) for record in records[1:3]))
    assert [ids(records[:1]), ids(records[1:3])] == store.calls
    assert 0.15 <= store.times[1] - store.times[0] < 1  # each is noted a little after its beginning
    monkeypatch.setattr(saver_module, "COMMIT_INTERVAL_SECONDS", 60.0)
    await asyncio.sleep(0.2)
    await saver.save(records[3])  # from now on nothing is due for a minute
    async with asyncio.timeout(5):
        await asyncio.gather(
            *(saver.save(record) for record in records[4:]), saver.save(records[0])
        )
    await finish(saver)


async def test_a_transaction_has_a_bounded_number_of_records(store: FakeStore) -> None:
    """Thousands that wait are committed in several transactions, in order."""
    records = make_records(2 * MAX_BATCH + 1)
    saver = Saver(store, NO_JOURNAL)
    futures = [saver.save(record) for record in records]
    saver.start()
    await asyncio.gather(*futures)
    assert [MAX_BATCH, MAX_BATCH, 1] == [len(call) for call in store.calls]
    assert records == store.committed
    await finish(saver)


@pytest.mark.parametrize(
    "content",
    ["x" * 1000, [{"type": "image_url", "image_url": {"url": "x" * 1000}}]],
    ids=["text", "parts"],
)
async def test_a_transaction_has_a_bounded_amount_of_text(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch, content: Any
) -> None:
    """Enormous messages, pictures within them included, aren't put into one statement."""
    monkeypatch.setattr(saver_module, "MAX_BATCH_CHARACTERS", 3000)
    records = [make_record(user(content)) for _ in range(9)]
    saver = Saver(store, NO_JOURNAL)
    futures = [saver.save(record) for record in records]
    saver.start()
    await asyncio.gather(*futures)
    assert [3, 3, 3] == [len(call) for call in store.calls]
    await finish(saver)


# --- stopping and waiting ---------------------------------------------------------------------


async def test_stopping_commits_what_waits(store: FakeStore) -> None:
    """A stop with patience leaves nothing behind."""
    saver = started(store)
    records = make_records(MAX_BATCH + 50)
    futures = [saver.save(record) for record in records]
    assert 0 == await saver.stop(5)
    assert records == store.committed
    assert all(future.done() for future in futures)


async def test_stopping_gives_up_in_time(store: FakeStore) -> None:
    """A store that never answers holds up the stop for as long as it was given, and what is left
    is counted and stays in the journal."""
    backlog = FakeBacklog()
    saver = started(store, backlog)
    store.free.clear()
    for record in make_records(3):
        saver.save(record)
        await asyncio.sleep(0.001)
    began = time.monotonic()
    with capture_logs() as logs:
        assert 3 == await saver.stop(0.05)
    assert 0.05 <= time.monotonic() - began < 1
    assert [("records not saved yet", 3)] == [(entry["event"], entry["count"]) for entry in logs]
    assert [] == backlog.forgotten


async def test_stopping_what_never_began_is_no_error(store: FakeStore) -> None:
    """An idle saver, started or not, stops at once."""
    assert 0 == await Saver(store, NO_JOURNAL).stop(1)
    saver = started(store)
    await asyncio.sleep(0)
    assert 0 == await saver.stop(1)


async def test_waiters_may_leave_without_cancelling_a_commit(store: FakeStore) -> None:
    """Cancelling a waiter, or the future itself, cancels no commit."""
    saver = started(store)
    store.free.clear()
    one, two, three = make_records(3)

    async def wait_for(record: SessionRecord) -> None:
        await saver.save(record)

    waiter = asyncio.create_task(wait_for(one))
    await asyncio.sleep(0.01)
    waiter.cancel()
    saver.save(two).cancel()
    last = saver.save(three)
    await asyncio.wait((waiter,))
    store.free.set()
    await last
    assert [one, two, three] == store.committed
    await finish(saver)


async def test_dropped_futures_are_silent(store: FakeStore) -> None:
    """Nobody has to look at what `save` returns."""
    saver = started(store)
    for record in make_records(5):
        saver.save(record)
    assert 0 == await saver.stop(5)
    gc.collect()
    assert 5 == len(store.committed)
