"""Defines what callers may use over all replicas together, and how that is asked for: `Budgets`.

The amounts are those of `service.callers.limits`, counted by the same generic cell rate algorithm: the
whole state of an amount per minute is when it will be full again. Here it is kept by the engine, on the
engine's clock. `db.fleet.redis_budgets` is the real one, `db.fleet.memory_budgets` its twin; the tests of
the contract (`tests/db/fleet/test_budgets.py`) run over both, and hold them against `Budget`.

Never here: what a refusal looks like, and what happens while the engine is away.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from attrs import frozen

MINUTE = 60.0
ROUNDING_SECONDS = 1e-6

Refusal = Literal["streams", "tokens", "requests"]
"""What of an owner's is used up."""


@frozen
class Amounts:
    """How much an owner may use; None: no limit.

    Attributes:
        requests, tokens: per minute.
        streams: at once.
    """

    requests: int | None = None
    tokens: int | None = None
    streams: int | None = None


@frozen
class Used:
    """What an owner has used at one replica without being admitted for it: tokens, charged after the fact,
    and requests that were let in while the engine was away. Sums since the replica's start, so that
    telling them twice charges them once.

    Attributes:
        requests, tokens: all so far.
        known_requests, known_tokens: how much of it the engine has confirmed.
        ended: streams that are over.
    """

    requests: int = 0
    tokens: int = 0
    known_requests: int = 0
    known_tokens: int = 0
    ended: tuple[str, ...] = ()


@frozen
class Standing:
    """What an owner has, as the engine saw it.

    Attributes:
        refusal: what the request was refused for; None: it was admitted, or nothing was asked for.
        streams: how many run, at all replicas; 0 where they have no limit.
        requests_full_in, tokens_full_in: seconds until all of the amount is back.
    """

    refusal: Refusal | None
    streams: int
    requests_full_in: float
    tokens_full_in: float


class Budgets(Protocol):
    """One replica's way to what owners may use. The calls are coroutines and raise
    `db.fleet.FleetUnavailable`. Cancelling one leaves it carried out or not; so does that error.
    """

    async def admit(
        self,
        owner: str,
        amounts: Amounts,
        used: Used,
        *,
        request: bool = True,
        stream: str | None = None,
        lease_seconds: float = 60.0,
    ) -> Standing:
        """Admit a request, or refuse it, in one round trip; `used` is charged first, either way.

        A refused one uses nothing up. One that is asked for twice with the same stream counts once.
        `amounts` are applied at once: what was used of others stays used.

        Args:
            request: it counts as a request.
            stream: the name of the stream that it begins, unlike any other replica's, which also takes that
                tokens are left; None: it begins none.
            lease_seconds: how long the stream counts unless it is renewed.
        """

    async def settle(self, accounts: Mapping[str, tuple[Amounts, Used]]) -> Mapping[str, Standing]:
        """Charge these owners for what they have used, and take their ended streams off."""

    async def renew(self, streams: Mapping[str, Sequence[str]], lease_seconds: float) -> None:
        """These owners' streams run on: they count for so long again, also those that had run out."""
