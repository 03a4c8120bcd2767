"""Keeps one link to a server open, in a task of its own: `Connection`.

A link that breaks cancels whoever opened it, at any moment and by a bare CancelledError. That must hit nobody
else, so a task is made to be hit. Never here: what is called over the link.
"""

import asyncio
from collections.abc import Callable, Iterable

from service.tools.link import Link, NotConnected, Open

_tasks = set[asyncio.Task[None]]()
"""The loop itself holds tasks weakly."""


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
        self._why: str | None = None
        self._task = asyncio.create_task(self._own(), name="tool server")
        _tasks.add(self._task)
        self._task.add_done_callback(_tasks.discard)
        self._alarm = loop.call_later(seconds, self._give_up, "it took too long")

    @property
    def is_over(self) -> bool:
        if self._task.done():
            return True
        return self._link.done() and (
            self._link.exception() is not None or self._link.result().over.is_set()
        )

    @property
    def protocol_version(self) -> str | None:
        """The revision of MCP that is spoken; None if it is over or not there yet."""
        if self.is_over or not self._link.done():
            return None
        return self._link.result().protocol_version

    async def link(self, seconds: float) -> Link:
        """The link, once it is there. Raises NotConnected if there is none after so long, or never."""
        await asyncio.wait((self._link,), timeout=seconds)
        if not self._link.done():
            raise NotConnected("it took too long")
        return self._link.result()

    def leave(self) -> "asyncio.Task[None]":
        """Have the link closed, and return the task that does."""
        self._give_up("it is closed")
        return self._task

    def _give_up(self, why: str) -> None:
        if self._link.done():
            self._end()
        elif self._why is None:
            self._why = why
            self._task.cancel()

    def _end(self) -> None:
        if self._link.exception() is None:
            self._link.result().over.set()

    async def wait(self) -> None:
        """Wait until it is over and closed."""
        await asyncio.wait((self._task,))

    async def _own(self) -> None:
        why = "it is closed"
        try:
            async with self._open(self._changed) as link:
                self._alarm.cancel()
                if self._why is None:
                    self._link.set_result(link)
                    await link.over.wait()
        except (Exception, BaseExceptionGroup, asyncio.CancelledError) as error:
            # The latter is ours, from `_give_up`, or the link's own; either way this task ends.
            why = _in_words(error)
        finally:
            self._alarm.cancel()
            if self._link.done():
                self._end()
            else:
                self._link.set_exception(NotConnected(self._why or why))


async def closed(connections: Iterable[Connection], seconds: float) -> None:
    """Have these closed. Those that take longer are cut off."""
    closing = [connection.leave() for connection in connections]
    if closing:
        try:
            await asyncio.wait(closing, timeout=seconds)
        finally:
            for task in closing:
                task.cancel()


def _in_words(error: BaseException) -> str:
    """What an error is, or those in a group are, without what they say, which may be anything."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(dict.fromkeys(_in_words(inner) for inner in error.exceptions))
    return str(error) if isinstance(error, NotConnected) else type(error).__name__


def _look_at(future: "asyncio.Future[Link]") -> None:
    if not future.cancelled():
        future.exception()
