"""Counts who reads a running answer, and tells its session when the last one leaves and one comes back.

The first client is a reader like others, but for what it is written: that is the relay's business.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from service.stream.answers import Ending, ending_of
from service.stream.audience import Audience
from service.stream.client import ClientSide
from statemachine import ClientLeft, ClientReturned, Event, SessionRecord, StreamSession


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
        self._is_over = False
        self._ending: Ending | None = None

    def join(self) -> Audience:
        """Somebody reads too, from now on; what there is to read. Whoever calls it calls `leave` later,
        once."""
        session = self._session
        self.count += 1
        if self.audience is None:
            self.audience = Audience(session.request, session.transcript.tape, self._settle)
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
