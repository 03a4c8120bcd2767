"""Measures how late the event loop is: a timer that should fire each second notes how late it did.

Nothing else tells that one slow call holds up every stream.
"""

import asyncio

from service.metrics.counts import Histogram

INTERVAL_SECONDS = 1.0


class Lag:
    """The timer. `start` it in the loop that is measured, `stop` it there.

    Args:
        lags: where each lateness is counted.
        worker: the label.
    """

    def __init__(self, lags: Histogram, worker: str) -> None:
        self._lags = lags
        self._labels = (worker,)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; once."""
        self._set(asyncio.get_running_loop())

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + INTERVAL_SECONDS
        self._timer = loop.call_at(due, self._note, loop, due)

    def _note(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._lags.observe(max(0.0, loop.time() - due), self._labels)
        self._set(loop)
