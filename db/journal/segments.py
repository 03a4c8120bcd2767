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

    __slots__ = ("committed", "fd", "needed_by", "path", "saved_here", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL
        self.fd: int | None = os.open(path, flags, 0o600)
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

    def is_deleted(self) -> bool:
        """True if somebody removed the file that is still written to."""
        return self.fd is not None and os.fstat(self.fd).st_nlink == 0

    def close(self) -> None:
        """Let go of the file. A network disk may report here what it could not write before."""
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
