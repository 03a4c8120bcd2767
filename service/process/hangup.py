"""Tells what a SIGHUP asks for: to reread the configuration, or to stop as the terminal closed.

The kernel detaches a terminal first and signals then (tty_vhangup(9)): if a standard stream that
was a terminal no longer is one, the terminal closed. Under `nohup`, or with all three streams
elsewhere, SIGHUP always means rereading. Rereads and stops nothing itself.
"""

import asyncio
import os
import signal
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

_STANDARD_STREAMS = (0, 1, 2)


class Hangups:
    """Takes SIGHUP from now on, and remembers one that comes before `obey` is called."""

    def __init__(self) -> None:
        self._terminals = [fd for fd in _STANDARD_STREAMS if _is_terminal(fd)]
        self._came_early = False
        signal.signal(signal.SIGHUP, self._remember)

    def _remember(self, *_: object) -> None:
        self._came_early = True

    def take_early(self) -> bool:
        """True if one came before `obey` was called; true only once."""
        came, self._came_early = self._came_early, False
        return came

    def obey(self, reread: Callable[[], None], stop: Callable[[], None]) -> None:
        """Call one of the two in the running event loop at each SIGHUP from now on, and at once if
        a SIGHUP came before."""

        def act() -> None:
            (stop if self.is_terminal_gone() else reread)()

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, act)
        if self.take_early():
            act()

    def ignore(self) -> None:
        """From now on only log that it is too late."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.refuse)

    def refuse(self) -> None:
        """Log that it is too late."""
        log.info("configuration not reloaded", problems=["the service is stopping"])

    def is_terminal_gone(self) -> bool:
        """True if the service was started on a terminal that has closed since."""
        return not all(map(_is_terminal, self._terminals))


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False
