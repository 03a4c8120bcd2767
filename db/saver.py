"""Between the session's end and the store: one writer that commits many records at a time.

Called by `service.relay` through `save`; knows the store's contract and no SQL. Its task belongs
to nobody's request, so no client can cancel a commit.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

import stamina
import structlog

from db.store import RecordRejected, Store, StoreUnavailable
from statemachine import SessionRecord

log = structlog.get_logger(__name__)

MAX_BATCH = 200
"""Records per transaction. Larger ones bring nothing more and hold locks longer."""
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.1, 5.0

_Waiting = tuple[SessionRecord, "asyncio.Future[None]"]


class Saver:
    """Group commit with retries. `start` it, `save` through it, `stop` it.

    While a transaction runs, further records gather; the next one takes them all. A store that
    is unavailable is tried again for ever, with exponential back-off and jitter; a record that
    the store will never take is logged and set aside, and its neighbours are committed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[_Waiting] = deque()
        self._has_work = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._task: asyncio.Task[None] | None = None
        self._unsaved = 0

    @property
    def unsaved(self) -> int:
        """Records taken over and not committed yet."""
        return self._unsaved

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="saver")

    def save(self, record: SessionRecord) -> "asyncio.Future[None]":
        """Take a record over. The future is done when it is committed or set aside; it has no
        error and can be dropped."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((record, done))
        self._unsaved += 1
        self._is_idle.clear()
        self._has_work.set()
        return done

    async def stop(self, patience_seconds: float) -> int:
        """Commit what waits, for at most this long, then end. Returns how many were left."""
        try:
            async with asyncio.timeout(patience_seconds):
                await self._is_idle.wait()
        except TimeoutError:
            log.error("records not saved", count=self._unsaved)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        return self._unsaved

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            size = min(len(self._waiting), MAX_BATCH)
            batch = [self._waiting.popleft() for _ in range(size)]
            if not self._waiting:
                self._has_work.clear()
            await self._commit(batch)

    async def _commit(self, batch: Sequence[_Waiting]) -> None:
        """Save all of the batch; by halves where one of it is refused."""
        records = [record for record, _ in batch]
        try:
            await self._save(records)
        except RecordRejected as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._commit(batch[:middle])
                await self._commit(batch[middle:])
                return
            log.error("record refused", completion_id=records[0].completion_id, reason=str(error))
        for _, done in batch:
            if not done.done():
                done.set_result(None)
        self._unsaved -= len(batch)
        if not self._unsaved:
            self._is_idle.set()

    async def _save(self, records: Sequence[SessionRecord]) -> None:
        attempts = stamina.retry_context(
            on=StoreUnavailable,
            attempts=None,
            timeout=None,
            wait_initial=_FIRST_WAIT_SECONDS,
            wait_max=_LONGEST_WAIT_SECONDS,
            wait_jitter=_FIRST_WAIT_SECONDS,
        )
        async for attempt in attempts:
            with attempt:
                try:
                    await self._store.save(records)
                except StoreUnavailable as error:
                    log.warning(
                        "save postponed",
                        attempt=attempt.num,
                        unsaved=self._unsaved,
                        reason=str(error),
                    )
                    raise
