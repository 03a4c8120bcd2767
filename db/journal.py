"""The journal: what happened to every running session, on disk before anybody is shown it.

    var/journal/                      journal.directory
      1767264752-4711-9f3c/           one directory per process, its name means nothing
        lock                          held (flock) while the process lives
        000001.jsonl, 000002.jsonl    segments, append-only; the last one grows
      dead-letters/                   what no database would take (see `db.dead_letters`)

Written by `service.relay` through `append`, told by `db.saver` what is committed, read by
`db.recovery`. The rules:

1. An event is appended before its effects are carried out: one `write(2)` for all that came in
   one upstream read. The kernel keeps it when the process is killed. Against a machine that
   loses power, `fsync: terminal` or `always` waits for the disk, in a thread, many at once.
2. A segment is deleted once every completion with a record in it is committed.
3. At `max_bytes`, or when the disk refuses, new sessions are refused; running ones go
   on, from then on only in memory, and their records say so by the gap in their numbers.
4. Nothing here waits for the database.
"""

import asyncio
import contextlib
import enum
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog

from db.journal_format import begin_record, events_record, saved_record
from statemachine import Event, SessionPolicy, SessionRequest, TimePassed

log = structlog.get_logger(__name__)

SEGMENT_BYTES = 16 * 1024 * 1024
"""A segment that reached this is followed by another. Small enough to be read in one go."""
_IDLE_SEGMENT_BYTES = 1024 * 1024
"""A current segment that nobody needs any more is dropped from this size on."""


class Fsync(enum.StrEnum):
    """What waits for the disk itself, beyond the kernel's memory."""

    NEVER = "never"
    TERMINAL = "terminal"
    """The end of a session."""
    ALWAYS = "always"
    """Everything that is shown."""


class _Segment:
    """One file. `live` are the completions that still need it."""

    __slots__ = ("fd", "live", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600)
        self.size = 0
        self.live: set[str] = set()


class _Entry:
    """A completion that is not committed yet: how many records it has, and where."""

    __slots__ = ("count", "is_whole", "segments")

    def __init__(self) -> None:
        self.count = 0
        self.is_whole = True
        self.segments: list[_Segment] = []


class Journal:
    """This process's journal. Made by `open`; one event loop uses it.

    Attributes:
        directory: the process's own, for `db.recovery` to leave alone.
        size: bytes on disk.
    """

    def __init__(self, directory: Path, lock: int, fsync: Fsync, max_bytes: int) -> None:
        self.directory = directory
        self.size = 0
        self._lock = lock
        self._fsync = fsync
        self._max_bytes = max_bytes
        self._entries: dict[str, _Entry] = {}
        self._segments: list[_Segment] = []
        self._numbers = 0
        self._failure: str | None = None
        self._appended = 0
        self._synced = 0
        self._syncing: asyncio.Task[None] | None = None
        self._add_segment()

    def __repr__(self) -> str:
        return f"<Journal {self.directory}, {len(self._entries)} open, {self.size} bytes>"

    @classmethod
    def open(cls, directory: Path, fsync: Fsync, max_bytes: int) -> "Journal":
        """A journal of this process's own under `directory`, which is made if missing.

        Raises:
            OSError: the directory can't be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        name = f"{int(time.time())}-{os.getpid()}-{secrets.token_hex(4)}"
        # Made under a name that no recovery looks at, so that it is locked when it is seen.
        making = directory / f".{name}"
        making.mkdir(mode=0o700)
        lock = os.open(making / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        making.rename(directory / name)
        return cls(directory / name, lock, fsync, max_bytes)

    # --- writing ----------------------------------------------------------------------------

    def begin(self, request: SessionRequest, policy: SessionPolicy) -> bool:
        """Write down that a session begins. False if it can't be; `check` says why."""
        if self.size >= self._max_bytes:
            return False
        entry = self._entries[request.completion_id] = _Entry()
        if self._write(request.completion_id, entry, begin_record(request, policy)):
            return True
        self._drop(request.completion_id)
        return False

    def append(self, completion_id: str, events: Sequence[Event], now: float) -> None:
        """Write down what happened to a session. Never raises: a disk that refuses costs the
        journal this record, not the client its stream."""
        entry = self._entries.get(completion_id)
        kept = [event for event in events if not isinstance(event, TimePassed)]
        if entry is not None and kept:
            record = events_record(completion_id, entry.count, kept, now)
            self._write(completion_id, entry, record)

    def forget(self, completion_ids: Iterable[str]) -> None:
        """These are committed: their records are no longer needed."""
        known = [name for name in completion_ids if name in self._entries]
        if not known:
            return
        self._put(saved_record(known))
        for completion_id in known:
            self._drop(completion_id)

    def _write(self, completion_id: str, entry: _Entry, record: bytes) -> bool:
        entry.count += 1  # also of a record that gets lost: the gap tells
        if not self._put(record):
            entry.is_whole = False
            return False
        segment = self._segments[-1]
        if completion_id not in segment.live:
            segment.live.add(completion_id)
            entry.segments.append(segment)
        return True

    def _put(self, record: bytes) -> bool:
        """One `write(2)` at the end of the last segment; all of the record or nothing."""
        try:
            if self._segments[-1].size >= SEGMENT_BYTES:
                self._rotate()
            segment = self._segments[-1]
            written = os.write(segment.fd, record)
            if written != len(record):
                os.ftruncate(segment.fd, segment.size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if self._failure is None:
                log.error("journal not written", reason=str(error), directory=str(self.directory))
            self._failure = error.strerror or str(error)
            return False
        if self._failure is not None:
            log.info("journal written again", directory=str(self.directory))
            self._failure = None
        segment.size += written
        self.size += written
        self._appended += 1
        return True

    # --- segments ---------------------------------------------------------------------------

    def _add_segment(self) -> None:
        self._numbers += 1
        self._segments.append(_Segment(self.directory / f"{self._numbers:06}.jsonl"))

    def _rotate(self) -> None:
        old = self._segments[-1]
        if self._fsync is not Fsync.NEVER:
            os.fdatasync(old.fd)
        self._add_segment()
        if not old.live:
            self._delete(old)

    def _drop(self, completion_id: str) -> None:
        entry = self._entries.pop(completion_id)
        for segment in entry.segments:
            segment.live.discard(completion_id)
            if not segment.live:
                self._delete_if_done(segment)

    def _delete_if_done(self, segment: _Segment) -> None:
        if segment is not self._segments[-1]:
            self._delete(segment)
        elif segment.size >= _IDLE_SEGMENT_BYTES:
            with contextlib.suppress(OSError):  # a full disk; it is tried again
                self._rotate()

    def _delete(self, segment: _Segment) -> None:
        self._segments.remove(segment)
        self.size -= segment.size
        os.close(segment.fd)
        segment.path.unlink(missing_ok=True)

    # --- the disk ---------------------------------------------------------------------------

    async def settle(self, *, is_final: bool) -> None:
        """Wait until what was appended is as safe as `fsync` asks, before it is shown.

        Args:
            is_final: the session has ended.
        """
        if self._fsync is Fsync.NEVER or not (is_final or self._fsync is Fsync.ALWAYS):
            return
        wanted = self._appended
        while self._synced < wanted:
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())
            await asyncio.shield(self._syncing)

    async def _sync(self) -> None:
        """One fdatasync for all that wait; in a thread, so that no stream waits unasked."""
        reached, fd = self._appended, os.dup(self._segments[-1].fd)
        try:
            await asyncio.to_thread(os.fdatasync, fd)
        except OSError as error:
            log.error("journal not synced", reason=str(error))
        finally:
            os.close(fd)
            self._synced = max(self._synced, reached)
            self._syncing = None

    # --- what others ask --------------------------------------------------------------------

    def __len__(self) -> int:
        """Completions that are not committed yet, running ones included."""
        return len(self._entries)

    def check(self) -> str | None:
        """None, or why no new session can begin."""
        if self._failure is not None:
            return f"the journal can't be written: {self._failure}"
        if self.size >= self._max_bytes:
            return f"the journal is full ({self.size} bytes of journal.max_bytes)"
        return None

    def has_whole(self, completion_id: str) -> bool:
        """True if the completion can be read back from here in full."""
        entry = self._entries.get(completion_id)
        return entry is not None and entry.is_whole

    def segments_of(self, completion_ids: Iterable[str]) -> list[Path]:
        """The files that hold these completions, oldest first."""
        needed = {
            segment
            for name in completion_ids
            if name in self._entries
            for segment in self._entries[name].segments
        }
        return [segment.path for segment in self._segments if segment in needed]

    def close(self) -> None:
        """Let go of the files. What isn't committed stays, for the next process to adopt."""
        for segment in list(self._segments):
            if self._entries:
                os.close(segment.fd)
            else:
                self._delete(segment)
        self._segments.clear()
        if not self._entries:
            (self.directory / "lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.directory.rmdir()
        os.close(self._lock)
