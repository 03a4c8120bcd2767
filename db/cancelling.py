"""Keeps a task's cancelling from being forgotten below: `cancelled_if_told`."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cancelled_if_told() -> Iterator[None]:
    """Raise `CancelledError` if the task was told to end meanwhile, whatever came of what it did.

    Up to Python 3.11 `asyncio.wait_for`, by which aiopg 1.4.0 waits for answers and redis-py 8.1 sends,
    forgets a cancelling that comes in the same turn of the loop as what it waited for. Whoever then waits
    for the task's end waits for ever.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError
