"""Defines which completion answers which `Idempotency-Key`, over all replicas: `FleetClaims`.

Two places have claims: the machine's own (`db.claims`) and the engine. The rules:

1. What the machine's own place has is answered from there, without asking anybody: so its workers agree,
   and a repeat finds its answer whatever becomes of the engine.
2. Any other key is taken at the engine, of whose answers one is yes; who gets it writes it to the machine's
   own place too, and only then asks a model.
3. While the engine is away, a key that the machine doesn't know is neither taken nor free:
   `ClaimsElsewhere`. Asking a model then could be asking twice.
4. An engine that has lost everything is told again what was claimed here, as far as this process knows.

Never here: what became of a completion.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from attrs import evolve

from db.claims import Claim, Claims, ClaimsElsewhere, ClaimsUnavailable
from db.fleet.contract import FleetUnavailable
from db.fleet.shared_claims import SharedClaims
from db.fleet.tending import tend

log = structlog.get_logger(__name__)

_PATIENCE_SECONDS = 2.0
"""How long a call waits for the engine."""
_LOOK_SECONDS = 3.0
"""Between two looks whether the engine has lost everything."""
_MOST_TOLD_AGAIN = 10_000
"""The last claims that an engine without any is told again; some 300 bytes each."""

_T = TypeVar("_T")


class FleetClaims:
    """See `db.claims.Claims`.

    Args:
        own: the machine's.
        shared: the engine's.
        token: this replica's.
        keep_seconds: how long a claim holds; asked anew at each call.
        clock: POSIX seconds.
    """

    def __init__(
        self,
        own: Claims,
        shared: SharedClaims,
        token: str,
        *,
        keep_seconds: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._own = own
        self._shared = shared
        self._token = token
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._taken: OrderedDict[bytes, Claim] = OrderedDict()
        self._calls: dict[bytes, asyncio.Task[Any]] = {}
        self._is_closed = False
        self._is_known = False
        self._upkeep: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<FleetClaims over {self._own}>"

    def start(self) -> None:
        self._own.start()
        self._upkeep = asyncio.create_task(tend(self._step, lambda _: None), name="fleet claims")

    async def take(self, claim: Claim, *, instead_of: str | None = None) -> Claim:
        return await self._in_order(claim.key, lambda: self._take(claim, instead_of))

    async def find(self, key: bytes) -> Claim | None:
        if (held := await self._own.find(key)) is not None:
            return held
        found = await self._ask(self._shared.find(key, since=self._since()))
        return None if found is None else self._as_seen_here(found)

    async def release(self, claim: Claim) -> None:
        await self._in_order(claim.key, lambda: self._release(claim))

    async def tell_again(self) -> None:
        """Tell the engine what it may have lost. Raises FleetUnavailable."""
        since = self._since()
        claims = [claim for claim in self._taken.values() if not claim.is_expired(since)]
        if claims:
            await self._shared.tell_again(claims, self._keep_seconds())

    async def close(self) -> None:
        self._is_closed = True
        tasks = [*self._calls.values(), *([self._upkeep] if self._upkeep else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._own.close()

    # --- one call each ----------------------------------------------------------------------

    async def _take(self, claim: Claim, instead_of: str | None) -> Claim:
        held = await self._own.find(claim.key)
        if held is not None and held.completion_id != instead_of:
            return held
        ours = evolve(claim, token=self._token)
        call = self._shared.take(
            ours, since=self._since(), keep_seconds=self._keep_seconds(), instead_of=instead_of
        )
        won = await self._ask(call)
        if won.completion_id != claim.completion_id:
            return self._as_seen_here(won)
        try:
            kept = await self._own.take(claim, instead_of=instead_of)
        except ClaimsUnavailable:
            await self._give_back(claim)
            raise
        if kept.completion_id != claim.completion_id:
            await self._give_back(claim)  # a sibling's, of which the engine had lost all
            return kept
        self._taken[claim.key] = ours
        self._taken.move_to_end(claim.key)
        if len(self._taken) > _MOST_TOLD_AGAIN:
            self._taken.popitem(last=False)
        return kept

    def _as_seen_here(self, held: Claim) -> Claim:
        return evolve(held, token="") if held.token == self._token else held

    async def _release(self, claim: Claim) -> None:
        self._taken.pop(claim.key, None)
        await self._own.release(claim)
        await self._give_back(claim)

    async def _give_back(self, claim: Claim) -> None:
        """Free it at the engine too. Never raises: whoever finds it there asks this replica, which knows of
        no such completion."""
        try:
            await self._ask(self._shared.release(claim))
        except ClaimsUnavailable as error:
            log.warning("claim not released in the fleet", reason=str(error))

    async def _step(self) -> None:
        self._is_known = await self._shared.know(self._token) and self._is_known
        if not self._is_known:
            await self.tell_again()
            self._is_known = True
        await asyncio.sleep(_LOOK_SECONDS)

    # --- how they are made ------------------------------------------------------------------

    def _since(self) -> float:
        return self._clock() - self._keep_seconds()

    async def _ask(self, call: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await call
        except (FleetUnavailable, TimeoutError) as error:
            why = str(error).rstrip(".") or "no answer"
            raise ClaimsElsewhere(
                f"What other machines have claimed can't be told now: {why}."
            ) from error

    async def _in_order(self, key: bytes, call: Callable[[], Awaitable[_T]]) -> _T:
        """Make a call after those of the same key before it, to its end, also if it is cancelled."""
        if self._is_closed:
            raise ClaimsUnavailable("Idempotency keys are no longer kept: the service is stopping.")
        before = self._calls.get(key)

        async def make() -> _T:
            if before is not None:
                await asyncio.wait([before])
            return await call()

        task = asyncio.create_task(make())
        self._calls[key] = task
        task.add_done_callback(lambda _: self._forget(key, task))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._is_closed:
                raise ClaimsUnavailable("The service is stopping.") from None
            raise

    def _forget(self, key: bytes, task: "asyncio.Task[Any]") -> None:
        if self._calls.get(key) is task:
            del self._calls[key]
        if not task.cancelled():
            task.exception()  # whoever waited was told, or has gone
