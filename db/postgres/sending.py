"""Sends statements of megabytes from a thread: `Sender`. Never decides what is sent, or what then.

psycopg2's `execute` copies a statement into libpq's buffer before it returns, and with its pages still
to be found that takes 100 ms for an answer of 32 MB: so long nobody else would get a turn.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

_LARGE_BYTES = 1024 * 1024


class Sender:
    """A cursor of aiopg's, as far as a save needs one, that holds up nobody by large statements."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self.fetchall = cursor.fetchall
        self.mogrify = cursor.mogrify

    async def execute(self, operation: Any, parameters: Any = None) -> None:
        """Do what the cursor's `execute` does. Raises the same.

        If it is cancelled, the statement may have been sent in part or as a whole, and the connection
        is to be closed; it isn't used by the thread any more.
        """
        if not isinstance(operation, bytes) or len(operation) < _LARGE_BYTES:
            await self._cursor.execute(operation, parameters)
            return
        await _to_its_end(asyncio.to_thread(self._cursor.raw.execute, operation, parameters))
        # What aiopg 1.4.0 does next; the waiter comes only now, as a waiter's end is the answer's.
        connection = self._cursor.connection
        await connection._poll(connection._create_waiter("execute"), self._cursor.timeout)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for a thread's work, however often cancelled meanwhile: nothing else ends it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()  # the cancelling is what counts; this one has been looked at
        raise cancelled
    task.result()
