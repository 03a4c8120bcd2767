"""Writes the journal: what happens to every running session, on disk before anybody is shown it.

A directory for each process, with a lock that it holds and segments that only grow; `docs/journal.md`
shows where they lie. Never reads another process's journal, and never waits for the database.

1. An event is appended before its effects are carried out: one `write(2)` for all that came in
   one upstream read. The kernel keeps it when the process is killed. Against a machine that
   loses power, `fsync: terminal` or `always` waits for the disk, in a thread, many at once.
2. A segment is deleted once every completion with a line in it is committed. A completion's
   `saved` line outlives all its other lines, so recovery can't bring it back.
3. At `max_bytes`, or when the disk refuses, new sessions are refused. Running ones go on: past
   `max_bytes` they are still written; what the disk refuses of them is in memory only. A gap in
   their lines' numbers shows it as soon as there is room, and until then a file's name does.
"""

import contextlib
import enum
import fcntl
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from pathlib import Path

import structlog

from db.journal.format import (
    begin_line,
    dump_json,
    events_record,
    own_request,
    saved_line,
)
from db.journal.reading import line_in
from db.journal.repeats import first_record, start_of_text, text_record
from db.journal.replay import Replay
from db.journal.segments import INCOMPLETE, PROBE_BYTES, WHOLE, Segment
from db.journal.syncing import Syncing
from statemachine import (
    ChunkPattern,
    ChunkReceived,
    Event,
    RepeatedChunks,
    SessionPolicy,
    SessionRecord,
    SessionRequest,
    TimePassed,
)

log = structlog.get_logger(__name__)

SEGMENT_BYTES = 16 * 1024 * 1024
"""From this size on a segment is followed by another. Small enough to be read in one go."""
_LARGE_REQUEST, _LARGEST_REQUEST = 4 * 1024, 512 * 1024
"""A request's line of so many bytes is worth letting go of its request while its answer runs: a smaller
one takes too little memory, and a larger one too long to be read at once."""
_IDLE_SEGMENT_BYTES = 1024 * 1024
"""From this size on the last segment is replaced as soon as no completion needs it."""


class Fsync(enum.StrEnum):
    """Which lines must be on the disk itself, and not only in the kernel's memory, before they are
    shown."""

    NEVER = "never"
    TERMINAL = "terminal"
    """The end of a session."""
    ALWAYS = "always"
    """Everything that is shown."""


class JournalUnavailable(OSError):
    """No journal can be kept in this place. The message says why and what to do."""


class Entry:
    """A completion that is not committed yet.

    Attributes:
        name: its id as JSON.
        count: how many lines it has, lost ones included.
        is_whole: false once one of them was lost.
        segments: where they are, oldest first.
        pattern: the one that was made known last.
        start: what it puts before each text.
        request: where in the first segment the line with its request begins, and its length; None if
            it isn't worth reading.
    """

    __slots__ = ("count", "is_whole", "name", "pattern", "request", "segments", "start")

    def __init__(self, completion_id: str) -> None:
        self.name = b"%b" % dump_json(completion_id)  # a copy: orjson's own takes 4 KiB
        self.count = 0
        self.is_whole = True
        self.pattern: ChunkPattern | None = None
        self.start = b""
        self.request: tuple[int, int] | None = None
        self.segments: list[Segment] = []


class Journal:
    """This process's journal. Made by `open`, or first made and then started; one event loop uses
    it.

    Args:
        directory: where journals lie; this one makes its own under it.
        fsync: see `Fsync`.
        max_bytes: past so many no new session begins.

    Attributes:
        directory: the process's own; recovery leaves it alone.
        size: its bytes on disk.
        settles_ends: true if `settle` waits for the disk at a session's end.
        settles_chunks: true if it does so before the end, too.
    """

    def __init__(self, directory: Path, fsync: Fsync, max_bytes: int) -> None:
        name = f"{int(time.time())}-{os.getpid()}-{secrets.token_hex(4)}"
        self.directory = directory / name
        self.size = 0
        self.settles_chunks = fsync is Fsync.ALWAYS
        self.settles_ends = fsync is not Fsync.NEVER
        self._lock = -1  # none before `start`
        self._fsync = fsync
        self._max_bytes = max_bytes
        self._idle_bytes = min(_IDLE_SEGMENT_BYTES, max_bytes // 2)
        self._entries: dict[str, Entry] = {}
        self._segments: list[Segment] = []
        self._rotate_from = 0
        self._failure: str | None = None
        self._refused_bytes = 0
        self._is_incomplete = False
        self._syncing = Syncing(self.directory, self._newest)

    def __repr__(self) -> str:
        return f"<Journal {self.directory}, {len(self._entries)} open, {self.size} bytes>"

    @classmethod
    def open(cls, directory: Path, fsync: Fsync, max_bytes: int) -> "Journal":
        """A journal that is started at once. Raises what `start` raises."""
        journal = cls(directory, fsync, max_bytes)
        journal.start()
        return journal

    def start(self) -> None:
        """Make the directory, lock it, and take sessions from now on; before this none can begin.

        Raises:
            JournalUnavailable: the directory can't be written.
        """
        above, name = self.directory.parent, self.directory.name
        try:
            above.mkdir(parents=True, exist_ok=True)
            # Made under a name that recovery passes over, so that it is locked once recovery sees it.
            making = above / f".{name}"
            making.mkdir(mode=0o700)
            self._lock = os.open(making / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            (making / WHOLE).touch(0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            making.rename(self.directory)
            self._add_segment()
        except OSError as error:
            raise JournalUnavailable(
                f"The journal can't be kept in {above}: {error.strerror or error}. Choose another "
                "place with journal.directory or JOURNAL_DIR."
            ) from error

    # --- writing ----------------------------------------------------------------------------

    def begin(self, request: SessionRequest, policy: SessionPolicy) -> bool:
        """Write down that a session begins.

        False if that failed: because of what `check` returns, or because it has begun before.
        """
        if self.size >= self._max_bytes or request.completion_id in self._entries:
            return False
        if self._segments and (harm := self._segments[-1].harm()) and not self._go_on(harm):
            return False
        entry = self._entries[request.completion_id] = Entry(request.completion_id)
        line = begin_line(request, policy)
        if self._write(request.completion_id, entry, line):
            segment, size = entry.segments[0], len(line)
            if _LARGE_REQUEST <= size <= _LARGEST_REQUEST and segment.keep_readable():
                entry.request = segment.size - size, size
            return True
        self._drop(request.completion_id)
        return False

    def append(self, completion_id: str, events: Sequence[Event], now: float) -> None:
        """Write down what happened to a session. Never raises: a disk that refuses costs the
        journal this record, not the client its stream."""
        entry = self._entries.get(completion_id)
        if entry is None or not events:
            return
        last = events[-1]
        run = last.run if isinstance(last, ChunkReceived) else None
        if len(events) == 1 and type(last) is not TimePassed:  # nearly always
            if not isinstance(run, RepeatedChunks):
                record = events_record(completion_id, entry.count, events, now)
                self._write(completion_id, entry, record)
                return
            if run.pattern is entry.pattern:
                record = text_record(entry.name, entry.count, entry.start, run, now)
                self._write(completion_id, entry, record)
                return
        if lines := _lines(completion_id, entry, events, now):
            self._write(completion_id, entry, b"".join(lines), len(lines))

    def forget(self, completion_ids: Iterable[str]) -> None:
        """These are committed: their lines are no longer needed."""
        known = [name for name in completion_ids if name in self._entries]
        if not known or not self._segments:
            return
        self._note_saved(known)
        for completion_id in known:
            self._drop(completion_id)

    def _note_saved(self, completion_ids: Collection[str]) -> None:
        if self._put(saved_line(completion_ids)):
            self._segments[-1].saved_here.update(completion_ids)

    def _write(self, completion_id: str, entry: Entry, lines: bytes, count: int = 1) -> bool:
        entry.count += count  # also of lines that get lost: the gap tells
        if not self._put(lines):
            entry.is_whole = False
            return False
        segment = self._segments[-1]
        if not entry.segments or segment is not entry.segments[-1]:
            segment.needed_by.add(completion_id)
            entry.segments.append(segment)
        return True

    def _put(self, line: bytes) -> bool:
        """Append a line to the last segment by one `write(2)`, all of it or nothing."""
        if not self._segments:
            return False  # closed
        segment = self._segments[-1]
        if segment.size >= SEGMENT_BYTES and segment.size >= self._rotate_from:
            self._rotate()
            segment = self._segments[-1]
        try:
            assert segment.fd is not None
            written = os.write(segment.fd, line)
            if written < len(line):
                segment.write_rest(segment.fd, line, written)
        except OSError as error:
            self._note_refusal(error, len(line))
            self.size = sum(each.size for each in self._segments)  # a torn part may stay
            return False
        segment.size += len(line)
        self.size += len(line)
        if self._failure is not None:
            self._note_success(len(line))
        self._syncing.appended += 1
        return True

    def _note_refusal(self, error: OSError, size: int) -> None:
        if self._failure is None:
            log.error("journal not written", reason=str(error), directory=str(self.directory))
        self._failure = error.strerror or str(error)
        self._refused_bytes = max(self._refused_bytes, size)
        if not self._is_incomplete:
            self._is_incomplete = True
            self._rename_mark(WHOLE, INCOMPLETE)

    def _note_success(self, size: int) -> None:
        """So many bytes could be written after a refusal: of less than was refused it says nothing,
        but that lines can tell again what is missing."""
        if size >= self._refused_bytes:
            log.info("journal written again", directory=str(self.directory))
            self._failure, self._refused_bytes = None, 0
        if self._is_incomplete:
            self._is_incomplete = False  # before the lines, which come by here
            for completion_id, entry in self._entries.items():
                if not entry.is_whole:  # an empty line, whose number shows the gap
                    line = events_record(completion_id, entry.count, (), 0.0)
                    if not self._write(completion_id, entry, line):
                        return
            self._rename_mark(INCOMPLETE, WHOLE)

    def _rename_mark(self, old: str, new: str) -> None:
        with contextlib.suppress(OSError):  # gone, or read-only: nothing can be noted here
            (self.directory / old).rename(self.directory / new)

    def _go_on(self, harm: str) -> bool:
        """Go on in another file, after somebody deleted or cut this one: what running sessions had written
        is gone. False if that can't be."""
        if harm == "cut":
            log.error("journal cut while in use", directory=str(self.directory))
            for entry in self._entries.values():
                if entry.segments[:1] == self._segments[-1:]:
                    entry.request = None  # what is still held isn't to be let go of
        elif not self._start_over():
            return False
        for entry in self._entries.values():
            entry.is_whole = False
        self._rotate()
        return True

    def _start_over(self) -> bool:
        """Make the directory anew. False if it can't be made."""
        log.error("journal deleted while in use", directory=str(self.directory))
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            (self.directory / WHOLE).touch(0o600)
        except OSError as error:
            self._failure = error.strerror or str(error)
            return False
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.close(self._lock)
        self._lock = lock
        return True

    # --- segments ---------------------------------------------------------------------------

    def _add_segment(self) -> None:
        number = self._syncing.made = self._syncing.made + 1
        self._segments.append(Segment(self.directory / f"{number:06}.jsonl"))

    def _newest(self) -> int | None:
        return self._segments[-1].fd if self._segments else None

    def _rotate(self) -> None:
        """Go on in a new segment; in the old one if none can be had (no descriptor is free)."""
        old = self._segments[-1]
        try:
            self._add_segment()
        except OSError as error:
            log.warning("journal segment not made", reason=str(error), segment=str(old.path))
            self._rotate_from = old.size + _IDLE_SEGMENT_BYTES
            return
        self._rotate_from = 0
        if self._fsync is not Fsync.NEVER and old.fd is not None:
            self._syncing.keep(old.fd)
            old.fd = None
        old.close()
        if not old.needed_by:
            self._delete(old)

    def _drop(self, completion_id: str) -> None:
        entry = self._entries.pop(completion_id)
        for segment in entry.segments:
            segment.needed_by.discard(completion_id)
            segment.committed.add(completion_id)
            if not segment.needed_by:
                self._delete_if_done(segment)

    def _delete_if_done(self, segment: Segment) -> None:
        if segment is not self._segments[-1]:
            self._delete(segment)
        elif segment.size >= max(self._idle_bytes, self._rotate_from):
            self._rotate()

    def _delete(self, segment: Segment) -> None:
        self._segments.remove(segment)
        self.size -= segment.size
        segment.end()
        # A completion's other lines may lie in an older segment that somebody still needs.
        left = set[str]().union(*(segment.saved_here & other.committed for other in self._segments))
        if left:
            self._note_saved(left)
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:  # a disk gone read-only; recovery finds its completions saved
            log.error("journal segment not deleted", segment=str(segment.path), reason=str(error))

    # --- the disk ---------------------------------------------------------------------------

    async def settle(self, *, is_final: bool) -> None:
        """Wait until what was appended is as safe as `fsync` asks, before it is shown.

        Args:
            is_final: the session has ended.
        """
        if not (self.settles_ends if is_final else self.settles_chunks):
            return
        if not self._segments:
            return  # closed
        await self._syncing.wait()

    def when_settled(self, tell: Callable[[], None]) -> None:
        """Have this called once what was appended so far is as safe as `fsync` asks for chunks; at once if
        it is. It must not raise."""
        if self.settles_chunks and self._segments:
            self._syncing.when_done(tell)
        else:
            tell()

    # --- what others ask --------------------------------------------------------------------

    @property
    def uncommitted(self) -> int:
        """How many completions are not committed yet, running ones included."""
        return len(self._entries)

    def check(self) -> str | None:
        """None, or why no new session can begin."""
        # A disk that refused is tried again here: a service that isn't ready gets no requests, so
        # nothing else would be written.
        if self._failure is not None and self._segments:
            # Where nothing was written since, as much as a large request; else what was refused.
            size = max(PROBE_BYTES if self._is_incomplete else 0, self._refused_bytes)
            if self._segments[-1].has_room(size):
                self._note_success(size)
        if self._failure is not None:
            return f"the journal can't be written: {self._failure}"
        if self.size >= self._max_bytes:
            return f"the journal is full ({self.size} bytes of journal.max_bytes)"
        return None

    def has_whole(self, completion_id: str) -> bool:
        """True if the completion can be read back from here in full."""
        entry = self._entries.get(completion_id)
        return entry is not None and entry.is_whole

    def has_request(self, completion_id: str) -> bool:
        """True if `request` will read it, so that nobody else has to hold it."""
        entry = self._entries.get(completion_id)
        return entry is not None and entry.request is not None

    def request(self, completion_id: str) -> SessionRequest | None:
        """What a completion was begun with, read from its line: some 0.1 ms for 32 KB. None if
        `has_request` is false, or the disk doesn't give it back."""
        entry = self._entries.get(completion_id)
        if entry is None or entry.request is None:
            return None
        try:
            return own_request(line_in(entry.segments[0].read(*entry.request)), completion_id)
        except (OSError, ValueError) as error:
            log.error("request not readable", completion_id=completion_id, reason=str(error)[:200])
            return None

    async def read_back(self, completion_ids: Collection[str]) -> AsyncIterator[SessionRecord]:
        """The records of these completions, as far as they are here. Reads each segment that
        holds any of them once. Raises OSError."""
        replay = Replay(self.segments_of(completion_ids), set(completion_ids))
        async for record in replay.records():
            yield record

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
        """Close the files. Whatever isn't committed stays, for the next process to adopt."""
        if not self._segments:
            return
        for segment in list(self._segments):
            if self._entries:
                segment.end()
            else:
                self._delete(segment)
        self._segments.clear()
        self._syncing.close()
        if not self._entries:
            with contextlib.suppress(OSError):
                for name in (WHOLE, INCOMPLETE, "lock"):
                    (self.directory / name).unlink(missing_ok=True)
                self.directory.rmdir()
        os.close(self._lock)


def _lines(completion_id: str, entry: Entry, events: Sequence[Event], now: float) -> list[bytes]:
    """The lines for several events, or for one that isn't of the pattern known: one for each run of
    repeated chunks, and one for what comes between two of them."""
    lines: list[bytes] = []
    others: list[Event] = []
    for event in events:
        run = event.run if isinstance(event, ChunkReceived) else None
        if not isinstance(run, RepeatedChunks):
            if not isinstance(event, TimePassed):
                others.append(event)
            continue
        if others:
            lines.append(events_record(completion_id, entry.count + len(lines), others, now))
            others = []
        number = entry.count + len(lines)
        if run.pattern is entry.pattern:
            lines.append(text_record(entry.name, number, entry.start, run, now))
        else:
            entry.pattern, entry.start = run.pattern, start_of_text(run.pattern, number)
            lines.append(first_record(entry.name, number, run, now))
    if others:
        lines.append(events_record(completion_id, entry.count + len(lines), others, now))
    return lines
