"""What the saver tells of records: what became of each, after how long, and how old the oldest is."""

import asyncio
from collections.abc import Sequence

import pytest

from db.saver import NotKept, Saver
from db.store import RecordRejected, StoreUnavailable
from tests.db.saver.fakes import NO_JOURNAL, FakeBacklog, FakeStore, Letters, finish, make_records


class Noted(list[tuple[str, int]]):
    """Outcomes and how many records had them; `seconds` of all."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def __call__(self, outcome: str, seconds: Sequence[float]) -> None:
        self.append((outcome, len(seconds)))
        self.seconds += seconds


async def test_each_record_is_noted_once_however_it_ends(store: FakeStore) -> None:
    """Saved together, set aside alone, or kept nowhere."""
    first, second, bad, lost = make_records(4)
    letters, noted = Letters(), Noted()
    store.poison = {name.completion_id: RecordRejected("no") for name in (bad, lost)}
    saver = Saver(store, FakeBacklog(), letters.add, noted)
    saving = [saver.save(record) for record in (first, second)]
    saver.start()
    await asyncio.gather(*saving)
    await saver.save(bad)
    letters.fails = OSError(28, "No space")
    with pytest.raises(NotKept):
        await saver.save(lost)
    assert [("saved", 2), ("dead_letter", 1), ("not_kept", 1)] == noted
    assert 0.0 == saver.oldest_seconds
    await finish(saver)


async def test_the_oldest_record_is_as_old_as_its_wait(store: FakeStore) -> None:
    """It counts from its handing over, through all that is tried, and ends with its commit."""
    one, other = make_records(2)
    noted = Noted()
    saver = Saver(store, NO_JOURNAL, None, noted)
    store.failures = [StoreUnavailable("away")]
    store.free.clear()
    begun = asyncio.get_running_loop().time()
    waiting = saver.save(one)
    saver.start()
    await asyncio.sleep(0.05)
    later = saver.save(other)
    assert 0.05 <= saver.oldest_seconds <= asyncio.get_running_loop().time() - begun
    store.free.set()
    await asyncio.gather(waiting, later)
    took = asyncio.get_running_loop().time() - begun
    assert 2 == len(noted.seconds)
    assert 0.05 <= max(noted.seconds) <= took
    assert min(noted.seconds) < max(noted.seconds)
    await finish(saver)
