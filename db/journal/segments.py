"""Handles one file of the journal, a segment: whole lines, room on the disk, closing, syncing.

Never decides what is written, nor when a segment is full or no longer needed.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

PROBE_BYTES = 256 * 1024
"""As much as a large request takes."""
WHOLE, INCOMPLETE = "whole", "incomplete"
"""The two names of an empty file beside the segments. A disk that has room for nothing lets it be
renamed; so it tells that lines were refused, where no line can tell it."""


class Segment:
    """One file, made anew.

    Attributes:
        fd: the file's descriptor; None once it is closed, or left to a sync.
        size: its bytes.
        needed_by: the completions with lines in it that aren't committed yet.
        committed: the completions with lines in it that are.
        saved_here: the completions whose `saved` line is in it.
    """

    __slots__ = ("_reader", "committed", "fd", "needed_by", "path", "saved_here", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL
        self.fd: int | None = os.open(path, flags, 0o600)
        self._reader = -1  # none before somebody asks for it
        self.size = 0
        self.needed_by: set[str] = set()
        self.committed: set[str] = set()
        self.saved_here: set[str] = set()

    def write_rest(self, fd: int, line: bytes, written: int) -> None:
        """Write what a first `write(2)` left of a line; often only to learn why it was short.

        Raises:
            OSError: not all of the line could be written; nothing of it stays, unless the disk
                won't even truncate. Then the torn part counts, and is passed over when read.
        """
        try:
            while written < len(line):
                written += os.write(fd, line[written:])
        except OSError:
            try:
                os.ftruncate(fd, self.size)
            except OSError:
                self.size += written
            raise

    def has_room(self, size: int) -> bool:
        """True if so many bytes can be written; nothing of the attempt stays."""
        if self.fd is None:
            return False
        try:
            return os.write(self.fd, bytes(size)) == size
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self.size)

    def keep_readable(self) -> bool:
        """Have `read` work until the segment's end, also once it is full, or the file is deleted. False
        if that can't be."""
        if self._reader < 0:
            with contextlib.suppress(OSError):
                self._reader = os.open(self.path, os.O_RDONLY)
        return self._reader >= 0

    def read(self, offset: int, length: int) -> bytes:
        """A part of the file. Raises OSError, also unless it was kept readable."""
        return os.pread(self._reader, length, offset)

    def harm(self) -> str | None:
        """What somebody has done to the file that is still written to: "deleted" or "cut" it."""
        if self.fd is None:
            return None
        found = os.fstat(self.fd)
        if found.st_nlink == 0:
            return "deleted"
        return "cut" if found.st_size < self.size else None

    def end(self) -> None:
        """Let go of the file for good; nothing is read from it any more."""
        self.close()
        reader, self._reader = self._reader, -1
        if reader >= 0:
            with contextlib.suppress(OSError):
                os.close(reader)

    def close(self) -> None:
        """Write no more to the file. A network disk may report here what it could not write before."""
        if self.fd is None:
            return
        fd, self.fd = self.fd, None
        try:
            os.close(fd)
        except OSError as error:
            log.error("journal not synced", reason=str(error), segment=str(self.path))


def sync_all(fds: Sequence[int], directories: Sequence[Path]) -> None:
    """Wait until these files, then the directories that name them, are on the disk itself.

    Closes the files, also where it fails. Blocks. Raises OSError.
    """
    try:
        for fd in fds:
            os.fdatasync(fd)
    finally:
        for fd in fds:
            os.close(fd)
    for directory in directories:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
