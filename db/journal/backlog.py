"""The saver's view of the journal: what can be read back, and what is no longer needed.

Called by `db.saver`; put together by `service.app`.
"""

from collections.abc import AsyncIterator, Collection, Iterable
from typing import Protocol

from db.journal.replay import Replay
from db.journal.writing import Journal
from statemachine import SessionRecord


class Backlog(Protocol):
    """As much of a journal as the saver needs; `service.app` puts it together."""

    def has_whole(self, completion_id: str) -> bool:
        """True if the record can be read back."""

    def read_back(self, completion_ids: Collection[str]) -> AsyncIterator[SessionRecord]:
        """The records of these completions, as far as they are there. Raises OSError."""

    def forget(self, completion_ids: Iterable[str]) -> None:
        """These are committed."""


class NoBacklog:
    """For a service without a journal: everything waits in memory."""

    def has_whole(self, completion_id: str) -> bool:
        return False

    async def read_back(self, completion_ids: Collection[str]) -> AsyncIterator[SessionRecord]:
        for _ in ():
            yield _

    def forget(self, completion_ids: Iterable[str]) -> None:
        pass


class JournalBacklog:
    """The saver's view of this process's journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def has_whole(self, completion_id: str) -> bool:
        """See `Backlog`."""
        return self._journal.has_whole(completion_id)

    def forget(self, completion_ids: Iterable[str]) -> None:
        """See `Backlog`."""
        self._journal.forget(completion_ids)

    async def read_back(self, completion_ids: Collection[str]) -> AsyncIterator[SessionRecord]:
        """See `Backlog`. Reads each segment that holds any of them once."""
        segments = self._journal.segments_of(completion_ids)
        async for record in Replay(segments, set(completion_ids)).records():
            yield record
