"""What the saver's tests put around it: a store, a journal and dead letters that fail as told."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from typing import Any

from db.journal import NoJournal
from db.memory.store import MemoryStore
from db.saver import Backlog, Saver
from db.store import Store, StoreUnavailable
from statemachine import SessionRecord
from tests.db.journal.journals import ids
from tests.db.records import make_record

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
