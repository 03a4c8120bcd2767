"""The saver: no record is lost, whatever the store says to it, and none blocks the others."""

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from db import saver as saver_module
from db.saver import NotKept, Saver
from db.store import RecordRejected, StoreUnavailable
from statemachine import SessionRecord
from tests.db.journal.journals import ids
from tests.db.records import make_record
from tests.db.saver.fakes import (
    NO_JOURNAL,
    FakeBacklog,
    FakeStore,
    Letters,
    finish,
    make_records,
    started,
)

# --- a store that is away ---------------------------------------------------------------------


async def test_an_unavailable_store_is_tried_until_it_is_back(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same batch goes out again, each time after a longer wait, and then the rest."""
    monkeypatch.setattr(saver_module, "_LONGEST_WAIT_SECONDS", 0.03)
    store.failures = [StoreUnavailable("away") for _ in range(6)]
    saver = started(store)
    first, second = make_records(2)
    with capture_logs() as logs:
        saved = saver.save(first)
        await asyncio.sleep(0)
        later = saver.save(second)
        await asyncio.gather(saved, later)
    assert [[first.completion_id]] * 7 + [[second.completion_id]] == store.calls
    waits = [after - before for before, after in zip(store.times, store.times[1:], strict=False)]
    for expected, waited in zip([0.002, 0.004, 0.008, 0.016, 0.03, 0.03], waits, strict=False):
        assert waited >= expected * 0.9
    postponed = [entry for entry in logs if entry["event"] == "save postponed"]
    assert [1, 2, 3, 4, 5, 6] == [entry["attempt"] for entry in postponed]
    assert {"away"} == {entry["reason"] for entry in postponed}
    assert [7] == [entry["attempts"] for entry in logs if entry["event"] == "saving again"]
    await finish(saver)


async def test_nothing_is_forgotten_before_its_commit(store: FakeStore) -> None:
    """The journal keeps a record as long as the store may not have it."""
    record = make_record()
    backlog = FakeBacklog(record)
    saver = started(store, backlog)
    store.failures = [StoreUnavailable("away") for _ in range(3)]
    store.free.clear()
    saved = saver.save(record)
    await asyncio.sleep(0.02)
    assert [] == backlog.forgotten
    store.free.set()
    await saved
    assert [record.completion_id] == backlog.forgotten
    await finish(saver)


async def test_a_refused_record_is_found_also_after_an_outage(store: FakeStore) -> None:
    """Waiting and halving go together: the store may be away in between."""
    records, letters = make_records(8), Letters()
    store.poison = {records[5].completion_id: RecordRejected("bad")}
    store.failures = [StoreUnavailable("away"), RecordRejected("bad"), StoreUnavailable("away")]
    saver = Saver(store, NO_JOURNAL, letters.add)
    futures = [saver.save(record) for record in records]
    saver.start()
    await asyncio.gather(*futures)
    assert {records[5].completion_id} == letters.keys()
    assert records[:5] + records[6:] == store.committed
    await finish(saver)


# --- records that are refused -----------------------------------------------------------------


@pytest.mark.parametrize("places", [[0], [199], [117], [3, 4, 100, 199], list(range(0, 200, 25))])
async def test_poisoned_records_are_set_aside_and_their_neighbours_committed(
    store: FakeStore, places: list[int]
) -> None:
    """By halving, in few transactions; each is logged loudly, with its reason, and forgotten."""
    records, letters = make_records(200), Letters()
    bad = [records[place].completion_id for place in places]
    store.poison = {name: RecordRejected(f"PostgreSQL refuses {name}") for name in bad}
    backlog = FakeBacklog(*records)
    saver = Saver(store, backlog, letters.add)
    futures = [saver.save(record) for record in records]
    saver.start()
    with capture_logs() as logs:
        await asyncio.gather(*futures)
    assert {name: f"PostgreSQL refuses {name}" for name in bad} == letters
    assert [it for it in records if it.completion_id not in bad] == store.committed
    assert sorted(ids(records)) == sorted(backlog.forgotten)
    assert len(store.calls) <= 1 + 2 * 8 * len(places)
    refused = [entry for entry in logs if entry["event"] == "record refused"]
    assert bad == [entry["completion_id"] for entry in refused]
    assert {"error"} == {entry["log_level"] for entry in refused}
    await finish(saver)


@pytest.mark.parametrize("error", [RuntimeError("secret"), KeyError("secret"), RecursionError()])
async def test_a_mistake_of_ours_does_not_end_the_saver(store: FakeStore, error: Exception) -> None:
    """Whatever a record makes the store raise, it is set aside under the error's name, without
    its text, and the saver goes on."""
    bad, good, later = make_records(3)
    letters = Letters()
    store.poison = {bad.completion_id: error}
    saver = Saver(store, NO_JOURNAL, letters.add)
    futures = [saver.save(record) for record in (bad, good)]
    saver.start()
    await asyncio.gather(*futures)
    await saver.save(later)
    assert {bad.completion_id: f"{type(error).__name__} in the saver"} == letters
    assert [good, later] == store.committed
    await finish(saver)


@pytest.mark.parametrize("error", [OSError(28, "No space"), RecursionError(), ValueError("\0")])
async def test_a_record_that_can_not_be_set_aside_stays_in_the_journal(
    store: FakeStore, error: Exception
) -> None:
    """The journal doesn't forget such a record, whoever waits for it gets an error, and the saver goes
    on."""
    bad, good = make_records(2)
    backlog, letters = FakeBacklog(bad, good), Letters()
    letters.fails = error
    store.poison = {bad.completion_id: RecordRejected("bad")}
    saver = started(store, backlog, letters.add)
    with capture_logs() as logs:
        with pytest.raises(NotKept):
            await saver.save(bad)
        await saver.save(good)
    assert [good.completion_id] == backlog.forgotten
    assert ["dead letter not written"] == [entry["event"] for entry in logs]
    assert 0 == saver.unsaved
    await finish(saver)


async def test_a_dropped_failure_is_silent() -> None:
    """Nobody has to look at a future whose record could not be kept, either."""
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, about: complaints.append(about))
    saver_module._give_up(loop.create_future())
    gc.collect()
    assert [] == complaints


# --- records that keep failing ----------------------------------------------------------------


async def test_a_record_that_keeps_failing_on_a_healthy_store_is_set_aside(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that times out again and again on a store that is well is set aside like one that
    is refused, and its neighbours are committed: it can't block everybody for ever."""
    monkeypatch.setattr(saver_module, "_LONGEST_WAIT_SECONDS", 0.01)
    records = make_records(5)
    store.poison[records[2].completion_id] = StoreUnavailable("no answer within 10 s")
    letters: list[tuple[str, str]] = []
    saver = Saver(
        store, NO_JOURNAL, lambda record, why: letters.append((record.completion_id, why))
    )
    futures = [saver.save(record) for record in records]
    saver.start()
    await asyncio.gather(*futures)
    assert letters == [(records[2].completion_id, "no answer within 10 s")]
    assert sorted(ids(store.committed)) == sorted(ids([*records[:2], *records[3:]]))
    await finish(saver)


async def test_nothing_is_set_aside_while_a_store_refuses_every_save(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database whose disk is full answers questions and refuses every save: nothing is set
    aside, and all is committed once there is room."""
    monkeypatch.setattr(saver_module, "_LONGEST_WAIT_SECONDS", 0.001)
    records = make_records(20)
    store.poison = {record.completion_id: StoreUnavailable("disk full") for record in records}
    letters: list[str] = []
    saver = Saver(store, NO_JOURNAL, lambda record, why: letters.append(record.completion_id))
    futures = [saver.save(record) for record in records]
    saver.start()
    async with asyncio.timeout(20):
        while len(store.calls) < 300:
            await asyncio.sleep(0.01)
    store.poison = {}
    await asyncio.gather(*futures)
    assert [] == letters
    assert sorted(ids(store.committed)) == sorted(ids(records))
    await finish(saver)


# --- stores that refuse and aren't well --------------------------------------------------------


class UnfitStore(FakeStore):
    """Refuses everything until it is made fit, as a database in the wrong encoding does."""

    is_fit = False

    async def check(self) -> None:
        if not self.is_fit:
            raise StoreUnavailable("unfit")

    async def save(self, records: Sequence[SessionRecord]) -> None:
        if not self.is_fit:
            raise RecordRejected("SQLSTATE 22P05")
        await super().save(records)


async def test_what_an_unfit_store_refuses_waits_for_a_fit_one() -> None:
    """Refused by a store that says itself that it isn't well, a record is at no fault: nothing is
    set aside, and once the store is fit all is saved."""
    store, letters = UnfitStore(), Letters()
    saver = started(store, NO_JOURNAL, letters.add)
    records = make_records(5)
    futures = [saver.save(record) for record in records]
    await asyncio.sleep(0.3)
    assert "SQLSTATE 22P05" == str(saver.failure)
    assert {} == letters
    store.is_fit = True
    await asyncio.gather(*futures)
    assert ids(records) == sorted(ids(store.committed))
    assert "None" == str(saver.failure)
    await finish(saver)


async def until_it_says(saver: Saver, failure: str | None) -> None:
    async with asyncio.timeout(5):
        while saver.failure != failure:
            await asyncio.sleep(0)


async def test_one_record_that_never_goes_is_no_failure_of_the_store(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that said it wasn't ready for it would get no others, which alone could show whose
    fault it is; with a second one that doesn't go, it is the store's."""
    monkeypatch.setattr(saver_module, "_FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(saver_module, "_LONGEST_WAIT_SECONDS", 0.002)
    first, second = make_records(2)
    for record in (first, second):
        store.poison[record.completion_id] = StoreUnavailable("too large")
    saver = started(store)
    saver.save(first)
    await asyncio.sleep(0)
    await until_it_says(saver, "too large")
    await until_it_says(saver, None)
    saver.save(second)
    await until_it_says(saver, "too large")
    store.poison.clear()
    await finish(saver)
