"""Adopts the journals of dead processes and saves the completions in them, once after each start.

Never reads a line itself, and never holds up the serving. The rules:

1. A journal is adopted by whoever gets its lock, which the kernel releases when a process dies. So
   any number of processes may start at once, and each journal has one adopter.
2. Its completions' records are replayed (`db.journal.replay`) and handed to the saver, at most a
   batch at a time, and of large ones only so many as fit in little memory (`db.journal.survey`).
3. Its directory is deleted once all of them are committed. If the adopter is killed before that,
   the next one starts over; saving twice is harmless.
4. A damaged journal is renamed to `damaged-…` instead: it may be the only place where some words
   are left, for a person or another version of the service to read.
"""

import asyncio
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from db.journal.replay import Replay
from db.journal.segments import INCOMPLETE
from db.journal.survey import survey
from statemachine import SessionRecord

log = structlog.get_logger(__name__)

_AT_ONCE = 200
"""The most records on their way to the store at a time; the others wait on disk."""
_DONE = ".done"
"""Ends the name of a directory that is recovered and not quite deleted."""
_DAMAGED = "damaged-"
"""Begins the name of one that was recovered as far as it could be read."""

Save = Callable[[SessionRecord], "asyncio.Future[None]"]


class Recovery:
    """One look for orphaned journals.

    Args:
        directory: where journals lie.
        own: this process's journal, which is no orphan.
        save: hands a record over; its future is done once the record is committed or set aside,
            and raises if it could be neither.

    Attributes:
        recovered: completions brought back so far.
        is_over: all that could be brought back is committed.
    """

    def __init__(self, directory: Path, own: Path | None, save: Save) -> None:
        self._directory = directory
        self._own = own
        self._save = save
        self.recovered = 0
        self.is_over = False

    async def run(self) -> int:
        """Adopt every journal whose process is dead, one after the other.

        A journal that can't be read is logged and left where it is. Cancelling leaves the rest for
        the next start.

        Returns:
            How many completions were brought back.
        """
        try:
            await self._run()
        finally:
            self.is_over = True
        return self.recovered

    async def _run(self) -> None:
        try:
            names = sorted(os.listdir(self._directory))
        except OSError as error:
            log.error("journals not found", directory=str(self._directory), reason=str(error))
            return
        for path in (self._directory / name for name in names):
            try:
                if path.name.startswith("."):
                    await self._finish(path)
                elif path != self._own and not path.name.startswith(_DAMAGED):
                    with _adopted(path) as is_ours:
                        if is_ours:
                            await self._recover(path)
            except Exception as error:  # one bad journal must not keep the others from coming back
                log.error("journal not recovered", journal=str(path), reason=repr(error)[:200])

    async def _recover(self, path: Path) -> None:
        segments, size = await asyncio.to_thread(_segments, path)
        if size:
            log.info("recovering", journal=str(path), segments=len(segments), bytes=size)
        is_incomplete = (path / INCOMPLETE).exists()
        found = await asyncio.to_thread(survey, segments)
        count, damages = 0, found.damages
        for part in found.parts:
            replay = Replay(part.segments, part.completion_ids, is_incomplete=is_incomplete)
            waiting = list[asyncio.Future[None]]()
            async for record in replay.records():
                count += 1
                waiting.append(self._save(record))
                if len(waiting) >= _AT_ONCE:
                    await _all_kept(waiting)
                    waiting.clear()
                    log.info("recovering", journal=str(path), completions=count)
            await _all_kept(waiting)
            damages += replay.damages
        self.recovered += count
        if size:
            log.info("recovered", journal=str(path), completions=count, damages=damages)
        if damages:
            kept = await asyncio.to_thread(path.rename, path.with_name(f"{_DAMAGED}{path.name}"))
            log.error("damaged journal kept", journal=str(kept), damages=damages)
            return
        # Renamed first: half deleted, it must not be taken for a journal.
        done = path.with_name(f".{path.name}{_DONE}")
        await self._finish(await asyncio.to_thread(path.rename, done))

    async def _finish(self, path: Path) -> None:
        """Delete a recovered journal, also one whose adopter was killed while deleting it."""
        if path.name.endswith(_DONE):
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


async def _all_kept(saved: Sequence["asyncio.Future[None]"]) -> None:
    """Wait for all of these. Raises the first error of one that could not be kept."""
    if saved:
        await asyncio.wait(saved)
    for future in saved:
        future.result()


def _segments(path: Path) -> tuple[list[Path], int]:
    """A journal's files, oldest first, and their size in bytes."""
    segments = sorted(path.glob("*.jsonl"))
    return segments, sum(segment.stat().st_size for segment in segments)


@contextmanager
def _adopted(path: Path) -> Iterator[bool]:
    """Hold a journal's lock meanwhile. Yields False if another process has it, or it is gone."""
    try:
        lock = os.open(path / "lock", os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        yield _is_locked(lock, path / "lock")
    finally:
        os.close(lock)


def _is_locked(lock: int, path: Path) -> bool:
    try:
        _take(lock)
        # Its adopter may have finished between our opening and locking it.
        return os.path.samestat(os.fstat(lock), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def _take(lock: int) -> None:
    """Take the lock. Raises BlockingIOError if somebody has it; those who only look whether anybody
    does (`db.journal.lives`) have it together, and for microseconds."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_UN)
