"""What a SIGHUP asks for: to reread the configuration, or to stop because the terminal closed.

Both come as the same signal. A terminal that closed is gone by the time the signal arrives: asking
its descriptors what they are fails (tty_vhangup(9) takes it away first and signals then), so
one of ours that was a terminal and is none now tells the two apart. Under `nohup`, or with all
three streams elsewhere, there is nothing to lose and SIGHUP always means rereading.

Used by `run.py` before the configuration is read and by whoever serves afterwards. Never rereads
or stops anything itself.
"""

import asyncio
import os
import signal
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

_STANDARD_STREAMS = (0, 1, 2)


class Hangups:
    """Takes SIGHUP from now on, and remembers one that comes before anybody can obey it."""

    def __init__(self) -> None:
        self._terminals = [fd for fd in _STANDARD_STREAMS if _is_terminal(fd)]
        self._came_early = False
        signal.signal(signal.SIGHUP, self._remember)

    def _remember(self, *_: object) -> None:
        self._came_early = True

    def take_early(self) -> bool:
        """True if one came before anybody could obey it; once."""
        came, self._came_early = self._came_early, False
        return came

    def obey(self, reread: Callable[[], None], stop: Callable[[], None]) -> None:
        """Call one of them in the running event loop at each SIGHUP from now on; and at once if
        one has come before."""

        def act() -> None:
            (stop if self.is_terminal_gone() else reread)()

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, act)
        if self.take_early():
            act()

    def ignore(self) -> None:
        """From now on say no more than that it is too late."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.refuse)

    def refuse(self) -> None:
        """Say that it is too late."""
        log.info("configuration not reloaded", problems=["the service is stopping"])

    def is_terminal_gone(self) -> bool:
        """True if the service was started on a terminal that has closed since."""
        return not all(map(_is_terminal, self._terminals))


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False
