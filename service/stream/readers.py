"""Counts who reads a running answer, and tells its session when the last one leaves and one comes back.

The first client is a reader like others, but for what it is written: that is the relay's business.
"""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from attrs import define

from service.stream.answers import Ending, ending_of
from service.stream.audience import Audience, CutOff
from service.stream.client import ClientSide
from statemachine import ClientLeft, ClientReturned, Event, SessionRecord, StreamSession


@define
class _Cut:
    """Apart from `Readers`, which would be in a ring of objects with its audience otherwise."""

    is_off: bool = False


_NOT_CUT_OFF = _Cut()
"""Of answers whose chunks are settled at once."""


class Readers:
    """The readers of one answer.

    Args:
        session: the answer's.
        client: the first client's side.
        post: tells the session, and carries out what follows.
        settle: see `Audience`.

    Attributes:
        count: how many there are, the first client included.
        has_client: the first client is there.
        audience: the others; None if nobody has come yet.
    """

    __slots__ = (
        "_client",
        "_cut",
        "_ending",
        "_is_over",
        "_post",
        "_session",
        "_settle",
        "audience",
        "count",
        "has_client",
    )

    def __init__(
        self,
        session: StreamSession,
        client: ClientSide,
        post: Callable[[Event], None],
        settle: Callable[[], Coroutine[Any, Any, None]] | None,
    ) -> None:
        self.count = 1
        self.has_client = True
        self.audience: Audience | None = None
        self._session = session
        self._client = client
        self._post: Callable[[Event], None] | None = post
        self._settle = settle
        self._cut = _NOT_CUT_OFF if settle is None else _Cut()
        self._is_over = False
        self._ending: Ending | None = None

    def join(self) -> Audience:
        """Somebody reads too, from now on; what there is to read. Whoever calls it calls `leave` later,
        once."""
        session = self._session
        self.count += 1
        if self.audience is None:
            settle = None if self._settle is None else partial(_settle, self._cut, self._settle)
            self.audience = Audience(session.request, session.transcript.tape, settle)
            if self._is_over:
                self.audience.end(self._ending)
        if not (session.attached or session.state.is_final):
            self._tell(ClientReturned())
        return self.audience

    def leave(self) -> None:
        """A reader has gone."""
        self.count -= 1
        if not self.count and not self._session.state.is_final:
            self._tell(ClientLeft())

    def lose_client(self) -> None:
        """The first client's connection is gone."""
        if self.has_client:
            self.has_client = False
            self._client.leave()
            self.leave()

    def drop_client(self) -> bool:
        """Do the same where the session is told by whoever finds it out: true if nobody is left."""
        if not self.has_client:
            return False
        self.has_client = False
        self.count -= 1
        return not self.count

    def cut_off(self) -> None:
        """Show the others nothing that isn't settled yet."""
        if self._settle is not None:
            self._cut.is_off = True

    def note_end(self, record: SessionRecord | None) -> None:
        """The answer is over. None: something broke, and there is no record."""
        if not self._is_over:
            self._is_over = True
            self._post = None  # or the garbage collector would have to find the relay
            self._ending = None if record is None else ending_of(record)
            if self.audience is not None:
                self.audience.end(self._ending)

    def _tell(self, event: Event) -> None:
        if self._post is not None:
            self._post(event)


async def _settle(cut: _Cut, settle: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """See `Audience`. Raises CutOff."""
    await settle()
    if cut.is_off:
        raise CutOff
