"""The saver: many records per transaction, none lost, whatever the store says to them."""

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from db import saver as saver_module
from db.journal import NoJournal
from db.memory.store import MemoryStore
from db.saver import MAX_BATCH, Backlog, NotKept, Saver
from db.store import RecordRejected, Store, StoreUnavailable
from statemachine import SessionRecord
from tests.db.journal.journals import ids, live, open_journal
from tests.db.records import make_record, user

NO_JOURNAL = NoJournal()


class FakeStore(MemoryStore):
    """Notes each transaction. `free` holds transactions up, `failures` are raised one by one,
    `poison` is refused whenever it is among the records."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[str]] = []
        self.times: list[float] = []
        self.committed: list[SessionRecord] = []
        self.failures: list[BaseException] = []
        self.poison: dict[str, Exception] = {}
        self.free = asyncio.Event()
        self.free.set()

    async def check(self) -> None:
        if self.failures:
            raise StoreUnavailable("away")

    async def save(self, records: Sequence[SessionRecord]) -> None:
        self.calls.append(ids(records))
        self.times.append(time.monotonic())
        await self.free.wait()
        if self.failures:
            raise self.failures.pop(0)
        for record in records:
            if record.completion_id in self.poison:
                raise self.poison[record.completion_id]
        await super().save(records)
        self.committed.extend(records)


class FakeBacklog:
    """A journal that has whatever a test puts into it."""

    def __init__(self, *records: SessionRecord) -> None:
        self.records = {record.completion_id: record for record in records}
        self.forgotten: list[str] = []
        self.failures: list[OSError] = []

    def has_whole(self, completion_id: str) -> bool:
        return completion_id in self.records

    async def read_back(self, completion_ids: Collection[str]) -> AsyncIterator[SessionRecord]:
        for number, completion_id in enumerate(completion_ids):
            if self.failures and number:
                raise self.failures.pop()
            if completion_id in self.records:
                yield self.records[completion_id]

    def forget(self, completion_ids: Iterable[str]) -> None:
        self.forgotten.extend(completion_ids)


class Letters(dict[str, str]):
    """Takes dead letters until told to fail."""

    fails: Exception | None = None

    def add(self, record: SessionRecord, reason: str) -> None:
        if self.fails is not None:
            raise self.fails
        self[record.completion_id] = reason


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "_FIRST_WAIT_SECONDS", 0.002)
    monkeypatch.setattr(saver_module, "_LONGEST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(saver_module, "_READ_AGAIN_SECONDS", 0.01)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def started(store: Store, backlog: Backlog = NO_JOURNAL, *parts: Any) -> Saver:
    saver = Saver(store, backlog, *parts)
    saver.start()
    return saver


async def finish(saver: Saver) -> None:
    """The end of a test: all is committed, and the task ends."""
    assert 0 == await saver.stop(5)
    assert "saver" not in [task.get_name() for task in asyncio.all_tasks()]


def make_records(count: int) -> list[SessionRecord]:
    return [make_record() for _ in range(count)]


# --- group commit -----------------------------------------------------------------------------


async def test_what_comes_during_a_transaction_shares_the_next(store: FakeStore) -> None:
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


async def test_too_much_for_a_store_that_is_well(
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


async def test_a_store_that_only_says_it_is_well(
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
    assert letters == []
    assert sorted(ids(store.committed)) == sorted(ids(records))
    await finish(saver)


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


async def test_what_is_refused_after_an_outage_is_still_found(store: FakeStore) -> None:
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


# --- poison -----------------------------------------------------------------------------------


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
async def test_what_can_not_be_set_aside_stays_in_the_journal(
    store: FakeStore, error: Exception
) -> None:
    """It isn't forgotten, whoever waits for it learns it, and the saver goes on."""
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


# --- bounded memory ---------------------------------------------------------------------------


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
    assert 0 == len(journal)
    await finish(saver)
    journal.close()
    assert not journal.directory.exists()


async def test_much_text_waits_in_the_journal_too(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few enormous records fill the memory as many small ones would."""
    monkeypatch.setattr(saver_module, "MAX_WAITING_CHARACTERS", 5000)
    records = [make_record(user("x" * 2000)) for _ in range(6)]
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


async def test_what_the_journal_has_not_whole_stays_in_memory(
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


async def test_what_the_journal_lost_is_told(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that can't be read back is logged, left in the journal, and nobody waits for it."""
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


async def test_who_waits_can_leave(store: FakeStore) -> None:
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
