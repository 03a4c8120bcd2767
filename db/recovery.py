"""Brings back what dead processes left in their journals. Runs once at start, beside the serving.

1. A journal is adopted by whoever gets its lock; the kernel lets go of a dead process's. So any
   number of processes may start at once, and each journal has one adopter.
2. Its records are replayed (`db.replay`) and handed to the saver, at most a batch at a time.
3. Its directory is deleted once all of them are committed. Killed before that, the next one
   starts over; saving twice is harmless.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from db.replay import Replay
from statemachine import SessionRecord

log = structlog.get_logger(__name__)

_AT_ONCE = 200
"""Records on their way to the store at a time; the others wait on disk."""

Save = Callable[[SessionRecord], "asyncio.Future[None]"]


class Recovery:
    """One look for orphaned journals.

    Args:
        directory: where journals lie.
        own: this process's journal, which is no orphan.
        save: hands a record over; the future is done once it is committed.

    Attributes:
        recovered: completions brought back so far.
    """

    def __init__(self, directory: Path, own: Path | None, save: Save) -> None:
        self._directory = directory
        self._own = own
        self._save = save
        self.recovered = 0

    async def run(self) -> int:
        """Adopt every journal whose process is dead, one after the other.

        Returns how many completions were brought back. Cancelling it leaves the rest for the
        next start. A journal that can't be read is left where it is and logged.
        """
        for path in self._candidates():
            try:
                with _adopted(path) as is_ours:
                    if is_ours:
                        await self._recover(path)
            except OSError as error:
                log.error("journal not recovered", journal=str(path), reason=str(error))
        return self.recovered

    def _candidates(self) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(
                path
                for path in self._directory.iterdir()
                if (path / "lock").exists() and path != self._own and not path.name.startswith(".")
            )
        return []

    async def _recover(self, path: Path) -> None:
        segments, size = await asyncio.to_thread(_segments, path)
        if size:
            log.info("recovering", journal=str(path), segments=len(segments), bytes=size)
        replay = Replay(segments)
        count, waiting = 0, set[asyncio.Future[None]]()
        async for record in replay.records():
            count += 1
            waiting.add(self._save(record))
            if len(waiting) >= _AT_ONCE:
                await asyncio.wait(waiting)
                waiting.clear()
                log.info("recovering", journal=str(path), completions=count)
        if waiting:
            await asyncio.wait(waiting)
        self.recovered += count
        await asyncio.to_thread(shutil.rmtree, path)
        if size:
            log.info("recovered", journal=str(path), completions=count, damages=replay.damages)


def _segments(path: Path) -> tuple[list[Path], int]:
    """A journal's files, oldest first, and their size in bytes."""
    segments = sorted(path.glob("*.jsonl"))
    return segments, sum(segment.stat().st_size for segment in segments)


@contextmanager
def _adopted(path: Path) -> Iterator[bool]:
    """Hold a journal's lock; yields False if somebody else does, or it is gone."""
    try:
        lock = os.open(path / "lock", os.O_RDWR)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Deleted by its adopter between our two calls, it is another file's lock that we hold.
        yield os.fstat(lock).st_nlink > 0
    except BlockingIOError:
        yield False
    finally:
        os.close(lock)
