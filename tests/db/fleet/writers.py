"""What says something in a test of the fleet, and what somebody elsewhere makes of it."""

from pathlib import Path

from db.fleet.journal import CopiedJournal
from db.fleet.memory import MemoryEngine
from db.fleet.outbox import Outbox
from db.fleet.redis import RedisEngine
from db.journal import Fsync
from db.journal.live import LiveReplay
from statemachine import ChunkReceived, UpstreamFinished
from tests.db.journal.journals import begin, say, words
from tests.statemachine.conftest import finish_chunk


class Writer:
    """One replica's journal and its outbox."""

    def __init__(self, path: Path, engine: MemoryEngine | RedisEngine) -> None:
        self.engine = engine
        self.outbox = Outbox(engine, "a")
        self.journal = CopiedJournal(path, Fsync.NEVER, 10**9, self.outbox)
        self.journal.start()
        self.outbox.start()

    def begin(self, name: str) -> None:
        assert begin(self.journal, name)

    def say(self, name: str, *texts: str) -> None:
        for text in texts:
            say(self.journal, name, text)

    def end(self, name: str) -> None:
        self.journal.append(name, [ChunkReceived(finish_chunk()), UpstreamFinished()], 2.0)

    async def close(self) -> None:
        await self.outbox.stop(1)
        self.journal.close()


async def read(engine: MemoryEngine | RedisEngine, name: str) -> LiveReplay:
    """What somebody elsewhere makes of a log."""
    live, length = LiveReplay(), 0
    while entries := await engine.read(name, length - 1):
        for entry in entries:
            assert length == entry.number
            length += entry.count
            live.feed(entry.lines)
    assert not live.is_damaged
    return live


def text_of(live: LiveReplay) -> str:
    if live.record is not None:
        return words(live.record)
    assert live.first_session is not None
    return "".join(choice.message["content"] for choice in live.first_session.transcript.choices())
