"""Waiting that costs little: for a future, but not too long; and for one's turn."""

import asyncio
from functools import partial


class Turn:
    """Whose turn it is among several tasks: a lock, to be looked at and taken (`with`) at little cost while
    nobody else wants it, which is nearly always. Whoever finds it taken waits first.

    Attributes:
        is_taken: it is somebody's.
    """

    __slots__ = ("_waiters", "is_taken")

    def __init__(self) -> None:
        self.is_taken = False
        self._waiters: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Return once it is free. Cancelled, it leaves the others' turns as they are."""
        while self.is_taken:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)

    def __enter__(self) -> None:
        self.is_taken = True

    def __exit__(self, *_: object) -> None:
        self.is_taken = False
        for waiter in self._waiters:  # they look in the order in which they came
            _wake(waiter)


async def is_done_within(future: "asyncio.Future[None]", seconds: float) -> bool:
    """Wait so long for a future; cancelled or not, it is left alone. `asyncio.wait` does the same for
    any number of them, at twice the cost."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    timer = loop.call_later(seconds, _wake, waiter)
    wake = partial(_wake, waiter)
    future.add_done_callback(wake)
    try:
        await waiter
    finally:
        timer.cancel()
        future.remove_done_callback(wake)
    return future.done()


def _wake(waiter: "asyncio.Future[None]", _: object = None) -> None:
    if not waiter.done():
        waiter.set_result(None)
