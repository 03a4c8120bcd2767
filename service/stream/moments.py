"""Announces a completion's moments, once each, to whoever watches: log line, charging, and more.

The stream knows none of its watchers. A watcher is told and can change nothing; what it raises is
logged, and the stream goes on.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

import structlog
from attrs import define, frozen

from service.agents.protocol import Agent, AgentCall, Target
from statemachine import Failure, SessionRecord, SessionRequest, StreamSession

log = structlog.get_logger(__name__)


@frozen
class Asking:
    """One request to an agent, as it begins.

    Attributes:
        number: from 1, counted for each agent.
        target: whom the agent asks, for which model.
        traceparent: what that is sent.
    """

    agent: str
    number: int
    target: Target
    traceparent: str


@define
class Attempt:
    """One request to an agent, up to its first token or its failure."""

    agent: str
    number: int
    """From 1, counted for each agent."""
    seconds: float
    """From asking to the first token or the failure."""
    failure: Failure | None = None
    """Why there was no first token; None if there was one."""
    cause: str | None = None
    """What of that is for the log alone."""
    asked_at: float = 0.0
    """When it was asked, on the monotonic clock."""
    first_chunk_seconds: float | None = None
    """From asking to the first events of an answer; None if none came."""
    arrived_seconds: float | None = None
    """From the request's arrival to asking; None if somebody had been asked before."""


class Watcher:
    """Is told of moments. Every method does nothing; a watcher overrides what it wants to know.

    All are called in the event loop and must be quick.
    """

    def began(self, request: SessionRequest) -> None:
        """A completion was admitted and its session made. Always the first."""

    def asking(self, request: SessionRequest, asking: Asking) -> None:
        """An agent is about to be asked; for each retry and each fallback again. `tried` follows,
        unless the session ends first."""

    def tried(self, request: SessionRequest, attempt: Attempt) -> None:
        """An agent was asked; for each retry and each fallback again."""

    def reached_first_token(self, request: SessionRequest, ttft_ms: float) -> None:
        """The first token arrived, so many milliseconds after the request."""

    def sent_first_token(self, session: StreamSession, seconds: float, held_seconds: float) -> None:
        """The first token was written to the first client of a stream, if that is there: so many seconds
        after the request arrived, and after the token did."""

    def pinged(self) -> None:
        """A keep-alive comment was written to some reader."""

    def left_alone(self, session: StreamSession) -> None:
        """The last reader left while the answer runs."""

    def ended(self, record: SessionRecord) -> None:
        """The session ended. Its record is about to be handed to the saver, and the client about to
        be told."""

    def saved(self, completion_id: str) -> None:
        """The record was committed; perhaps after `closed`, perhaps never."""

    def not_saved(self, completion_id: str) -> None:
        """The record could neither be committed nor set aside; the journal may have it."""

    def closed(self, request: SessionRequest) -> None:
        """The relay is done with its client. Comes whatever became of the completion."""

    # Of requests that are no new completion.

    def refused(self, code: str) -> None:
        """A request was answered with an error of ours, and is no completion."""

    def resumed(self, kind: str) -> None:
        """A reader came later: to a `running` answer, or to one that has `ended`."""

    def repeated(self, outcome: str) -> None:
        """What became of a request with a key: `new`, `replayed`, `mismatch` or `pending`."""


class Watchers:
    """Everybody who watches completions.

    Args:
        watchers: who is told, in this order.
    """

    def __init__(self, watchers: Iterable[Watcher] = ()) -> None:
        self._watchers = tuple(watchers)
        self.began = self._who_wants("began")
        self.asking = self._who_wants("asking")
        self.tried = self._who_wants("tried")
        self.reached_first_token = self._who_wants("reached_first_token")
        self.sent_first_token = self._who_wants("sent_first_token")
        self.pinged = self._who_wants("pinged")
        self.left_alone = self._who_wants("left_alone")
        self.ended = self._who_wants("ended")
        self.saved = self._who_wants("saved")
        self.not_saved = self._who_wants("not_saved")
        self.closed = self._who_wants("closed")
        self.refused = self._who_wants("refused")
        self.resumed = self._who_wants("resumed")
        self.repeated = self._who_wants("repeated")

    def _who_wants(self, moment: str) -> Sequence[Callable[..., None]]:
        """The methods that were overridden, so that a moment costs what its listeners cost."""
        inherited = getattr(Watcher, moment)
        return [
            getattr(watcher, moment)
            for watcher in self._watchers
            if getattr(type(watcher), moment) is not inherited
        ]


class Moments:
    """One completion's moments; each method announces one.

    Args:
        session: the completion's.
        watchers: who is told.
        arrived_at: when its request came, on the monotonic clock; now, if not given.
    """

    __slots__ = ("_answered_at", "_arrived_at", "_session", "_watchers")

    def __init__(
        self, session: StreamSession, watchers: Watchers, arrived_at: float | None = None
    ) -> None:
        self._session = session
        self._watchers = watchers
        self._arrived_at = time.monotonic() if arrived_at is None else arrived_at
        self._answered_at: float | None = None

    def began(self) -> None:
        tell(self._watchers.began, self._session.request)

    def asking(self, agent: Agent, number: int, call: AgentCall) -> None:
        if listeners := self._watchers.asking:
            asking = Asking(agent.name, number, agent.target(call), call.traceparent)
            tell(listeners, self._session.request, asking)

    def tried(self, attempt: Attempt) -> None:
        if self._answered_at is None:
            attempt.arrived_seconds = attempt.asked_at - self._arrived_at
        self._answered_at = attempt.asked_at + attempt.seconds
        tell(self._watchers.tried, self._session.request, attempt)

    def reached_first_token(self, ttft_ms: float) -> None:
        tell(self._watchers.reached_first_token, self._session.request, ttft_ms)

    def sent_first_token(self) -> None:
        if listeners := self._watchers.sent_first_token:
            now = time.monotonic()
            came_at = self._arrived_at if self._answered_at is None else self._answered_at
            tell(listeners, self._session, now - self._arrived_at, now - came_at)

    def pinged(self) -> None:
        tell(self._watchers.pinged)

    def left_alone(self) -> None:
        tell(self._watchers.left_alone, self._session)

    def ended(self, record: SessionRecord) -> None:
        tell(self._watchers.ended, record)

    def watch_save(self, save: "asyncio.Future[None]") -> None:
        """Have `saved` or `not_saved` announced once this is done. Keeps neither the record nor the
        request in memory till then: a database may be away for long."""
        watchers, completion_id = self._watchers, self._session.request.completion_id
        if not (watchers.saved or watchers.not_saved):
            return

        def announce(done: "asyncio.Future[None]") -> None:
            is_saved = not done.cancelled() and done.exception() is None
            tell(watchers.saved if is_saved else watchers.not_saved, completion_id)

        if save.done():
            announce(save)
        else:
            save.add_done_callback(announce)

    def closed(self) -> None:
        tell(self._watchers.closed, self._session.request)


def tell(listeners: Sequence[Callable[..., None]], *what: object) -> None:
    """Tell each of these, in order. Never raises: what one of them raises is logged."""
    for listen in listeners:
        try:
            listen(*what)
        except Exception:
            log.exception("watcher failed", watcher=listen.__qualname__)
