"""Keeps claims in this process's memory: for a service without a journal, and for tests.

Nothing survives the process, and no other one sees it. With several workers each has claims of its
own: the same key asked of two of them asks the model twice. Who can't have that keeps a journal.
"""

from collections.abc import Callable

from db.claims.contract import Claim, ClaimsUnavailable, gives_way

_SWEPT_AT_ONCE = 64
"""The most expired claims that are let go of in one take."""


class MemoryClaims:
    """A dictionary. Its methods never wait, so they can't be cancelled midway.

    Args:
        keep_seconds: how long a claim holds; asked anew at each call.
        clock: POSIX seconds.
    """

    def __init__(self, *, keep_seconds: Callable[[], float], clock: Callable[[], float]) -> None:
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._claims: dict[bytes, Claim] = {}  # oldest first
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<MemoryClaims, {len(self._claims)} kept>"

    def start(self) -> None:
        """Nothing is there yet."""

    async def take(self, claim: Claim, *, instead_of: str | None = None) -> Claim:
        since = self._expired_since()
        self._sweep(since)
        held = self._claims.get(claim.key)
        if held is not None and not gives_way(held, since, instead_of):
            return held
        self._claims.pop(claim.key, None)  # so that it goes to the end
        self._claims[claim.key] = claim
        return claim

    async def find(self, key: bytes) -> Claim | None:
        since = self._expired_since()
        held = self._claims.get(key)
        return None if held is None or held.is_expired(since) else held

    async def release(self, claim: Claim) -> None:
        self._expired_since()
        held = self._claims.get(claim.key)
        if held is not None and held.completion_id == claim.completion_id:
            del self._claims[claim.key]

    async def close(self) -> None:
        self._is_closed = True
        self._claims.clear()

    def _expired_since(self) -> float:
        if self._is_closed:
            raise ClaimsUnavailable("Idempotency keys are no longer kept: the service is stopping.")
        return self._clock() - self._keep_seconds()

    def _sweep(self, since: float) -> None:
        for _ in range(_SWEPT_AT_ONCE):
            oldest = next(iter(self._claims), None)
            if oldest is None or not self._claims[oldest].is_expired(since):
                return
            del self._claims[oldest]
