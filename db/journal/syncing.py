"""Waits for the disk itself: `Syncing`, for journals that promise more than the kernel's memory.

One sync at a time, in a thread, for all that wait: what is appended meanwhile is the next one's.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from db.journal.segments import sync_all

log = structlog.get_logger(__name__)


class Syncing:
    """The syncs of one journal.

    Args:
        directory: the journal's.
        newest: the descriptor of the file that is written to; None if there is none.

    Attributes:
        appended: how many lines were written so far; counted by the journal.
        made: how many files were made so far; their directory is synced after each.
    """

    def __init__(self, directory: Path, newest: Callable[[], int | None]) -> None:
        self.appended = self.made = 0
        self._directory = directory
        self._newest = newest
        self._full: list[int] = []
        self._synced = self._made_synced = 0
        self._task: asyncio.Task[None] | None = None
        self._waiters: list[tuple[int, Callable[[], None]]] = []

    def keep(self, fd: int) -> None:
        """Sync a file too that is written to no more, and close it."""
        self._full.append(fd)

    async def wait(self) -> None:
        """Return once all that was appended so far is on the disk, or the disk has failed, which is logged.
        Cancelling it changes nothing."""
        wanted = self.appended
        while self._synced < wanted:
            await asyncio.shield(self._start())

    def when_done(self, tell: Callable[[], None]) -> None:
        """Have this called then; at once if that is so. It must not raise."""
        if self._synced >= self.appended:
            tell()
            return
        self._waiters.append((self.appended, tell))
        self._start()

    def close(self) -> None:
        """Close what was to be synced. Who waits is told by a sync that runs, if one does."""
        for fd in self._full:
            os.close(fd)
        self._full.clear()

    def _start(self) -> "asyncio.Task[None]":
        if self._task is None:
            self._task = asyncio.create_task(self._sync())
        return self._task

    async def _sync(self) -> None:
        reached, made = self.appended, self.made
        new = made != self._made_synced
        directories = [self._directory, self._directory.parent] if new else []
        try:
            newest = self._newest()
            fds = [*self._full, *(() if newest is None else (os.dup(newest),))]
            self._full = []
            await asyncio.to_thread(sync_all, fds, directories)
            self._made_synced = made
        except OSError as error:
            log.error("journal not synced", reason=str(error))
        finally:
            self._synced = max(self._synced, reached)
            self._task = None
            self._tell()

    def _tell(self) -> None:
        waiting, self._waiters = self._waiters, []
        for wanted, tell in waiting:
            if wanted <= self._synced:
                tell()
            else:
                self._waiters.append((wanted, tell))
        if self._waiters:
            self._start()
