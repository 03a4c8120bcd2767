"""The twin in memory of the engine's claims: `MemorySharedClaims`. For tests."""

from collections.abc import Callable, Sequence

from db.claims import Claim
from db.claims.contract import gives_way


class MemorySharedClaims:
    """See `db.fleet.claims.SharedClaims`.

    Args:
        claims: what is shared with the other replicas.
        reach: raises FleetUnavailable while the engine is away.
    """

    def __init__(
        self, claims: dict[bytes, Claim], reach: Callable[[], object] = lambda: None
    ) -> None:
        self._claims = claims
        self._known: set[str] = set()
        self._reach = reach

    async def take(
        self, claim: Claim, *, since: float, keep_seconds: float, instead_of: str | None = None
    ) -> Claim:
        self._reach()
        held = self._claims.get(claim.key)
        if held is None or gives_way(held, since, instead_of):
            held = self._claims[claim.key] = claim
        return held

    async def find(self, key: bytes, *, since: float) -> Claim | None:
        self._reach()
        held = self._claims.get(key)
        return None if held is None or held.is_expired(since) else held

    async def release(self, claim: Claim) -> None:
        self._reach()
        held = self._claims.get(claim.key)
        if held is not None and held.completion_id == claim.completion_id:
            del self._claims[claim.key]

    async def tell_again(self, claims: Sequence[Claim], keep_seconds: float) -> None:
        self._reach()
        for claim in claims:
            self._claims.setdefault(claim.key, claim)

    async def know(self, token: str) -> bool:
        self._reach()
        was_known = token in self._known
        self._known.add(token)
        return was_known
