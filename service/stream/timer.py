"""Looks at a session when time has made something due: `SessionTimer`.

One timer per session. It is set again when it fires, and not with each chunk; only what becomes due earlier
than it knows has it set anew.

Never here: what is due (`statemachine.session`), and what follows.
"""

import asyncio
import math
from collections.abc import Callable

from service.clock import Clock
from service.stream.client import ClientSide
from statemachine import Event, StreamSession

_SHORTEST_SECONDS = 0.001


class SessionTimer:
    """The timer of one session.

    Args:
        session: the session.
        client: its first client; while that holds up the upstream, the upstream's silence is excused.
        clock: what time it is, for the session.
        post: told what is due.
    """

    __slots__ = ("_client", "_clock", "_handle", "_post", "_session", "_ticks_at")

    def __init__(
        self,
        session: StreamSession,
        client: ClientSide,
        clock: Clock,
        post: Callable[[Event], None],
    ) -> None:
        self._session = session
        self._client = client
        self._clock = clock
        self._post: Callable[[Event], None] | None = post
        self._handle: asyncio.TimerHandle | None = None
        self._ticks_at = 0.0

    def set(self) -> None:
        """Look when something is due next, if ever."""
        if self._handle is not None:
            self._handle.cancel()
        self._ticks_at = self._session.wakes_at
        if self._ticks_at < math.inf:
            delay = max(self._ticks_at - self._clock(), _SHORTEST_SECONDS)
            self._handle = asyncio.get_running_loop().call_later(delay, self._tick)

    def hasten(self) -> None:
        """Do so if something may be due earlier than was known; never, if the session is final."""
        if self._session.wakes_at < self._ticks_at:
            self.set()

    def stop(self) -> None:
        """Look no more, and let go of whoever was told."""
        self._post = None
        if self._handle is not None:
            self._handle.cancel()

    def _tick(self) -> None:
        now = self._clock()
        client, session = self._client, self._session
        session.excuse_silence(now if client.holds_upstream else client.upstream_free_at)
        event = session.due(now)
        try:
            if event is not None and self._post is not None:
                self._post(event)
        finally:  # even after a mistake of ours, a stream must not be left without its deadlines
            if not session.state.is_final:
                self.set()
