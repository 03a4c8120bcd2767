"""Remembers for a while how completions went, beyond what their rows say: attempts, gaps, when a reader
was away, when it was saved.

A watcher of moments for what has one, and a look at all running answers once a second for what has
none. Costs an answer two entries, and nothing per chunk. Never here: how it is drawn.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from aiohttp import web
from attrs import Factory, asdict, define, frozen

from service.clock import Clock
from service.stream.moments import Attempt, Watcher
from service.stream.relay import Relay
from statemachine import SessionRequest

MOST_LIVES = 2000
LOOK_SECONDS = 1.0
"""How often running answers are looked at: gaps and absences are known to so many seconds."""
SHORTEST_GAP_SECONDS = 2.0
_MOST_PARTS = 50


@frozen
class Tried:
    """One attempt: who was asked, from when, for how long, and the code that it failed with, if any."""

    agent: str
    began_at: float
    seconds: float
    error: str | None


@define
class Life:
    """What is remembered of one completion. Times are POSIX seconds.

    Attributes:
        gaps: from when to when no chunk came, after the first.
        absences: from when to when nobody read; None: until the end.
    """

    attempts: list[Tried] = Factory(list)
    gaps: list[tuple[float, float]] = Factory(list)
    absences: list[tuple[float, float | None]] = Factory(list)
    saved_at: float | None = None


@frozen
class LastFailure:
    """What an agent failed with last, and when."""

    error: str
    at: float
    model: str


@define
class _Seen:
    chunks: int
    changed_at: float
    left_at: float | None


class Lives(Watcher):
    """The lives of the latest completions of this process.

    Args:
        clock: POSIX seconds.

    Attributes:
        failures: agent → what it failed with last.
    """

    def __init__(self, clock: Clock) -> None:
        self.failures: dict[str, LastFailure] = {}
        self._clock = clock
        self._lives: dict[str, Life] = {}
        self._seen: dict[str, _Seen] = {}

    def of(self, completion_id: str) -> dict[str, Any] | None:
        """What is remembered, as JSON; None if nothing is."""
        life = self._lives.get(completion_id)
        return None if life is None else asdict(life)

    def tried(self, request: SessionRequest, attempt: Attempt) -> None:
        """See `Watcher`."""
        now = self._clock()
        life = self._life(request.completion_id)
        error = None if attempt.failure is None else attempt.failure.code
        if len(life.attempts) < _MOST_PARTS:
            began_at = now - attempt.seconds
            life.attempts.append(Tried(attempt.agent, began_at, attempt.seconds, error))
        if error is not None:
            self.failures[attempt.agent] = LastFailure(error, now, request.model)

    def saved(self, completion_id: str) -> None:
        """See `Watcher`."""
        if (life := self._lives.get(completion_id)) is not None:
            life.saved_at = self._clock()

    async def look_on(self, running: Iterable[Relay]) -> None:
        """Look at what runs once a second, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look(running)

    def look(self, running: Iterable[Relay]) -> None:
        """Note what has changed since the last look."""
        now, seen = self._clock(), self._seen
        self._seen = {}
        for relay in running:
            session = relay.session
            name, chunks = session.request.completion_id, session.transcript.chunk_count
            left_at = session.client_left_at
            last = self._seen[name] = seen.get(name) or _Seen(chunks, now, None)
            if chunks != last.chunks:
                if last.chunks and now - last.changed_at >= SHORTEST_GAP_SECONDS:
                    _add(self._life(name).gaps, (last.changed_at, now))
                last.chunks, last.changed_at = chunks, now
            if left_at != last.left_at:
                self._note_absence(name, last.left_at, left_at, now)
                last.left_at = left_at

    def _note_absence(
        self, name: str, was_left_at: float | None, left_at: float | None, now: float
    ) -> None:
        absences = self._life(name).absences
        if was_left_at is not None and absences:
            absences[-1] = (absences[-1][0], now)
        if left_at is not None:
            _add(absences, (left_at, None))

    def _life(self, completion_id: str) -> Life:
        life = self._lives.get(completion_id)
        if life is None:
            if len(self._lives) >= MOST_LIVES:
                del self._lives[next(iter(self._lives))]
            life = self._lives[completion_id] = Life()
        return life


def looking_on(
    lives: Lives, running: Iterable[Relay]
) -> Callable[[web.Application], AsyncIterator[None]]:
    """What has an application's lives look on while it runs."""

    async def look(_: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(lives.look_on(running), name="look at lives")
        yield
        task.cancel()
        await asyncio.wait((task,))

    return look


def _add(parts: list[Any], part: Any) -> None:
    if len(parts) < _MOST_PARTS:
        parts.append(part)
