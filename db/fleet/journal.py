"""A journal whose lines also go to the fleet: `CopiedJournal`.

The local one is written first, always, and is the copy that counts.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from db.fleet.outbox import Outbox
from db.journal import Fsync, Journal
from db.journal.writing import Entry
from statemachine import SessionPolicy, SessionRequest

_END_SECONDS = 3.0
"""How long an end waits for the engine."""


class CopiedJournal(Journal):
    """See `db.journal.Journal`.

    Args:
        outbox: takes the lines.
        sends_first: nothing is shown before the engine has it.
    """

    def __init__(
        self,
        directory: Path,
        fsync: Fsync,
        max_bytes: int,
        outbox: Outbox,
        *,
        sends_first: bool = False,
    ) -> None:
        super().__init__(directory, fsync, max_bytes)
        self._outbox = outbox
        self._sends_first = sends_first
        outbox.segments_of = self.segments_of
        self._syncs_chunks, self._syncs_ends = self.settles_chunks, self.settles_ends
        if sends_first:
            self.settles_chunks = self.settles_ends = True

    def begin(self, request: SessionRequest, policy: SessionPolicy) -> bool:
        """See `Journal.begin`."""
        if request.completion_id in self._entries or (self._sends_first and self._outbox.failure):
            return False
        self._outbox.begin(request.completion_id, request.owner)
        if super().begin(request, policy):
            return True
        self._outbox.give_up(request.completion_id)
        return False

    def forget(self, completion_ids: Iterable[str]) -> None:
        """See `Journal.forget`."""
        ended = list(completion_ids)
        super().forget(ended)
        self._outbox.end(ended)

    async def settle(self, *, is_final: bool) -> None:
        """See `Journal.settle`."""
        if self._syncs_ends if is_final else self._syncs_chunks:
            await super().settle(is_final=is_final)
        if not self._sends_first:
            return
        if not is_final:
            await self._outbox.sent()
        elif self._outbox.failure is None:
            # What has ended is saved whatever the engine does, and a stop waits for no engine.
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await self._outbox.sent()

    def when_settled(self, tell: Callable[[], None]) -> None:
        """See `Journal.when_settled`."""
        settled = partial(self._outbox.when_sent, tell) if self._sends_first else tell
        if self._syncs_chunks:
            super().when_settled(settled)
        else:
            settled()

    def _write(self, completion_id: str, entry: Entry, lines: bytes, count: int = 1) -> bool:
        number = entry.count
        is_written = super()._write(completion_id, entry, lines, count)
        self._outbox.add(completion_id, number, count, lines)
        return is_written
