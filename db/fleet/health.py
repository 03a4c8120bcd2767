"""Notes how the engine answers: `EngineHealth`; and how long lines wait for it: `Waiting`.

Written by an engine and by the outbox, read by whoever shows it. Never here: deciding anything by it.
"""

import time
from collections import deque
from collections.abc import Callable

_MOST_MARKS = 1_000


class EngineHealth:
    """How one process's calls to the engine went.

    Args:
        clock: seconds, of a clock that never goes back.

    Attributes:
        failure: why the last call failed; None if it didn't, or there was none yet.
        calls_failed: how many did since the start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.failure: str | None = None
        self.calls_failed = 0
        self._clock = clock
        self._heard_at = clock()

    def note_answer(self) -> None:
        """A call was answered, be it by a refusal."""
        self.failure = None
        self._heard_at = self._clock()

    def note_failure(self, reason: str) -> None:
        """A call wasn't."""
        self.failure = reason
        self.calls_failed += 1

    @property
    def silent_seconds(self) -> float:
        """Since the last answer; since the start if there was none."""
        return self._clock() - self._heard_at


class Waiting:
    """How long lines have waited that are sent in the order in which they came.

    A mark for each time that sending begins, not for each line: what came since the mark before is taken
    to be as old as that mark, so an age may be too low by the time that one call takes.

    Args:
        clock: seconds, of a clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[int, float]] = deque()

    def note_added(self, added: int) -> None:
        """So many lines have come since the start. Past a thousand marks later lines count as old as
        the last one."""
        marks = self._marks
        if len(marks) < _MOST_MARKS and (not marks or marks[-1][0] < added):
            marks.append((added, self._clock()))

    def note_sent(self, sent: int) -> None:
        """So many of them have been sent."""
        marks = self._marks
        while marks and marks[0][0] <= sent:
            marks.popleft()

    @property
    def oldest_seconds(self) -> float:
        """The age of the oldest that waits; 0 if none does."""
        return self._clock() - self._marks[0][1] if self._marks else 0.0
