"""Announces a completion's moments, once each, to whoever watches: log line, charging, and more.

The stream knows none of its watchers. A watcher is told and can change nothing; what it raises is
logged, and the stream goes on.
"""

import asyncio
from collections.abc import Sequence

import structlog
from attrs import frozen

from statemachine import Failure, SessionRecord, SessionRequest

log = structlog.get_logger(__name__)


@frozen
class Attempt:
    """One request to an agent, up to its first token or its failure."""

    agent: str
    number: int
    """From 1, counted for each agent."""
    seconds: float
    """From asking to the first token or the failure."""
    failure: Failure | None = None
    """Why there was no first token; None if there was one."""


class Watcher:
    """Is told of moments. Every method does nothing; a watcher overrides what it wants to know.

    All are called in the event loop and must be quick.
    """

    def began(self, request: SessionRequest) -> None:
        """A completion was admitted and its session made. Always the first."""

    def tried(self, request: SessionRequest, attempt: Attempt) -> None:
        """An agent was asked; for each retry and each fallback again."""

    def reached_first_token(self, request: SessionRequest, ttft_ms: float) -> None:
        """The first token arrived, so many milliseconds after the request."""

    def ended(self, record: SessionRecord) -> None:
        """The session ended. Its record is about to be handed to the saver, and the client about to
        be told."""

    def saved(self, completion_id: str) -> None:
        """The record was committed; perhaps after `closed`, perhaps never."""

    def closed(self, request: SessionRequest) -> None:
        """The relay is done with its client. Comes whatever became of the completion."""


class Moments:
    """One completion's moments.

    Args:
        request: the completion's.
        watchers: who is told, in this order.
    """

    __slots__ = ("_request", "_watchers")

    def __init__(self, request: SessionRequest, watchers: Sequence[Watcher]) -> None:
        self._request = request
        self._watchers = watchers

    def began(self) -> None:
        self._tell("began", self._request)

    def tried(self, attempt: Attempt) -> None:
        self._tell("tried", self._request, attempt)

    def reached_first_token(self, ttft_ms: float) -> None:
        self._tell("reached_first_token", self._request, ttft_ms)

    def ended(self, record: SessionRecord) -> None:
        self._tell("ended", record)

    def closed(self) -> None:
        self._tell("closed", self._request)

    def watch_save(self, save: "asyncio.Future[None]") -> None:
        """Have `saved` announced once this is done, unless it fails. Keeps neither the record nor the
        request in memory till then: a database may be away for long."""
        watchers, completion_id = self._watchers, self._request.completion_id

        def announce(done: "asyncio.Future[None]") -> None:
            if not done.cancelled() and done.exception() is None:
                _tell(watchers, "saved", completion_id)

        if save.done():
            announce(save)
        else:
            save.add_done_callback(announce)

    def _tell(self, moment: str, *what: object) -> None:
        _tell(self._watchers, moment, *what)


def _tell(watchers: Sequence[Watcher], moment: str, *what: object) -> None:
    for watcher in watchers:
        try:
            getattr(watcher, moment)(*what)
        except Exception:
            log.exception("watcher failed", moment=moment)
