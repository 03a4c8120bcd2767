"""Gets a pool's connections, by whichever way to the database works: `Connector`.

Never here: which ways there are (`db.postgres.address`), and the driver.
"""

from contextlib import suppress
from typing import Any, Protocol

from db.postgres.address import CURRENT_WAY, Route, Way
from db.postgres.faults import is_of_this_host


class Pool(Protocol):
    """As much of aiopg's as is needed here."""

    @property
    def freesize(self) -> int: ...

    @property
    def size(self) -> int: ...

    def acquire(self) -> Any: ...


class Connector:
    """The way into one database.

    Args:
        route: the ways there.
        most: connections at once.
        failures: what the pool raises where there is no connection by a way.
    """

    def __init__(self, route: Route, most: int, failures: tuple[type[Exception], ...]) -> None:
        self._route = route
        self._failures = failures
        self._most = most
        self._way: Way | None = None
        """By which the last connection was made."""

    async def acquire(self, pool: Pool) -> Any:
        """A connection, which goes back to the pool. Raises what connecting raises."""
        if self._route.is_fixed:
            return await pool.acquire()
        if self._way is not None and (pool.freesize or pool.size >= self._most):
            CURRENT_WAY.set(self._way)  # those that are free may be dead, and then aiopg connects
            with suppress(*self._failures):
                return await pool.acquire()
        failure: Exception | None = None
        async for way in self._route.ways():
            CURRENT_WAY.set(way)
            try:
                connection = await pool.acquire()
            except self._failures as error:
                failure = error
                if not is_of_this_host(str(error)):
                    break
            else:
                self._way = way
                return connection
        assert failure is not None  # there is a way, or an error
        raise failure
