"""Journals for tests: small sessions written into them, and what a replay finds in a directory."""

import asyncio
import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from db.journal import Fsync, Journal
from db.journal import writing as journal_module
from db.journal.reading import Damage, read_lines
from db.journal.replay import Replay
from statemachine import (
    ChunkReceived,
    Event,
    Save,
    SessionPolicy,
    SessionRecord,
    StreamSession,
    UpstreamFinished,
)
from tests.statemachine.conftest import asked, finish_chunk, text_chunk

PLENTY = 1024**3


def open_journal(directory: Path, fsync: Fsync = Fsync.NEVER, max_bytes: int = PLENTY) -> Journal:
    return Journal.open(directory, fsync, max_bytes)


def begin(journal: Journal, completion_id: str, **fields: Any) -> bool:
    return journal.begin(asked(completion_id=completion_id, **fields), SessionPolicy())


def say(journal: Journal, completion_id: str, text: str, now: float = 1.0) -> None:
    journal.append(completion_id, [ChunkReceived(text_chunk(text))], now)


def live(
    journal: Journal, completion_id: str, texts: Iterable[str], **fields: Any
) -> SessionRecord:
    """A whole life, written down as a relay would; returns the record that it ends with."""
    request = asked(completion_id=completion_id, **fields)
    session = StreamSession(request, SessionPolicy())
    assert journal.begin(request, session.policy)
    events: list[Event] = [ChunkReceived(text_chunk(text)) for text in texts]
    events += [ChunkReceived(finish_chunk()), UpstreamFinished()]
    effects: list[Any] = []
    for number, event in enumerate(events):
        journal.append(completion_id, [event], number / 8)
        effects += session.handle(event, number / 8)
    (record,) = (effect.record for effect in effects if isinstance(effect, Save))
    return record


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.jsonl"))


def lines(directory: Path) -> list[dict[str, Any]]:
    """Every line of a journal; it must have no damage."""
    items = [item for path in segments(directory) for item in read_lines(path.read_bytes())]
    assert not any(isinstance(item, Damage) for item in items)
    return items  # type: ignore[return-value]  # just asserted


def replayed(directory: Path) -> list[SessionRecord]:
    """What a recovery would bring back."""
    return asyncio.run(collect(Replay(segments(directory))))


async def collect(replay: Replay) -> list[SessionRecord]:
    return [record async for record in replay.records()]


def ids(records: Iterable[SessionRecord]) -> list[str]:
    return [record.completion_id for record in records]


def words(record: SessionRecord) -> str:
    """The text of a record's first choice."""
    return str(record.choices[0].message["content"] or "") if record.choices else ""


def dead_journal(directory: Path, lives: Sequence[str], texts: Sequence[str] = ("a", "b")) -> Path:
    """A journal whose process is gone before these sessions ended."""
    journal = open_journal(directory)
    for completion_id in lives:
        begin(journal, completion_id)
        for text in texts:
            say(journal, completion_id, text)
    journal.close()
    return journal.directory


@contextmanager
def segments_of(size: int) -> Iterator[None]:
    """Segments end at this many bytes."""
    old = journal_module.SEGMENT_BYTES, journal_module._IDLE_SEGMENT_BYTES
    journal_module.SEGMENT_BYTES = journal_module._IDLE_SEGMENT_BYTES = size
    try:
        yield
    finally:
        journal_module.SEGMENT_BYTES, journal_module._IDLE_SEGMENT_BYTES = old


@contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """A soft limit on this process's resources."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def size_on_disk(directory: Path) -> int:
    return sum(path.stat().st_size for path in segments(directory))


def open_files() -> dict[str, str]:
    """This process's descriptors and what they are of."""
    names = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            names[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listed the directory
    return names
