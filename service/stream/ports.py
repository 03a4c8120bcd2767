"""What a relay needs of the journal and the store, and of an upstream; and how long it waits."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from attrs import frozen

from service.agents.protocol import Sink
from statemachine import Event, SessionPolicy, SessionRecord, SessionRequest


class Journal(Protocol):
    """What happened, written down before it is shown; `db.journal` has the real one."""

    @property
    def settles_chunks(self) -> bool:
        """True if even before a session's end `settle` has something to wait for."""

    @property
    def settles_ends(self) -> bool:
        """True if `settle` has something to wait for at a session's end."""

    def begin(self, request: SessionRequest, policy: SessionPolicy) -> bool:
        """Write down that a session begins; False if that can't be done."""

    def append(self, completion_id: str, events: Sequence[Event], now: float) -> None:
        """Write events down. Returns once the kernel has them; never raises."""

    def has_request(self, completion_id: str) -> bool:
        """True if `request` will give it back, so that nobody has to hold it."""

    def request(self, completion_id: str) -> SessionRequest | None:
        """What a session was begun with; None if it can't be read. Quick, and never raises."""

    async def settle(self, *, is_final: bool) -> None:
        """Return once what was appended is as safe as configured."""

    def when_settled(self, tell: Callable[[], None]) -> None:
        """Have this called once what was appended so far is as safe as configured for chunks; at once if
        it is. It must not raise."""


class Upstream(Protocol):
    """Where an answer comes from; `service.stream.attempts` has the usual one."""

    def read(self, sink: Sink | None = None) -> Coroutine[Any, Any, Sequence[Event]]:
        """See `Attempts.read`."""

    async def close(self) -> None:
        """See `Attempts.close`."""


class Saver(Protocol):
    """The persistence hook; `db.saver.Saver` is the real one."""

    def save(self, record: SessionRecord) -> "asyncio.Future[None]":
        """Take the record over for good. The future is done once it is committed; cancelling
        it or not waiting changes nothing."""


@frozen
class RelayLimits:
    """How long a relay waits, in seconds."""

    commit_timeout_seconds: float
    """For the commit, before the client is told the end."""
