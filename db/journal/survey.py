"""Looks through a dead process's journal before it is played: how much is there of each completion.

Never reads what a line says. A journal may hold a gigabyte of completions that ran at once; played
together they would be in memory together.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog
from attrs import frozen

from db.journal.format import Damage, read_saved, read_sizes

log = structlog.get_logger(__name__)

PART_BYTES = 16 * 1024 * 1024
"""About so many bytes of lines are played at a time; a larger completion alone."""


@frozen
class Part:
    """Some completions that are to be brought back, and the segments with lines of theirs."""

    completion_ids: frozenset[str]
    segments: tuple[Path, ...]


@frozen
class Survey:
    """The completions that no `saved` line names, in parts; and how many stretches were no lines,
    torn ends aside."""

    parts: tuple[Part, ...]
    damages: int


def survey(segments: Sequence[Path]) -> Survey:
    """Look through these segments, oldest first. Blocks. Raises OSError."""
    sizes: dict[str, int] = {}
    places: dict[str, dict[Path, None]] = {}
    saved: set[str] = set()
    damages = 0
    for path in segments:
        data = path.read_bytes()
        saved.update(read_saved(data))
        for line in read_sizes(data):
            if isinstance(line, Damage):
                damages += note_damage(path, line)
                continue
            name, size = line
            if name is None:  # such as one from another version of the format
                log.error("journal record not understood", segment=str(path), bytes=size)
                damages += 1
                continue
            sizes[name] = sizes.get(name, 0) + size
            places.setdefault(name, {})[path] = None
    sizes = {name: size for name, size in sizes.items() if name and name not in saved}
    parts = [
        Part(frozenset(names), tuple(path for path in segments if _any_in(path, names, places)))
        for names in _parted(sizes)
    ]
    return Survey(tuple(parts), damages)


def _parted(sizes: dict[str, int]) -> Iterator[list[str]]:
    names: list[str] = []
    room = PART_BYTES
    for name, size in sizes.items():
        if names and size > room:
            yield names
            names, room = [], PART_BYTES
        names.append(name)
        room -= size
    if names:
        yield names


def _any_in(path: Path, names: Sequence[str], places: dict[str, dict[Path, None]]) -> bool:
    return any(path in places[name] for name in names)


def note_damage(path: Path, damage: Damage) -> int:
    """Log a stretch that is no line; 0 if it is a torn end, as any kill leaves one, else 1."""
    if damage.is_tail:
        log.info("torn end of journal cut off", segment=str(path), bytes=damage.length)
        return 0
    log.error("journal damaged", segment=str(path), offset=damage.offset, bytes=damage.length)
    return 1
