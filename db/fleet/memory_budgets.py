"""The twin in memory of what callers may use over all replicas: `MemoryBudgets`. For tests."""

from collections.abc import Callable, Mapping, Sequence

from attrs import define, field

from db.fleet.budgets import MINUTE, ROUNDING_SECONDS, Amounts, Refusal, Standing, Used


@define
class Amount:
    """So much per minute. See `service.callers.limits.Budget`."""

    per_minute: int | None = None
    full_at: float = float("-inf")

    def resize(self, per_minute: int | None, now: float) -> None:
        if per_minute is None or self.per_minute is None:
            self.full_at = now
        elif per_minute != self.per_minute:
            self.full_at = now + self.full_in(now) * self.per_minute / per_minute
        self.per_minute = per_minute

    def full_in(self, now: float) -> float:
        return max(0.0, self.full_at - now)

    def take(self, count: int, now: float) -> None:
        if self.per_minute is not None:
            self.full_at = now + self.full_in(now) + count * MINUTE / self.per_minute

    def is_used_up(self, now: float) -> bool:
        if self.per_minute is None:
            return False
        return self.full_in(now) + MINUTE / self.per_minute - MINUTE > ROUNDING_SECONDS


@define
class Account:
    """One owner's."""

    requests: Amount = field(factory=Amount)
    tokens: Amount = field(factory=Amount)
    streams: dict[str, float] = field(factory=dict)
    """Stream → when it stops counting."""
    charged: dict[str, tuple[int, int]] = field(factory=dict)
    """Replica → requests and tokens of it that were charged."""


class MemoryBudgets:
    """See `Budgets`.

    Args:
        token: this replica's.
        accounts: owner → what is shared with the other replicas.
        clock: theirs too, in seconds.
        reach: raises FleetUnavailable while the engine is away.
    """

    def __init__(
        self,
        token: str,
        accounts: dict[str, Account],
        clock: Callable[[], float],
        reach: Callable[[], object] = lambda: None,
    ) -> None:
        self._token = token
        self._accounts = accounts
        self._clock = clock
        self._reach = reach

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
        self._reach()
        now, account = self._clock(), self._settled(owner, amounts, used)
        refusal: Refusal | None = None
        if stream in account.streams:
            request = False
        elif stream is not None:
            if amounts.streams is not None and len(account.streams) >= amounts.streams:
                refusal = "streams"
            elif account.tokens.is_used_up(now):
                refusal = "tokens"
        if request and refusal is None and account.requests.is_used_up(now):
            refusal = "requests"
        if refusal is None:
            account.requests.take(int(request), now)
            if stream is not None and amounts.streams is not None:
                account.streams[stream] = now + lease_seconds
        return _standing(account, amounts, now, refusal)

    async def settle(self, accounts: Mapping[str, tuple[Amounts, Used]]) -> Mapping[str, Standing]:
        self._reach()
        now = self._clock()
        return {
            owner: _standing(self._settled(owner, amounts, used), amounts, now)
            for owner, (amounts, used) in accounts.items()
        }

    async def renew(self, streams: Mapping[str, Sequence[str]], lease_seconds: float) -> None:
        self._reach()
        until = self._clock() + lease_seconds
        for owner, names in streams.items():
            account = self._accounts.setdefault(owner, Account())
            account.streams.update((name, until) for name in names)

    def _settled(self, owner: str, amounts: Amounts, used: Used) -> Account:
        """An owner's account with these amounts, after all that is known was charged."""
        now, account = self._clock(), self._accounts.setdefault(owner, Account())
        account.requests.resize(amounts.requests, now)
        account.tokens.resize(amounts.tokens, now)
        requests, tokens = account.charged.get(self._token, (0, 0))
        requests, tokens = max(requests, used.known_requests), max(tokens, used.known_tokens)
        account.requests.take(max(0, used.requests - requests), now)
        account.tokens.take(max(0, used.tokens - tokens), now)
        account.charged[self._token] = max(requests, used.requests), max(tokens, used.tokens)
        for name in used.ended:
            account.streams.pop(name, None)
        for name in [name for name, until in account.streams.items() if until <= now]:
            del account.streams[name]
        return account


def _standing(
    account: Account, amounts: Amounts, now: float, refusal: Refusal | None = None
) -> Standing:
    streams = 0 if amounts.streams is None else len(account.streams)
    full_in = account.requests.full_in(now), account.tokens.full_in(now)
    return Standing(refusal, streams, *full_in)
