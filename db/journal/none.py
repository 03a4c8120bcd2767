"""No journal: for a service that is configured to keep none."""

from collections.abc import Sequence

from statemachine import Event, SessionPolicy, SessionRequest


class NoJournal:
    settles_chunks = settles_ends = False

    def begin(self, request: SessionRequest, policy: SessionPolicy) -> bool:
        return True

    def append(self, completion_id: str, events: Sequence[Event], now: float) -> None:
        pass

    async def settle(self, *, is_final: bool) -> None:
        pass
