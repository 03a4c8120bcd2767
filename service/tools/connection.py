"""Keeps one link to a server open, in a task of its own: `Connection`.

A link that breaks cancels whoever opened it, at any moment and by a bare CancelledError. That must hit nobody
else, so a task is made to be hit. Never here: what is called over the link.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator

from service.tools.link import Link, Open

_tasks = set[asyncio.Task[None]]()
"""The loop itself holds tasks weakly."""


class NotConnected(Exception):
    """There is no link, and nothing was called. The message says why, in few words, without secrets."""


class Connection:
    """One link, from connecting to its end.

    Args:
        open: see `Open`.
        changed: called when the server says that its tools changed.
        seconds: the longest that connecting may take.

    Attributes:
        is_over: the link is gone, or never came; a new connection is needed.
    """

    def __init__(self, open: Open, changed: Callable[[], None], seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._open = open
        self._changed = changed
        self._link: asyncio.Future[Link] = loop.create_future()
        self._link.add_done_callback(_look_at)  # nobody may be waiting for it
        self._leave = False
        self._task = asyncio.create_task(self._own(), name="tool server")
        _tasks.add(self._task)
        self._task.add_done_callback(_tasks.discard)
        self._alarm = loop.call_later(seconds, self._task.cancel)

    @property
    def is_over(self) -> bool:
        if self._task.done():
            return True
        return self._link.done() and (
            self._link.exception() is not None or self._link.result().over.is_set()
        )

    async def link(self, seconds: float) -> Link:
        """The link, once it is there. Raises NotConnected if there is none after so long, or never."""
        await asyncio.wait((self._link,), timeout=seconds)
        if not self._link.done():
            raise NotConnected("it took too long")
        return self._link.result()

    def leave(self) -> "asyncio.Task[None]":
        """Have the link closed, and return the task that does."""
        self._leave = True
        if not self._link.done():
            self._task.cancel()
        elif self._link.exception() is None:
            self._link.result().over.set()
        return self._task

    async def wait(self) -> None:
        """Wait until it is over and closed."""
        await asyncio.wait((self._task,))

    async def _own(self) -> None:
        why = "it is closed"
        try:
            async with self._open(self._changed) as link:
                self._alarm.cancel()
                self._link.set_result(link)
                if self._leave:
                    link.over.set()
                await link.over.wait()
        except (Exception, BaseExceptionGroup, asyncio.CancelledError) as error:
            # The latter is ours, from `leave` or the alarm, or the link's own; either way this task ends.
            why = "; ".join(dict.fromkeys(type(cause).__name__ for cause in causes(error)))
        finally:
            self._alarm.cancel()
            if self._link.done():
                if self._link.exception() is None:
                    self._link.result().over.set()
            else:
                self._link.set_exception(NotConnected(why))


async def closed(connections: Iterable[Connection], seconds: float) -> None:
    """Have these closed. Those that take longer are cut off."""
    closing = [connection.leave() for connection in connections]
    if closing:
        try:
            await asyncio.wait(closing, timeout=seconds)
        finally:
            for task in closing:
                task.cancel()


def causes(error: BaseException) -> Iterator[BaseException]:
    """What an error is made of: those in a group, each; else itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from causes(inner)
    else:
        yield error


def _look_at(future: "asyncio.Future[Link]") -> None:
    if not future.cancelled():
        future.exception()
