"""Admits callers by what all replicas of a fleet have counted together: `SharedAdmission`.

`service.callers.limits` decides for one process; here the engine decides (`db.fleet.budgets`), and each
account is a picture of what it has last said. The rules:

1. One round trip admits. What the picture shows to be used up is refused without one: others only add to
   what is used, and what comes back meanwhile is reckoned in.
2. What is used after the fact, tokens and ended streams, is told by a task within milliseconds, of many
   owners at a time; or with the owner's next admission, so that nobody slips in between.
3. Calls of tools are told in the same way, of an account of their own, which is looked at when an answer
   begins. Nobody waits before a call, so some of those that are made at the same moment at several replicas
   may be too many.
4. A stream counts for a lease, and all that run are renewed three times in it. Nothing stops one whose
   lease ran out; it counts again with the next renewal.
5. A caller waits for an engine that doesn't answer for `_PATIENCE_SECONDS` and no longer; then the limits,
   divided by the replicas last seen, are this process's own, and nobody waits, until the engine answers
   again. What was used meanwhile is told it then.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count

import structlog
from aiohttp import web

from db.fleet import Engine, FleetUnavailable
from db.fleet.budgets import MINUTE, Amounts, Standing, Used
from db.fleet.tending import tend
from service.callers.auth import owner_of
from service.callers.limits import Account, Admission, Ticket, streams_taken, used_up
from service.callers.shared_accounts import CALLS, SharedAccount, SharedCalls
from service.edge.errors import ApiError

log = structlog.get_logger(__name__)

_PATIENCE_SECONDS = 0.5
_GATHER_SECONDS = 0.005
"""How long what is to be told waits for more, or for its owner's next admission, which takes it along."""
_STEP_SECONDS = 3.0
"""How long the task waits for any call."""
_STOP_SECONDS = 2.0
"""How long a stop waits for the engine to be told the rest; leases say it otherwise."""
_MOST_AT_ONCE = 500
"""Owners told of in one call."""
_FULL_SECONDS = 0.1
"""How long a caller whose streams are all taken is refused without asking again, unless one of its own
ends: those elsewhere may end at any time."""


class SharedTicket(Ticket):
    """See `Ticket`. Its end, and the calls of tools, are told to all replicas."""

    __slots__ = ("_note_call", "_note_closed")

    def __init__(
        self,
        account: Account,
        clock: Callable[[], float],
        note_closed: Callable[[int], None],
        note_call: Callable[[], None],
    ) -> None:
        super().__init__(account, clock)
        self._note_closed = note_closed
        self._note_call = note_call

    def take_tool_call(self) -> float:
        wait = super().take_tool_call()
        if not wait:
            self._note_call()
        return wait

    def close(self, tokens: int = 0) -> None:
        if self._is_open:
            super().close(tokens)
            self._note_closed(tokens)


class SharedAdmission:
    """Decides which caller may begin a completion now, with the other replicas.

    Args:
        admission: this process's, with the accounts.
        engine: the fleet's.
        lease_seconds: how long a stream counts whose replica has died.
        clock: seconds that never run backwards, the admission's.

    Attributes:
        fallbacks: how often it began to limit by this replica's share alone.
    """

    def __init__(
        self,
        admission: Admission,
        engine: Engine,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admission = admission
        self._engine = engine
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._owners: dict[str, SharedAccount] = {}
        self._untold: dict[str, None] = {}
        self._numbers = count(1)
        self._replicas, self._replicas_until = 1, 0.0
        self._is_away = False
        self.fallbacks = 0
        self._renewed_at = float("-inf")
        self._has_work = asyncio.Event()

    @property
    def is_away(self) -> bool:
        """True while this process decides by itself, by its part of the limits."""
        return self._is_away

    @property
    def replicas(self) -> int:
        """How many were last seen alive, this one included."""
        return self._replicas

    # --- what requests ask ------------------------------------------------------------------

    async def admit(self, request: web.Request) -> Ticket:
        """See `Admission.admit`. Cancelling it gives the stream back."""
        return await self._begin(request, is_request=True)

    async def admit_repeat(self, request: web.Request) -> None:
        """See `Admission.admit_repeat`."""
        account = self._admission.account_of(request)
        if account.is_limited:
            known = self._known(SharedAccount, owner_of(request), account)
            await self._decide(known, None, is_request=True)

    async def begin(self, request: web.Request) -> Ticket:
        """See `Admission.begin`. Cancelling it gives the stream back."""
        return await self._begin(request, is_request=False)

    async def _begin(self, request: web.Request, *, is_request: bool) -> Ticket:
        account = self._admission.account_of(request)
        note_call = self._note_calls(owner_of(request), account)
        if not account.is_limited:
            return SharedTicket(account, self._clock, lambda _: None, note_call)
        known = self._known(SharedAccount, owner_of(request), account)
        stream = f"{self._engine.token}:{next(self._numbers)}"
        try:
            await self._decide(known, stream, is_request=is_request)
        except asyncio.CancelledError:
            self._note_ended(known, stream)
            raise
        known.running[stream] = None
        note_closed = partial(self._note_closed, known, stream)
        return SharedTicket(account, self._clock, note_closed, note_call)

    def _known(self, kind: type[SharedAccount], name: str, account: Account) -> SharedAccount:
        known = self._owners.get(name)
        if known is None:
            known = self._owners[name] = kind(name, account)
        return known

    async def _decide(self, known: SharedAccount, stream: str | None, *, is_request: bool) -> None:
        """Raises ApiError if this isn't admitted."""
        self._check(known, stream, is_request=is_request)
        if not self._is_away and await self._ask(known, stream, is_request=is_request):
            return
        try:
            self._check(known, stream, is_request=is_request)  # by its part of the limits
        except ApiError:
            if stream is not None:  # which the engine may have admitted, too late
                self._note_ended(known, stream)
            raise
        if is_request:
            known.account.requests.take(1, self._clock())
            known.requests += known.account.requests.per_minute is not None
            self._note_untold(known)

    def _check(self, known: SharedAccount, stream: str | None, *, is_request: bool) -> None:
        """Raises ApiError for what is known here to be used up."""
        account, now = known.account, self._clock()
        if stream is not None:
            if now < known.full_until and account.most_streams is not None:
                raise streams_taken(account.most_streams)
            account.check_stream(now)
        if is_request:
            account.check_budget(account.requests, "request", now)

    async def _ask(self, known: SharedAccount, stream: str | None, *, is_request: bool) -> bool:
        """Ask the engine. False if it doesn't answer; raises ApiError if it refuses."""
        told = known.used()
        amounts = known.amounts(self._admission)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                standing = await self._engine.budgets.admit(
                    known.name,
                    amounts,
                    told,
                    request=is_request,
                    stream=stream,
                    lease_seconds=self._lease_seconds,
                )
        except (FleetUnavailable, TimeoutError) as error:
            self._fall_back(error)
            return False
        now = self._clock()
        known.confirm(told)
        if known.has_told_all:
            self._untold.pop(known.name, None)
        known.picture(standing, told, now)
        if standing.refusal is not None:
            raise self._refusal(known, standing, amounts, now)
        return True

    def _refusal(
        self, known: SharedAccount, standing: Standing, amounts: Amounts, now: float
    ) -> ApiError:
        if standing.refusal == "streams":
            known.full_until = now + _FULL_SECONDS
            return streams_taken(amounts.streams or 0)
        if standing.refusal == "tokens":
            limit, thing, full_in = amounts.tokens, "token", standing.tokens_full_in
        else:
            limit, thing, full_in = amounts.requests, "request", standing.requests_full_in
        return used_up(limit, thing, full_in + MINUTE / (limit or 1) - MINUTE)

    # --- what is told after -----------------------------------------------------------------

    def _note_closed(self, known: SharedAccount, stream: str, tokens: int) -> None:
        known.running.pop(stream, None)
        known.full_until = 0.0
        if known.account.tokens.per_minute is not None:
            known.tokens += tokens
        self._note_ended(known, stream)

    def _note_calls(self, owner: str, account: Account) -> Callable[[], None]:
        """Tells of a call of this caller's. What others' have left of them is asked for now."""
        if account.tool_calls.per_minute is None:
            return _nothing
        known = self._known(SharedCalls, owner + CALLS, account)
        self._untold[known.name] = None
        self._has_work.set()
        return partial(self._note_call, known)

    def _note_call(self, known: SharedAccount) -> None:
        known.tokens += 1
        self._note_untold(known)

    def _note_ended(self, known: SharedAccount, stream: str) -> None:
        if known.account.most_streams is not None:
            known.ended[stream] = None
        self._note_untold(known)

    def _note_untold(self, known: SharedAccount) -> None:
        if not known.has_told_all:
            self._untold[known.name] = None
            self._has_work.set()

    def _fall_back(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            self.fallbacks += 1
            self._admission.divide(self._replicas)
            reason = str(error) or "no answer"
            log.error("limits not shared", reason=reason, replicas=self._replicas)
            self._has_work.set()

    async def keep(self, _: object) -> AsyncIterator[None]:
        """Tell the engine what there is to tell; at the end, what is left, for some seconds."""
        task = asyncio.create_task(tend(self._step, self._fall_back), name="shared limits")
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with suppress(FleetUnavailable, TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                while self._untold:
                    await self._settle(list(self._untold))

    async def _step(self) -> None:
        if not self._is_away:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._renewal_at()):
                    await self._has_work.wait()
                    await asyncio.sleep(_GATHER_SECONDS)
        self._has_work.clear()
        try:
            async with asyncio.timeout(_STEP_SECONDS):
                await self._tell()
        except TimeoutError:
            raise FleetUnavailable("no answer") from None

    def _renewal_at(self) -> float:
        return self._renewed_at + self._lease_seconds / 3

    async def _tell(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._is_away or now >= self._renewal_at():
            await self._renew()
            self._renewed_at = now
        names = list(self._owners if self._is_away else self._untold)
        heard: list[tuple[SharedAccount, Used, Standing]] = []
        for start in range(0, len(names), _MOST_AT_ONCE):
            heard += await self._settle(names[start : start + _MOST_AT_ONCE])
        if self._is_away:
            self._is_away = False
            self._admission.divide(1)
            log.info("limits shared again")
        now = self._clock()
        for known, told, standing in heard:
            known.picture(standing, told, now)

    async def _renew(self) -> None:
        """Say which streams run here, and see who else is there."""
        streams = {
            known.name: tuple(known.running)
            for known in self._owners.values()
            if known.running and known.account.most_streams is not None
        }
        await self._engine.budgets.renew(streams, self._lease_seconds)
        alive = sum(replica.is_alive for replica in await self._engine.replicas())
        now = self._clock()
        # An engine that was emptied hears of everybody again within a lease.
        if alive >= self._replicas or now > self._replicas_until:
            self._replicas = max(1, alive)
            self._replicas_until = now + 2 * self._lease_seconds

    async def _settle(self, names: Sequence[str]) -> list[tuple[SharedAccount, Used, Standing]]:
        asked: dict[str, tuple[Amounts, Used]] = {}
        for name in names:
            self._untold.pop(name, None)
            known = self._owners[name]
            asked[name] = known.amounts(self._admission), known.used()
        try:
            standings = await self._engine.budgets.settle(asked)
        except BaseException:
            self._untold.update(dict.fromkeys(names))
            raise
        heard = []
        for name, (_, told) in asked.items():
            known = self._owners[name]
            known.confirm(told)
            heard.append((known, told, standings[name]))
        return heard


def _nothing() -> None:
    """Of a caller whose calls nobody counts."""
