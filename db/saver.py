"""Saves sessions' records: many in one transaction, and again until the store has them.

Knows the store's contract, but no SQL and no journal.
Its task belongs to no request, so that no client can cancel a commit. The rules:

1. A record that comes alone is committed at once. While a transaction runs, and for
   `COMMIT_INTERVAL_SECONDS` from its beginning, further records gather; the next transaction takes
   them all, up to a batch.
2. A store that is unavailable is tried again for ever, with exponential back-off and jitter.
3. Memory is bounded: past `MAX_WAITING` records, or `MAX_WAITING_CHARACTERS` of text in them, a
   record that the journal has whole is dropped here and read back later. Batches come out of memory
   and out of the journal in turn, so that neither kind waits for the other's end.
4. A record that the store will never keep is found by halving its batch, becomes a dead letter, and
   is logged; its neighbours are committed. A record that keeps failing on a store that reports
   itself healthy moves to the end of the queue; once others have been committed in the meantime,
   it becomes a dead letter too. What a store refuses that isn't healthy waits: a fitter one (in
   another encoding, without somebody's trigger) may take it.
5. A record of enormous text is saved beside the others, one such at a time: it takes seconds, and
   nobody else is to wait for it.
6. The journal forgets a record once it is committed or set aside, and not before. If neither was
   possible, the record stays there for the next process.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from itertools import count, islice
from random import random
from typing import Protocol

import structlog

from db.store import RecordRejected, Store, StoreUnavailable
from statemachine import SessionRecord
from statemachine.backoff import backoff
from statemachine.tokens import plain_characters, texts_of

log = structlog.get_logger(__name__)

MAX_BATCH = 200
"""Records per transaction. Larger transactions save nothing more, and hold locks longer."""
COMMIT_INTERVAL_SECONDS = 0.02
"""From one transaction's beginning to the next's. Each costs as much as several records in it."""
MAX_BATCH_CHARACTERS = 4 * 1024 * 1024
"""Text per transaction, so that a few enormous answers don't make one enormous statement."""
MAX_WAITING = 2000
"""Records kept in memory while the store is away."""
MAX_WAITING_CHARACTERS = 64 * 1024 * 1024
"""Text kept in memory while the store is away; requests may carry ten million characters each."""
_READ_AGAIN_SECONDS = 1.0
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.1, 5.0
_TRIES_ALONE = 5
"""How often a single record is tried on a store that reports itself healthy."""

NoteSaves = Callable[[str, Sequence[float]], None]
"""Told what became of records, `saved`, `dead_letter` or `not_kept`, and how many seconds after they were
handed over, of each. Must not raise."""
SetAside = Callable[[SessionRecord, str], None]
_Waiting = tuple[SessionRecord, "asyncio.Future[None]", int]


class NotKept(Exception):
    """A record could neither be saved nor set aside; the journal has it, if there is one."""


class TooMuch(Exception):
    """The store works, but not with these records: it may with fewer of them."""


class Backlog(Protocol):
    """As much of a journal as the saver needs; a `db.journal.Journal` or `NoJournal`."""

    def has_whole(self, completion_id: str) -> bool:
        """True if the record can be read back."""

    def read_back(self, completion_ids: Collection[str]) -> AsyncIterator[SessionRecord]:
        """The records of these completions, as far as they are there. Raises OSError."""

    def forget(self, completion_ids: Iterable[str]) -> None:
        """These are committed or set aside."""


class Saver:
    """Group commit with retries. `start` it, `save` through it, `stop` it.

    Args:
        store: where records go.
        backlog: the service's journal, or `NoJournal`.
        set_aside: keeps a record that the store refuses, with the reason. It may raise.
        note: see `NoteSaves`.
    """

    def __init__(
        self,
        store: Store,
        backlog: Backlog,
        set_aside: SetAside | None = None,
        note: NoteSaves | None = None,
    ) -> None:
        self._store = store
        self._backlog = backlog
        self._add_letter = set_aside
        self._note = note
        self._taken_at: dict[str, float] = {}
        self._waiting: deque[_Waiting] = deque()
        self._waiting_characters = 0
        self._on_disk: dict[str, tuple[asyncio.Future[None], int]] = {}
        self._was_read_back = True
        self._read_again_at = 0.0
        self._large: deque[_Waiting] = deque()
        self._beside: asyncio.Task[None] | None = None
        self._committing = 0
        self._commits = 0
        self._next_commit_at = 0.0
        self._too_much: dict[str, int] = {}
        self._failure: str | None = None
        self._has_work = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._task: asyncio.Task[None] | None = None

    @property
    def unsaved(self) -> int:
        """How many records were taken over and are not committed yet."""
        held = len(self._waiting) + len(self._large) + len(self._on_disk)
        return held + self._committing + (self._beside is not None)

    @property
    def failure(self) -> str | None:
        """Why the last save failed, until one goes; None if all go, or if there is but one that
        doesn't, on a store that reports itself healthy: then the record may be at fault, and its
        service must not wait for others that nobody sends to one that isn't ready."""
        return None if self.unsaved == len(self._too_much) == 1 else self._failure

    @property
    def oldest_seconds(self) -> float:
        """How long ago the oldest unsaved record was handed over; 0 if there is none."""
        first = next(iter(self._taken_at.values()), None)
        return 0.0 if first is None else asyncio.get_running_loop().time() - first

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="saver")

    def save(self, record: SessionRecord) -> "asyncio.Future[None]":
        """Take a record over. The future is done once the record is committed or set aside; it raises
        `NotKept` if neither was possible. Dropping or cancelling the future has no effect."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._taken_at[record.completion_id] = loop.time()
        full = (
            len(self._waiting) >= MAX_WAITING or self._waiting_characters >= MAX_WAITING_CHARACTERS
        )
        characters = _characters(record)
        if full and self._backlog.has_whole(record.completion_id):
            self._on_disk[record.completion_id] = done, characters
        else:
            self._wait((record, done, characters))
        self._is_idle.clear()
        self._has_work.set()
        return done

    async def stop(self, patience_seconds: float) -> int:
        """Commit the waiting records, for at most this long, then end. Returns how many were left;
        the next process saves those that the journal has."""
        try:
            async with asyncio.timeout(patience_seconds):
                await self._is_idle.wait()
        except TimeoutError:
            log.error("records not saved yet", count=self.unsaved)
        left = self.unsaved
        for task in (self._task, self._beside):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        return left

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            await self._gather()
            if not self._has_something_to_take():
                self._has_work.clear()
                self._note_if_idle()
                continue
            batch = self._take_waiting() if self._is_turn_of_memory() else await self._read_back()
            if len(batch) == 1 and batch[0][2] > MAX_BATCH_CHARACTERS:
                self._beside = asyncio.create_task(self._commit(batch), name="saver of a large one")
                self._beside.add_done_callback(self._note_large_done)
                continue
            self._committing = len(batch)
            await self._commit(batch)
            self._committing = 0
            self._note_if_idle()

    def _has_something_to_take(self) -> bool:
        """False also while all that waits is large, and another such is being saved."""
        if self._waiting:
            return True
        if self._beside is None:
            return bool(self._large or self._on_disk)
        return any(size <= MAX_BATCH_CHARACTERS for _, size in self._on_disk.values())

    def _note_large_done(self, _: "asyncio.Task[None]") -> None:
        self._beside = None
        self._has_work.set()

    def _note_if_idle(self) -> None:
        if not self.unsaved:
            self._has_work.clear()
            self._is_idle.set()

    async def _gather(self) -> None:
        """Wait until the next transaction may begin."""
        loop = asyncio.get_running_loop()
        wait = self._next_commit_at - loop.time()
        if wait > 0 and len(self._waiting) < MAX_BATCH:
            await asyncio.sleep(wait)
        self._next_commit_at = loop.time() + COMMIT_INTERVAL_SECONDS

    def _is_turn_of_memory(self) -> bool:
        """See rule 3. While the journal can't be read, memory has every turn."""
        in_memory = bool(self._waiting or (self._large and self._beside is None))
        if not in_memory or not self._on_disk:
            self._was_read_back = not in_memory
        else:
            can_be_read = asyncio.get_running_loop().time() >= self._read_again_at
            self._was_read_back = can_be_read and not self._was_read_back
        return not self._was_read_back

    def _take_waiting(self) -> list[_Waiting]:
        if self._large and self._beside is None:
            self._waiting_characters -= self._large[0][2]
            return [self._large.popleft()]
        batch: list[_Waiting] = []
        characters = 0
        while self._waiting and len(batch) < MAX_BATCH and characters < MAX_BATCH_CHARACTERS:
            batch.append(self._waiting.popleft())
            characters += batch[-1][2]
        self._waiting_characters -= characters
        return batch

    async def _read_back(self) -> list[_Waiting]:
        """The next of the records that memory had no room for."""
        wanted: list[str] = []
        wanted_characters = 0
        may_be_large = self._beside is None
        takeable = (
            (completion_id, characters)
            for completion_id, (_, characters) in self._on_disk.items()
            if may_be_large or characters <= MAX_BATCH_CHARACTERS
        )
        for completion_id, characters in islice(takeable, MAX_BATCH):
            wanted_characters += characters
            if wanted and wanted_characters > MAX_BATCH_CHARACTERS:
                break
            wanted.append(completion_id)
        try:
            found = {
                record.completion_id: record async for record in self._backlog.read_back(wanted)
            }
        except OSError as error:
            log.error("journal not readable", reason=str(error))
            self._read_again_at = asyncio.get_running_loop().time() + _READ_AGAIN_SECONDS
            if not self._waiting:
                await asyncio.sleep(_READ_AGAIN_SECONDS)
            return []
        batch: list[_Waiting] = []
        for completion_id in wanted:
            done, characters = self._on_disk.pop(completion_id)
            if (record := found.pop(completion_id, None)) is not None:
                batch.append((record, done, characters))
            else:
                log.error("record not readable in the journal", completion_id=completion_id)
                self._note_end("not_kept", (completion_id,))
                _give_up(done)
        return batch

    async def _commit(self, batch: Sequence[_Waiting]) -> None:
        """Save all of the batch; by halves where one of it is refused."""
        records = [record for record, _, _ in batch]
        try:
            await self._save(records)
        except Exception as error:
            # Beside RecordRejected and TooMuch only our own mistakes. They must not end the saver.
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._commit(batch[:middle])
                await self._commit(batch[middle:])
                return
            if isinstance(error, TooMuch) and not self._others_went(records[0]):
                self._wait(batch[0])
                return
            if not self._set_aside(records[0], error):
                self._note_end("not_kept", (records[0].completion_id,))
                _give_up(batch[0][1])
                return
            outcome = "dead_letter"
        else:
            outcome = "saved"
            self._commits += 1
        completion_ids = [record.completion_id for record in records]
        self._note_end(outcome, completion_ids)
        self._backlog.forget(completion_ids)
        for record, done, _ in batch:
            self._too_much.pop(record.completion_id, None)
            if not done.done():
                done.set_result(None)

    def _note_end(self, outcome: str, completion_ids: Iterable[str]) -> None:
        now = asyncio.get_running_loop().time()
        taken = [self._taken_at.pop(completion_id, now) for completion_id in completion_ids]
        if self._note is not None:
            self._note(outcome, [now - taken_at for taken_at in taken])

    def _others_went(self, record: SessionRecord) -> bool:
        """True if others were committed since this record first was too much. Until then the store
        may be at fault, although it reports itself healthy: its disk may be full."""
        return self._commits > self._too_much.setdefault(record.completion_id, self._commits)

    def _wait(self, item: _Waiting) -> None:
        (self._large if item[2] > MAX_BATCH_CHARACTERS else self._waiting).append(item)
        self._waiting_characters += item[2]

    def _set_aside(self, record: SessionRecord, error: Exception) -> bool:
        """Set a refused record aside. False if that failed too; then the journal keeps it."""
        known = isinstance(error, (RecordRejected, TooMuch))
        reason = str(error) if known else f"{type(error).__name__} in the saver"
        try:
            if self._add_letter is not None:
                self._add_letter(record, reason)
        except Exception as failure:
            log.error(
                "dead letter not written",
                completion_id=record.completion_id,
                reason=repr(failure)[:200],
            )
            return False
        log.error("record refused", completion_id=record.completion_id, reason=reason)
        return True

    async def _save(self, records: Sequence[SessionRecord]) -> None:
        """Save all of these in one transaction, however often that must be tried.

        Raises:
            TooMuch: the store is well, and couldn't save them in as many tries as they get.
            RecordRejected: one of them can never be kept. Anything else: a mistake of ours, made twice.
        """
        if not records:
            return
        tries_left = 1 if len(records) > 1 else _TRIES_ALONE
        waits = backoff(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS, random)
        for attempt in count(1):
            try:
                await self._store.save(records)
            except Exception as error:
                failure, is_refused = error, isinstance(error, RecordRejected)
                is_own = not isinstance(error, (StoreUnavailable, RecordRejected))
                reason = type(error).__name__ if is_own else str(error)
            else:
                self._failure = None
                if attempt > 1:
                    log.info("saving again", attempts=attempt)
                return
            is_well = await self._is_store_well()
            if is_well and (is_refused or (is_own and attempt > 1)):
                raise failure
            self._failure = reason
            log.warning("save postponed", attempt=attempt, unsaved=self.unsaved, reason=reason)
            if is_well:
                tries_left -= 1
            if not tries_left:
                raise TooMuch(reason)
            await asyncio.sleep(next(waits))

    async def _is_store_well(self) -> bool:
        with suppress(StoreUnavailable):
            await self._store.check()
            return True
        return False


def _give_up(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_exception(NotKept())
        done.exception()  # asyncio complains of a dropped future whose error nobody looked at


def _characters(record: SessionRecord) -> int:
    """About how much text a record holds, its tape included."""
    request = record.request
    messages = (*request.messages, *[choice.message for choice in record.choices])
    others: list[object] = [request.tools, request.parameters, record.extra]
    for choice in record.choices:
        others += (choice.logprobs, choice.extra)
    said = plain_characters(messages)
    if said is None:
        others.append(messages)
    rest = sum(map(len, texts_of(others))) if any(others) else 0
    return (said or 0) + rest + (record.tape.size if record.tape is not None else 0)
