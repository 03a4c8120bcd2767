"""Keeps what the supervisor knows of one worker: its sockets, its process, when the next one starts.

Forks, binds and signals nothing.
"""

import os
import select
import time
from collections.abc import Iterator
from itertools import chain

from service.process.listening import HAS_SOCKETS_APIECE, Listeners
from statemachine.backoff import backoff

_GOOD_LIFE_SECONDS = 10.0
"""A worker that served for so long is replaced at once."""
_FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0


def _waits() -> Iterator[float]:
    """How long to wait after each process in a row that didn't serve well."""
    return chain((0.0,), backoff(_FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, lambda: 0.0))


class Worker:
    """A worker's place, and its process while `pid` is set.

    Attributes:
        listeners: its listening sockets; None while they are closed.
        report: the pipe on which the process reports that it serves, until that has ended.
        reported: what came over it.
        starts_at: when to start a process, on the monotonic clock; None: one is running.
    """

    def __init__(self, number: int, listeners: Listeners) -> None:
        self.number = number
        self.listeners: Listeners | None = listeners
        self.pid: int | None = None
        self.report: int | None = None
        self.reported = b""
        self.starts_at: float | None = 0.0
        self._started_at = 0.0
        self._waits = _waits()

    @property
    def is_ready(self) -> bool:
        """True once its process has reported that it serves."""
        return self.reported.endswith(b"\n")

    def begin(self, pid: int, report: int) -> None:
        """Note that a process has been started."""
        self.pid, self.report, self.reported = pid, report, b""
        self._started_at, self.starts_at = time.monotonic(), None

    def read_report(self) -> None:
        """Read what has come of the report. It ends without a newline if the process died first."""
        assert self.report is not None
        if data := os.read(self.report, select.PIPE_BUF):
            self.reported += data
        else:
            self.close_report()

    def close_report(self) -> None:
        if self.report is not None:
            os.close(self.report)
            self.report = None

    def close_listeners(self) -> None:
        """Close the listening sockets, unless all workers share them."""
        if HAS_SOCKETS_APIECE and self.listeners is not None:
            self.listeners.close()
            self.listeners = None

    def plan_successor(self) -> float:
        """Decide when the next process starts, now that one has died; in how many seconds."""
        age = time.monotonic() - self._started_at
        if self.is_ready and age >= _GOOD_LIFE_SECONDS:
            self._waits = _waits()
            return self.wait(0.0)
        return self.wait(next(self._waits))

    def wait(self, seconds: float) -> float:
        """Start the next process in so many seconds, and let the others have the connections."""
        if seconds:
            self.close_listeners()
        self.starts_at = time.monotonic() + seconds
        return seconds
