"""What is noted of the engine's answers, and of how long lines wait for it."""

import asyncio
from pathlib import Path

import pytest

from db.fleet import FleetUnavailable, health
from db.fleet.health import EngineHealth, Waiting
from db.fleet.memory import MemoryEngine, Shared
from db.fleet.redis import RedisEngine
from db.fleet.redis_link import RedisLink
from tests.db.fleet.writers import Writer
from tests.redis_servers import RedisServer


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_ends_a_failure() -> None:
    """Failures are counted; silence is counted from the last answer, or from the start."""
    clock = Clock()
    noted = EngineHealth(clock)
    clock.now += 3
    assert (None, 0, 3.0) == (noted.failure, noted.calls_failed, noted.silent_seconds)
    noted.note_failure("gone")
    noted.note_failure("gone still")
    assert ("gone still", 2, 3.0) == (noted.failure, noted.calls_failed, noted.silent_seconds)
    noted.note_answer()
    assert (None, 2, 0.0) == (noted.failure, noted.calls_failed, noted.silent_seconds)


def test_the_oldest_line_that_waits_has_an_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of the first mark that isn't sent; with too many marks it is rather too high."""
    monkeypatch.setattr(health, "_MOST_MARKS", 2)
    clock = Clock()
    waiting = Waiting(clock)
    assert 0.0 == waiting.oldest_seconds
    for added in (5, 5, 8, 9):
        waiting.note_added(added)
        clock.now += 1
    assert 4.0 == waiting.oldest_seconds
    waiting.note_sent(4)
    assert 4.0 == waiting.oldest_seconds
    waiting.note_sent(5)
    assert 2.0 == waiting.oldest_seconds
    waiting.note_sent(9)
    assert 0.0 == waiting.oldest_seconds


async def test_an_outbox_says_how_long_its_lines_wait(tmp_path: Path) -> None:
    """As long as the engine is away; and how long each call took while it isn't."""
    shared = Shared()
    writer = Writer(tmp_path / "journal", MemoryEngine("token", shared))
    took: list[float] = []
    writer.outbox.note_append = took.append
    try:
        writer.begin("chatcmpl-1")
        await asyncio.wait_for(writer.outbox.sent(), 5)
        assert (1, 0.0) == (len(took), writer.outbox.oldest_seconds)
        shared.is_away = True
        writer.say("chatcmpl-1", "Hello")
        await asyncio.sleep(0.1)
        assert writer.outbox.oldest_seconds > 0.05
        assert writer.engine.health.failure is not None
        shared.is_away = False
        await asyncio.wait_for(writer.outbox.sent(), 5)
        assert 0.0 == writer.outbox.oldest_seconds
        assert [None] == [writer.engine.health.failure]
    finally:
        await writer.close()


async def test_a_real_engine_notes_its_answers(own_redis: RedisServer) -> None:
    """Calls that fail are counted, and the reason is kept until one is answered."""
    engine = RedisEngine(RedisLink(own_redis.url), "token")
    try:
        await engine.find("chatcmpl-1")
        assert (None, 0) == (engine.health.failure, engine.health.calls_failed)
        own_redis.stop()
        with pytest.raises(FleetUnavailable):
            await engine.find("chatcmpl-1")
        assert 1 == engine.health.calls_failed
        assert "ConnectionError" in (engine.health.failure or "")
        own_redis.start()
        await engine.find("chatcmpl-1")
        assert engine.health.failure is None
    finally:
        await engine.close()
