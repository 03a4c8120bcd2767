"""Keeps one connection at hand between calls, past the pool: `Spare`.

aiopg 1.4.0 makes a timer, a lock's turn and a task for each connection that goes out and comes back,
which is a twentieth of a short request. Never opens or closes a connection.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Connection(Protocol):
    """As much of a connection as is looked at here."""

    @property
    def closed(self) -> bool: ...


class Pool(Protocol):
    """As much of a pool as is needed here. To it a spare connection is in use."""

    def release(self, conn: Any) -> object: ...


class Spare:
    """At most one connection of a pool's, idle, for whoever comes next."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._waiting = 0

    def take(self, pool: Pool) -> Any:
        """The connection, which is the caller's now; None if there is none that is open."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.closed:
            pool.release(connection)
            return None
        return connection

    def keep(self, connection: Connection) -> bool:
        """Keep this one. False if it should go back to the pool: somebody waits there, or there is a
        spare one already."""
        if self._waiting or self._connection is not None or connection.closed:
            return False
        self._connection = connection
        return True

    @contextmanager
    def asking_the_pool(self) -> Iterator[None]:
        """Meanwhile whoever has done with a connection gives it to the pool."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
