"""Defines what may be asked of the claims that the engine keeps: `SharedClaims`.

`db.fleet.redis_claims` is the real one, `db.fleet.memory_claims` its twin. `db.fleet.claims.FleetClaims`
puts either together with the machine's own.
"""

from collections.abc import Sequence
from typing import Protocol

from db.claims import Claim


class SharedClaims(Protocol):
    """The engine's claims. The calls are coroutines and raise FleetUnavailable."""

    async def take(
        self, claim: Claim, *, since: float, keep_seconds: float, instead_of: str | None = None
    ) -> Claim:
        """See `db.claims.Claims.take`. The claim is gone after so long; what was claimed at `since` or
        before has expired."""

    async def find(self, key: bytes, *, since: float) -> Claim | None:
        """See `db.claims.Claims.find`."""

    async def release(self, claim: Claim) -> None:
        """See `db.claims.Claims.release`."""

    async def tell_again(self, claims: Sequence[Claim], keep_seconds: float) -> None:
        """Keep these, each where nobody holds its key."""

    async def know(self, token: str) -> bool:
        """True if the engine has had this replica's claims since the last call; False if it has lost them
        all, or this is the first."""
