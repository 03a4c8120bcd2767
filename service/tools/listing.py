"""Remembers what tools a server has, for as long as it says, and asks again behind whoever wants to know."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator

import structlog

from service.tools.contract import ToolsUnavailable
from service.tools.link import Listing, NotConnected
from service.tools.names import ServerTool
from statemachine import Failure
from statemachine.backoff import backoff

log = structlog.get_logger(__name__)

_FRESH_SECONDS = 300.0
"""For servers that don't say how long their lists hold."""
_LEAST_FRESH_SECONDS = 1.0
"""However often answers begin, a server is asked no more often."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0


class KnownTools:
    """The tools of one server, as last told.

    Args:
        server: its name.
        ask: asks it for them; raises NotConnected.
        choose: makes callable tools of what it lists.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        server: str,
        ask: Callable[[], Awaitable[Listing]],
        choose: Callable[[Listing], tuple[ServerTool, ...]],
        clock: Callable[[], float],
    ) -> None:
        self._server = server
        self._ask = ask
        self._choose = choose
        self._clock = clock
        self._tools: tuple[ServerTool, ...] | None = None
        self._stale_at = 0.0
        self._pauses = _new_pauses()
        self._asks_again_at = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._changed_meanwhile = False

    @property
    def is_unknown(self) -> bool:
        """Whether they were never listed."""
        return self._tools is None

    async def get(self) -> tuple[ServerTool, ...]:
        """The tools. Asks first only if they were never known; else a list that isn't fresh any more is
        given all the same, and asked for anew behind it.

        Raises:
            ToolsUnavailable: they were never known, and can't be asked for now.
        """
        now = self._clock()
        if self._tools is None:
            if now < self._asks_again_at:
                raise self._unavailable(self._asks_again_at - now)
            await asyncio.wait((self._begin_asking(),))
            if self._tools is None:
                raise self._unavailable(max(0.0, self._asks_again_at - self._clock()))
        elif now >= self._stale_at and now >= self._asks_again_at:
            self._begin_asking()
        return self._tools

    def learn(self, listing: Listing) -> None:
        """Have these from now on."""
        fresh = _FRESH_SECONDS if listing.fresh_seconds is None else listing.fresh_seconds
        self._tools = self._choose(listing)
        self._stale_at = self._clock() + max(fresh, _LEAST_FRESH_SECONDS)
        self._asks_again_at = 0.0
        self._pauses = _new_pauses()

    def change(self) -> None:
        """The server says that they changed: ask for them soon, waited for by nobody."""
        self._stale_at = 0.0
        self._changed_meanwhile = True
        self._begin_asking()

    def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()

    def _begin_asking(self) -> "asyncio.Task[None]":
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_until_unchanged(), name="list tools")
        return self._asking

    async def _ask_until_unchanged(self) -> None:
        while True:
            self._changed_meanwhile = False
            try:
                self.learn(await self._ask())
            except Exception as error:  # a server may send anything
                self._asks_again_at = self._clock() + next(self._pauses)
                reason = str(error) if isinstance(error, NotConnected) else type(error).__name__
                log.warning("tools not listed", server=self._server, reason=reason)
                return
            if not self._changed_meanwhile:
                return
            await asyncio.sleep(_LEAST_FRESH_SECONDS)

    def _unavailable(self, seconds: float) -> ToolsUnavailable:
        message = f"The tools of the server {self._server!r} can't be listed now."
        return ToolsUnavailable(
            Failure("tools_unavailable", message, status=503, retry_after_seconds=seconds)
        )


def _new_pauses() -> Iterator[float]:
    return backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, random.random)
