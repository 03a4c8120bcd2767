"""Announces a completion's moments, once each, to whoever watches: log line, charging, and more.

The stream knows none of its watchers. A watcher is told and can change nothing; what it raises is
logged, and the stream goes on.
"""

import asyncio
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

    def ended(self, record: SessionRecord) -> None:
        """The session ended. Its record is about to be handed to the saver, and the client about to
        be told."""

    def saved(self, completion_id: str) -> None:
        """The record was committed; perhaps after `closed`, perhaps never."""

    def not_saved(self, completion_id: str) -> None:
        """The record could neither be committed nor set aside; the journal may have it."""

    def closed(self, request: SessionRequest) -> None:
        """The relay is done with its client. Comes whatever became of the completion."""


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
        self.ended = self._who_wants("ended")
        self.saved = self._who_wants("saved")
        self.not_saved = self._who_wants("not_saved")
        self.closed = self._who_wants("closed")

    def _who_wants(self, moment: str) -> Sequence[Callable[..., None]]:
        """The methods that were overridden, so that a moment costs what its listeners cost."""
        inherited = getattr(Watcher, moment)
        return [
            getattr(watcher, moment)
            for watcher in self._watchers
            if getattr(type(watcher), moment) is not inherited
        ]


class Moments:
    """One completion's moments; each method announces one."""

    __slots__ = ("_session", "_watchers")

    def __init__(self, session: StreamSession, watchers: Watchers) -> None:
        self._session = session
        self._watchers = watchers

    def began(self) -> None:
        _tell(self._watchers.began, self._session.request)

    def asking(self, agent: Agent, number: int, call: AgentCall) -> None:
        if listeners := self._watchers.asking:
            asking = Asking(agent.name, number, agent.target(call), call.traceparent)
            _tell(listeners, self._session.request, asking)

    def tried(self, attempt: Attempt) -> None:
        _tell(self._watchers.tried, self._session.request, attempt)

    def reached_first_token(self, ttft_ms: float) -> None:
        _tell(self._watchers.reached_first_token, self._session.request, ttft_ms)

    def ended(self, record: SessionRecord) -> None:
        _tell(self._watchers.ended, record)

    def watch_save(self, save: "asyncio.Future[None]") -> None:
        """Have `saved` or `not_saved` announced once this is done. Keeps neither the record nor the
        request in memory till then: a database may be away for long."""
        watchers, completion_id = self._watchers, self._session.request.completion_id
        if not (watchers.saved or watchers.not_saved):
            return

        def announce(done: "asyncio.Future[None]") -> None:
            is_saved = not done.cancelled() and done.exception() is None
            _tell(watchers.saved if is_saved else watchers.not_saved, completion_id)

        if save.done():
            announce(save)
        else:
            save.add_done_callback(announce)

    def closed(self) -> None:
        _tell(self._watchers.closed, self._session.request)


def _tell(listeners: Sequence[Callable[..., None]], *what: object) -> None:
    for listen in listeners:
        try:
            listen(*what)
        except Exception:
            log.exception("watcher failed", watcher=listen.__qualname__)
