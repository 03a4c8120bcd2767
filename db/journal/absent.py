"""Stands in for the journal where a service keeps none (`journal.directory: null`).

Has all that the service asks of a `Journal`, so that nobody has to ask whether there is one. Never
writes anything, and never waits.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence

from statemachine import Event, SessionPolicy, SessionRecord, SessionRequest


class NoJournal:
    """Takes every session, and keeps nothing of it."""

    settles_ends = settles_chunks = False
    directory = None
    size = uncommitted = 0

    def start(self) -> None:
        """Nothing is to be made."""

    def begin(self, request: SessionRequest, policy: SessionPolicy) -> bool:
        """True: nothing keeps a session from beginning."""
        return True

    def append(self, completion_id: str, events: Sequence[Event], now: float) -> None:
        """Write nothing."""

    def forget(self, completion_ids: Iterable[str]) -> None:
        """Nothing was known of them."""

    async def settle(self, *, is_final: bool) -> None:
        """Return at once: nothing waits for a disk."""

    def when_settled(self, tell: Callable[[], None]) -> None:
        """Call it: nothing waits for a disk."""
        tell()

    def check(self) -> str | None:
        """None: new sessions can always begin."""
        return None

    def has_whole(self, completion_id: str) -> bool:
        """False: what isn't in memory is nowhere."""
        return False

    def has_request(self, completion_id: str) -> bool:
        """False, as `has_whole`."""
        return False

    def request(self, completion_id: str) -> SessionRequest | None:
        """None."""
        return None

    async def read_back(self, completion_ids: Collection[str]) -> AsyncIterator[SessionRecord]:
        """No records."""
        for _ in ():
            yield _

    def close(self) -> None:
        """Nothing is open."""
