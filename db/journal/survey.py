"""Looks through a dead process's journal before it is played: how much is there of each completion,
and where.

Never reads what a line says. A journal may hold a gigabyte of completions that ran at once; played
together they would be in memory together.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from zlib import crc32

import structlog
from attrs import frozen

from db.journal.reading import Damage, id_of, names_of, read_saved, read_sizes

log = structlog.get_logger(__name__)

# The last alternative is for no line: a search ends where it is, and never looks further.
_LINE = re.compile(rb'([0-9a-f]{8}) ([0-9]{1,9}) (\{"id":"([ !#-\[\]-~]+)"[^\n]*)\n|')

PART_BYTES = 16 * 1024 * 1024
"""About so many bytes of lines are played at a time; a larger completion alone."""


@frozen
class Extent:
    """A segment, or the lines in it from one place to another; `end` is None where all that follow
    are meant."""

    path: Path
    start: int = 0
    end: int | None = None

    def read(self) -> bytes:
        """Its bytes. Blocks. Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(-1 if self.end is None else self.end - self.start)


@frozen
class Copied(Extent):
    """Lines that came from elsewhere, and are in memory."""

    data: bytes = b""

    def read(self) -> bytes:
        """See `Extent.read`."""
        return self.data


@frozen
class Part:
    """Some completions that are to be brought back, and where the lines of theirs are."""

    completion_ids: frozenset[str]
    segments: tuple[Extent, ...]


@frozen
class Survey:
    """The completions that no `saved` line names, in parts; and how many stretches were no lines,
    torn ends aside."""

    parts: tuple[Part, ...]
    damages: int


class _Found:
    """What is in a segment, by the names that completions have there.

    Attributes:
        sizes: the bytes of each one's lines, in the order of their first.
        starts, ends: where its first line starts, and its last one ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sizes: dict[bytes, int] = {}
        self.starts: dict[bytes, int] = {}
        self.ends: dict[bytes, int] = {}

    def look(self, data: bytes) -> int:
        """Look through the segment; how many stretches were no lines, or none of ours."""
        damages = 0
        for line in read_sizes(data, self._look_at_whole):
            if isinstance(line, Damage):
                damages += note_damage(self.path, line)
                continue
            name, start, end = line
            if name is None:  # such as one from another version of the format
                log.error(
                    "journal record not understood", segment=str(self.path), bytes=end - start
                )
                damages += 1
            elif name:
                self.starts.setdefault(name, start)
                self.sizes[name] = self.sizes.get(name, 0) + end - start
                self.ends[name] = end
        return damages

    def _look_at_whole(self, data: bytes, start: int) -> int:
        """The same for the lines from here on, as far as they are as nearly all are; where the next
        one starts."""
        sizes, ends, position = self.sizes, self.ends, start
        for found in _LINE.finditer(data, start):
            checksum, size, source, name = found.groups()
            if source is None or len(source) != int(size) or crc32(source) != int(checksum, 16):
                break
            if (before := sizes.get(name)) is None:
                self.starts[name] = position
                before = 0
            ends[name] = after = found.end()
            sizes[name] = before + after - position
            position = after
        return position

    def extents(self, numbers: Mapping[bytes, int]) -> Iterator[tuple[int, Extent]]:
        """What is here of each part, from its first line to its last one's end.

        Args:
            numbers: which part a completion is in.
        """
        starts: dict[int, int] = {}
        ends: dict[int, int] = {}
        for name, start in self.starts.items():
            if (number := numbers.get(name)) is not None:
                starts[number] = min(starts.get(number, start), start)
                ends[number] = max(ends.get(number, 0), self.ends[name])
        for number, start in starts.items():
            yield number, Extent(self.path, start, ends[number])


def survey(segments: Sequence[Path]) -> Survey:
    """Look through these segments, oldest first. Blocks. Raises OSError."""
    every = list(map(_Found, segments))
    sizes: dict[bytes, int] = {}
    saved: set[str] = set()
    damages = 0
    for found in every:
        data = found.path.read_bytes()
        saved.update(read_saved(data))
        damages += found.look(data)
        for name, size in found.sizes.items():
            sizes[name] = sizes.get(name, 0) + size
    for name in names_of(saved):
        sizes.pop(name, None)
    parts = list(_parted(sizes))
    numbers = {name: number for number, names in enumerate(parts) for name in names}
    places: list[list[Extent]] = [[] for _ in parts]
    for found in every:
        for number, extent in found.extents(numbers):
            places[number].append(extent)
    both = zip(parts, places, strict=True)
    return Survey(
        tuple(Part(frozenset(map(id_of, names)), tuple(extents)) for names, extents in both),
        damages,
    )


def _parted(sizes: dict[bytes, int]) -> Iterator[list[bytes]]:
    names: list[bytes] = []
    room = PART_BYTES
    for name, size in sizes.items():
        if names and size > room:
            yield names
            names, room = [], PART_BYTES
        names.append(name)
        room -= size
    if names:
        yield names


def note_damage(path: Path, damage: Damage) -> int:
    """Log a stretch that is no line; 0 if it is a torn end, as any kill leaves one, else 1."""
    if damage.is_tail:
        log.info("torn end of journal cut off", segment=str(path), bytes=damage.length)
        return 0
    log.error("journal damaged", segment=str(path), offset=damage.offset, bytes=damage.length)
    return 1
