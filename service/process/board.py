"""Keeps a few bytes of each worker where the others can read them, also after it has died.

Memory that the workers share, made before they are forked; no file, and gone with the last process.
Each worker writes its own place alone. What it says is nobody's business here.
"""

import mmap
import struct
import zlib

import structlog

log = structlog.get_logger(__name__)

_PLACE_BYTES = 8 * 1024 * 1024
"""For each worker. Memory is taken up only where something was written."""
_HALF = _PLACE_BYTES // 2
_HEAD = struct.Struct("=QII")
"""Number of the writing, length, checksum. The half with the higher number holds."""


class Board:
    """A place for each of `count` workers."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, count * _PLACE_BYTES)

    def write(self, number: int, data: bytes) -> None:
        """Replace what a worker has written; wholly or, if it dies meanwhile, not at all. What is too long
        is not written."""
        if len(data) > _HALF - _HEAD.size:
            log.warning("figures too long to be kept", worker=number, bytes=len(data))
            return
        writings = [self._half(number, half)[0] for half in (0, 1)]
        half = writings.index(min(writings))
        start = number * _PLACE_BYTES + half * _HALF
        body = start + _HEAD.size
        self._memory[body : body + len(data)] = data
        head = _HEAD.pack(max(writings) + 1, len(data), zlib.crc32(data))
        self._memory[start:body] = head

    def read(self, number: int) -> bytes | None:
        """What a worker wrote last; None if that is nothing."""
        found = max(self._half(number, half) for half in (0, 1))
        return found[1] if found[0] else None

    def _half(self, number: int, half: int) -> tuple[int, bytes]:
        """The number of a half's writing and its bytes; 0 if it is empty or was broken off."""
        start = number * _PLACE_BYTES + half * _HALF
        writing, length, checksum = _HEAD.unpack_from(self._memory, start)
        body = start + _HEAD.size
        data = self._memory[body : body + min(length, _HALF)]
        return (writing, data) if writing and zlib.crc32(data) == checksum else (0, b"")
