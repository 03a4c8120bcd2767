"""Limits each caller: requests, tokens and tools' calls a minute, and streams at once.

`Admission.admit` decides before a request's body is read, in memory, in microseconds. Who the
caller is, is decided before (`service.callers.auth`). The rules:

1. A refused request uses nothing up. An admitted one counts, however it ends.
2. The tokens of a prompt and its answer are charged when the answer ends, as its record has them:
   counted by the provider, else estimated. So a budget can be overdrawn; while it is, its caller
   is refused.
3. Each process counts for itself, and forgets when it stops; but in a fleet, where
   `service.callers.sharing` decides by what all replicas have counted.
"""

import math
import time
from collections.abc import Callable, Iterable

from aiohttp import web
from attrs import astuple, evolve

from service.callers.auth import ANONYMOUS, owner_of
from service.edge.errors import ApiError
from service.settings.access import ApiKeyConfig, LimitsConfig
from statemachine import Failure

_MINUTE = 60.0
_ROUNDING_SECONDS = 1e-6


class Budget:
    """An amount per minute, refilled evenly, by the generic cell rate algorithm (ITU-T I.371).

    Its whole state is the time at which it will be full again, so it costs the same for one and
    for a million a minute. A full budget may be used up at once. `per_minute` None: no limit.
    """

    __slots__ = ("_full_at", "per_minute")

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self._full_at = -math.inf

    def wait_seconds(self, now: float) -> float:
        """How long until at least one is left; 0 if one is."""
        if self.per_minute is None:
            return 0.0
        wait = self._full_at - now + _MINUTE / self.per_minute - _MINUTE
        return wait if wait > _ROUNDING_SECONDS else 0.0

    def take(self, count: int, now: float) -> None:
        """Use up `count`, even if fewer are left."""
        if self.per_minute is not None:
            self._full_at = max(self._full_at, now) + count * _MINUTE / self.per_minute

    def left(self, now: float) -> int:
        """How many are left, at least 0. The budget must have a limit."""
        assert self.per_minute is not None
        missing = self.full_in_seconds(now) * self.per_minute / _MINUTE
        return max(0, math.floor(self.per_minute - missing + _ROUNDING_SECONDS))

    def full_in_seconds(self, now: float) -> float:
        return max(0.0, self._full_at - now)

    def resize(self, per_minute: int | None, now: float) -> None:
        """Change the size from now on; what is used stays used."""
        if self.per_minute is not None and per_minute is not None:
            used = self.full_in_seconds(now) * self.per_minute / _MINUTE
            self._full_at = now + used * _MINUTE / per_minute
        else:
            self._full_at = -math.inf
        self.per_minute = per_minute

    def scale(self, per_minute: int | None) -> None:
        """Change the size from now on; the same part of it is used."""
        self.per_minute = per_minute

    def set_full_in(self, seconds: float, now: float) -> None:
        """Take over what somebody else has counted. See `full_in_seconds`."""
        self._full_at = now + seconds


class Account:
    """The usage of one caller."""

    __slots__ = (
        "is_limited",
        "max_answer_bytes",
        "most_streams",
        "requests",
        "streams",
        "tokens",
        "tool_calls",
    )

    def __init__(self, limits: LimitsConfig) -> None:
        self.requests = Budget(limits.requests_per_minute)
        self.tokens = Budget(limits.tokens_per_minute)
        self.tool_calls = Budget(limits.tool_calls_per_minute)
        self.most_streams = limits.max_concurrent_streams
        self.max_answer_bytes = limits.max_answer_bytes
        self.streams = 0
        self.is_limited = _limits_anything(limits)

    def resize(self, limits: LimitsConfig, now: float) -> None:
        self.requests.resize(limits.requests_per_minute, now)
        self.tokens.resize(limits.tokens_per_minute, now)
        self.tool_calls.resize(limits.tool_calls_per_minute, now)
        self.most_streams = limits.max_concurrent_streams
        self.max_answer_bytes = limits.max_answer_bytes
        self.is_limited = _limits_anything(limits)

    def scale(self, limits: LimitsConfig) -> None:
        """Change the limits; of the budgets the same part is used."""
        self.requests.scale(limits.requests_per_minute)
        self.tokens.scale(limits.tokens_per_minute)
        self.tool_calls.scale(limits.tool_calls_per_minute)
        self.most_streams = limits.max_concurrent_streams

    def check(self, now: float) -> None:
        """Raises ApiError `too_many_streams` or `rate_limited` (429)."""
        self.check_stream(now)
        self.check_budget(self.requests, "request", now)

    def check_stream(self, now: float) -> None:
        """Raises the same for what a request doesn't need that begins nothing."""
        if self.most_streams is not None and self.streams >= self.most_streams:
            raise streams_taken(self.most_streams)
        self.check_budget(self.tokens, "token", now)

    def check_budget(self, budget: Budget, thing: str, now: float) -> None:
        """Raises ApiError `rate_limited`."""
        wait = budget.wait_seconds(now)
        if wait:
            raise used_up(budget.per_minute, thing, wait)

    def headers(self, now: float) -> dict[str, str]:
        """OpenAI's headers, for the budgets that have a limit."""
        headers: dict[str, str] = {}
        for budget, things in ((self.requests, "requests"), (self.tokens, "tokens")):
            if budget.per_minute is not None:
                headers[f"x-ratelimit-limit-{things}"] = str(budget.per_minute)
                headers[f"x-ratelimit-remaining-{things}"] = str(budget.left(now))
                headers[f"x-ratelimit-reset-{things}"] = duration(budget.full_in_seconds(now))
        return headers


class Ticket:
    """The right to one stream. Its holder must close it."""

    __slots__ = ("_account", "_clock", "_is_open")

    def __init__(self, account: Account, clock: Callable[[], float]) -> None:
        account.streams += 1
        self._account = account
        self._clock = clock
        self._is_open = True

    @property
    def max_answer_bytes(self) -> int | None:
        """The largest answer that the stream may be; None: no limit."""
        return self._account.max_answer_bytes

    def take_tool_call(self) -> float:
        """Take the right to call one tool: 0 if it is given, else for how many seconds there will be none,
        and nothing is taken. May be asked after `close`, too."""
        now = self._clock()
        wait = self._account.tool_calls.wait_seconds(now)
        if not wait:
            self._account.tool_calls.take(1, now)
        return wait

    def close(self, tokens: int = 0) -> None:
        """Make room for another stream, and charge the tokens of this one. Only the first call
        counts."""
        if self._is_open:
            self._is_open = False
            self._account.streams -= 1
            self._account.tokens.take(tokens, self._clock())


class Admission:
    """Decides which caller may begin a completion now.

    Args:
        limits: how much each caller may use.
        keys: callers, some with other limits.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        limits: LimitsConfig,
        keys: Iterable[ApiKeyConfig] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        # One for each name that was ever configured, so there is no need to forget any.
        self._accounts: dict[str, Account] = {}
        self._parts = 1
        self.replace(limits, keys)

    def replace(self, limits: LimitsConfig, keys: Iterable[ApiKeyConfig]) -> None:
        """Apply these limits from now on. What is used stays used, and running streams go on."""
        self._whole = limits, {key.name: own_limits(key, limits) for key in keys}
        self._part_limits()
        now = self._clock()
        for owner, account in self._accounts.items():
            account.resize(self._own.get(owner, self._limits), now)

    def divide(self, parts: int) -> None:
        """Let each caller have this part of what is configured, rounded down and one at least; what is used
        counts in proportion."""
        self._parts = parts
        self._part_limits()
        for owner, account in self._accounts.items():
            account.scale(self._own.get(owner, self._limits))

    def whole_limits(self, owner: str) -> LimitsConfig:
        """A caller's limits as they are configured, whatever part of them it may have here now."""
        limits, own = self._whole
        return own.get(owner, limits)

    def _part_limits(self) -> None:
        limits, own = self._whole
        self._limits = _part_of(limits, self._parts)
        self._own = {name: _part_of(each, self._parts) for name, each in own.items()}

    def admit(self, request: web.Request) -> Ticket:
        """Admit a request for a completion, or refuse it.

        Raises:
            ApiError: `rate_limited` or `too_many_streams` (429).
        """
        account = self.account_of(request)
        if account.is_limited:
            now = self._clock()
            account.check(now)
            account.requests.take(1, now)
        return Ticket(account, self._clock)

    def admit_repeat(self, request: web.Request) -> None:
        """Admit a request that may repeat an earlier one, and so need neither a stream nor tokens; one
        that doesn't needs a ticket of `begin` besides. Raises ApiError `rate_limited`."""
        account = self.account_of(request)
        if account.is_limited:
            now = self._clock()
            account.check_budget(account.requests, "request", now)
            account.requests.take(1, now)

    def begin(self, request: web.Request) -> Ticket:
        """The ticket for a request that `admit_repeat` admitted and that begins a completion. Raises
        what `admit` raises."""
        account = self.account_of(request)
        if account.is_limited:
            account.check_stream(self._clock())
        return Ticket(account, self._clock)

    def usage(self) -> dict[str, dict[str, int | None]]:
        """What each caller may use and has left in this process, by name: streams, and requests and
        tokens a minute; None: no limit. Callers that never asked have all of it left."""
        now, found = self._clock(), dict[str, dict[str, int | None]]()
        for name in {ANONYMOUS, *self._own, *self._accounts}:
            account = self._accounts.get(name) or Account(self._own.get(name, self._limits))
            found[name] = {"streams": account.streams, "most_streams": account.most_streams}
            for things in ("requests", "tokens"):
                budget: Budget = getattr(account, things)
                limit = budget.per_minute
                found[name][things] = None if limit is None else budget.left(now)
                found[name][f"most_{things}"] = limit
        return found

    def account_of(self, request: web.Request) -> Account:
        """The account of a request's caller, of which its answer will tell what is left."""
        owner = owner_of(request)
        account = self._accounts.get(owner)
        if account is None:
            account = self._accounts[owner] = Account(self._own.get(owner, self._limits))
        request[_ACCOUNT] = account
        return account

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add to each answer to a request for a completion, refusals included, what is left."""
        account = request.get(_ACCOUNT)
        if account is not None and account.is_limited:
            response.headers.update(account.headers(self._clock()))


_ACCOUNT = web.RequestKey("account", Account)


def duration(seconds: float) -> str:
    """A time span in the form of OpenAI's headers: `0s`, `12ms`, `1.5s`, `6m0s`, `1h0m0s`; rounded
    up."""
    milliseconds = math.ceil(seconds * 1000 - _ROUNDING_SECONDS)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{milliseconds / 1000:g}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _limits_anything(limits: LimitsConfig) -> bool:
    """True if a request may be refused."""
    asked = evolve(limits, max_answer_bytes=None, tool_calls_per_minute=None)
    return any(limit is not None for limit in astuple(asked))


def _part_of(limits: LimitsConfig, parts: int) -> LimitsConfig:
    if parts == 1:
        return limits
    names = (
        "requests_per_minute",
        "tokens_per_minute",
        "max_concurrent_streams",
        "tool_calls_per_minute",
    )
    whole = {name: getattr(limits, name) for name in names}
    return evolve(
        limits, **{name: max(1, limit // parts) for name, limit in whole.items() if limit}
    )


def own_limits(key: ApiKeyConfig, limits: LimitsConfig) -> LimitsConfig:
    """What a key's caller may use: its own figures, and those of all where it has none."""
    own = {
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "max_concurrent_streams": key.max_concurrent_streams,
        "max_answer_bytes": key.max_answer_bytes,
        "tool_calls_per_minute": key.tool_calls_per_minute,
    }
    return evolve(limits, **{name: value for name, value in own.items() if value is not None})


def streams_taken(most: int) -> ApiError:
    """The refusal of a caller that has so many streams, the most that it may have."""
    taken = (
        "The one stream that you may have at once is"
        if most == 1
        else f"All {most} streams that you may have at once are"
    )
    return _refusal("too_many_streams", f"{taken} taken; please try again.", 1.0)


def used_up(per_minute: int | None, thing: str, wait: float) -> ApiError:
    """The refusal of a caller that has used this up, for so many seconds."""
    many = f"{per_minute} {thing}s a minute are"
    used = f"one {thing} a minute is" if per_minute == 1 else many
    message = f"Your {used} used up; please try again in {duration(wait)}."
    return _refusal("rate_limited", message, wait)


def _refusal(code: str, message: str, wait_seconds: float) -> ApiError:
    return ApiError(
        Failure(code, message, type="rate_limit_error", retry_after_seconds=math.ceil(wait_seconds))
    )
