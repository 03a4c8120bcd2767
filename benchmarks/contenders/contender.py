"""Defines what a contender is, and what it is given. Starts nothing itself."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from attrs import frozen


@frozen
class Place:
    """Where a contender runs.

    Attributes:
        directory: its own, empty.
        upstream_port: the backend's.
        dsn: PostgreSQL's URL.
        keep_alive_seconds: silence after which a ping goes out, for those that can.
        tell: what takes long is said here.
    """

    directory: Path
    upstream_port: int
    dsn: str
    keep_alive_seconds: float
    tell: Callable[[str], None]


@frozen
class Target:
    """A running contender: where to ask, and whose cost to count (None: nobody's).

    `share` is the part of a burst's chunks that it is asked for, so that slow ones end too.
    """

    name: str
    port: int
    pid: int | None
    share: float = 1.0


Starter = Callable[[Place], AbstractContextManager[tuple[int, int]]]


@frozen
class Contender:
    """One of those compared.

    Attributes:
        what: what it is, in a phrase.
        start: gives port and process id; raises `Missing` if it can't be had here.
        version: of the program that was started.
        idle_streams: how many open streams it can be asked to hold, and why no more.
        burst_share: the part of a burst's chunks that it is asked for.
        most_rounds: how many rounds of a case it takes part in; fewer for the slow, whose
            distance from the others is far beyond any noise.
        has_plain: gives whole objects too, not streams alone.
        is_on_demand: takes part only when it is named.
    """

    name: str
    what: str
    start: Starter
    version: Callable[[], str]
    idle_streams: int = 5_000
    why_no_more: str = ""
    burst_share: float = 1.0
    most_rounds: int = 100
    has_plain: bool = True
    is_on_demand: bool = False

    @contextmanager
    def running(self, place: Place) -> Iterator[Target]:
        with self.start(place) as (port, pid):
            yield Target(self.name, port, pid, self.burst_share)


class Missing(Exception):
    """A contender can't be had here. The message says why and what to do."""
