"""What one replica knows of limited callers, and what of it the engine has heard: `SharedAccount`.

Never here: asking the engine, and admitting anybody (`service.callers.sharing`).
"""

from attrs import define, field

from db.fleet.budgets import Amounts, Standing, Used
from service.callers.limits import Account, Admission, Budget

CALLS = "\0tools"
"""After an owner's name: the account of its calls. No name has a NUL in it."""


@define
class SharedAccount:
    """What is known here of a limited caller.

    Attributes:
        requests, tokens, known_requests, known_tokens, ended: see `Used`.
        running: its streams here.
        full_until: when it is asked again whether one of its streams elsewhere has ended.
    """

    name: str
    account: Account
    requests: int = 0
    tokens: int = 0
    known_requests: int = 0
    known_tokens: int = 0
    ended: dict[str, None] = field(factory=dict)
    running: dict[str, None] = field(factory=dict)
    full_until: float = 0.0

    @property
    def has_told_all(self) -> bool:
        """True if the engine knows of everything."""
        told = self.known_requests, self.known_tokens
        return not self.ended and told == (self.requests, self.tokens)

    def used(self) -> Used:
        sums = self.requests, self.tokens, self.known_requests, self.known_tokens
        return Used(*sums, ended=tuple(self.ended))

    def confirm(self, told: Used) -> None:
        """The engine has heard this."""
        self.known_requests = max(self.known_requests, told.requests)
        self.known_tokens = max(self.known_tokens, told.tokens)
        for stream in told.ended:
            self.ended.pop(stream, None)

    def amounts(self, admission: Admission) -> Amounts:
        """What it may use over all replicas."""
        limits = admission.whole_limits(self.name)
        return Amounts(
            limits.requests_per_minute, limits.tokens_per_minute, limits.max_concurrent_streams
        )

    def picture(self, standing: Standing, told: Used, now: float) -> None:
        """Have the account show this, and what was used since."""
        account = self.account
        requests, tokens = self.requests - told.requests, self.tokens - told.tokens
        _picture(account.requests, standing.requests_full_in, requests, now)
        _picture(account.tokens, standing.tokens_full_in, tokens, now)


@define
class SharedCalls(SharedAccount):
    """A caller's calls of tools, which are counted as tokens are."""

    def amounts(self, admission: Admission) -> Amounts:
        limits = admission.whole_limits(self.name.removesuffix(CALLS))
        return Amounts(tokens=limits.tool_calls_per_minute)

    def picture(self, standing: Standing, told: Used, now: float) -> None:
        since = self.tokens - told.tokens
        _picture(self.account.tool_calls, standing.tokens_full_in, since, now)


def _picture(budget: Budget, full_in_seconds: float, since: int, now: float) -> None:
    if budget.per_minute is not None:
        budget.set_full_in(full_in_seconds, now)
        budget.take(since, now)
