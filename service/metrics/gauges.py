"""Reads what is now: streams, readers, journal, database, this process. Only when somebody asks."""

import asyncio
import os
import platform
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Protocol

from attrs import frozen

from service import __version__
from service.metrics.counts import Figures
from service.stream.relay import Relay

_PATIENCE_SECONDS = 0.5
"""How long a scrape waits for the database's sign of life."""
_asking: set[asyncio.Future[str | None]] = set()
"""Checks that outlast that: the loop itself holds tasks weakly."""
_STATM = Path("/proc/self/statm")


class Kept(Protocol):
    """As much of a saver as is read; `db.saver.Saver` is one."""

    @property
    def unsaved(self) -> int:
        """Records that wait."""

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest of them has waited."""


@frozen
class Sources:
    """What gauges are read from.

    Attributes:
        streams: the running relays.
        saver: see `Kept`.
        journal_bytes: the size of this process's journal.
        journal_limit_bytes: the size from which on new completions are refused; 0 without a journal.
        dead_letters: how many there are.
        check_database: returns None, or why answers can't be saved now.
    """

    streams: Iterable[Relay]
    saver: Kept
    journal_bytes: Callable[[], int]
    journal_limit_bytes: int
    dead_letters: Callable[[], int]
    check_database: Callable[[], Awaitable[str | None]]


async def gauges(sources: Sources, worker: str) -> Figures:
    """What is now, in this process. Takes half a second at most; cancelling it leaves nothing behind.

    Args:
        worker: the process's label.
    """
    saver = sources.saver
    now: dict[str, float] = {
        "verbatim_journal_bytes": sources.journal_bytes(),
        "verbatim_journal_limit_bytes": sources.journal_limit_bytes,
        "verbatim_journal_oldest_unsaved_seconds": saver.oldest_seconds,
        "verbatim_records_waiting": saver.unsaved,
        "verbatim_dead_letters": sources.dead_letters(),
        "verbatim_database_up": await _is_up(sources.check_database),
        "verbatim_workers": 1,
    }
    own: dict[str, float] = {
        "verbatim_process_resident_bytes": _resident_bytes(),
        "verbatim_process_cpu_seconds_total": time.process_time(),
    }
    build = (__version__, platform.python_version(), worker)
    return {
        **_of_streams(sources.streams),
        **{name: {(): value} for name, value in now.items()},
        **{name: {(worker,): value} for name, value in own.items()},
        "verbatim_build_info": {build: 1},
    }


def _of_streams(relays: Iterable[Relay]) -> Figures:
    waiting = answering = detached = first = later = 0
    for relay in relays:
        session, readers = relay.session, relay.readers
        if not session.attached:
            detached += 1
        elif session.first_token_at is None:
            waiting += 1
        else:
            answering += 1
        first += readers.has_client
        later += readers.count - readers.has_client
    phases = {"waiting": waiting, "answering": answering, "detached": detached}
    return {
        "verbatim_streams": {(phase,): count for phase, count in phases.items()},
        "verbatim_readers": {("first",): first, ("later",): later},
    }


async def _is_up(check: Callable[[], Awaitable[str | None]]) -> int:
    """1 if the database takes answers now. A check that takes longer goes on by itself."""
    asking = asyncio.ensure_future(check())
    _asking.add(asking)
    asking.add_done_callback(_asking.discard)
    await asyncio.wait((asking,), timeout=_PATIENCE_SECONDS)
    return int(asking.done() and not asking.exception() and asking.result() is None)


def _resident_bytes() -> int:
    """The memory of this process; where the system doesn't say, the most that it ever had."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
