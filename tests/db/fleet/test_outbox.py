"""What a journal's lines come to elsewhere: all of them, in order, whatever happens to the engine."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from db.fleet import outbox as outboxes
from db.fleet.memory import MemoryEngine, Shared
from db.fleet.redis import RedisEngine
from db.fleet.redis_link import RedisLink
from statemachine import SessionRecord
from tests.db.fleet.writers import Writer, read, text_of
from tests.redis_servers import RedisServer


@pytest.fixture(params=["memory", "redis"])
async def writer(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Writer]:
    engine: MemoryEngine | RedisEngine
    if request.param == "memory":
        engine = MemoryEngine("token", Shared())
    else:
        server: RedisServer = request.getfixturevalue("own_redis")
        engine = RedisEngine(RedisLink(server.url), "token")
    made = Writer(tmp_path / "journal", engine)
    yield made
    await made.close()
    await engine.close()


async def test_whoever_reads_along_knows_what_was_said(writer: Writer) -> None:
    """While it runs, and what it was in the end."""
    writer.begin("chatcmpl-1")
    writer.say("chatcmpl-1", "Hello", " there")
    await asyncio.wait_for(writer.outbox.sent(), 5)
    assert "Hello there" == text_of(await read(writer.engine, "chatcmpl-1"))
    run = await writer.engine.find("chatcmpl-1")
    assert run is not None and ("anonymous", "a") == (run.owner, run.replica)
    writer.say("chatcmpl-1", ", you")
    writer.end("chatcmpl-1")
    await asyncio.wait_for(writer.outbox.sent(), 5)
    record = (await read(writer.engine, "chatcmpl-1")).record
    assert isinstance(record, SessionRecord)
    assert ("completed", "Hello there, you") == (
        record.state.value,
        record.choices[0].message["content"],
    )


async def test_what_is_stored_is_not_under_way(writer: Writer) -> None:
    """Its log stays for readers, for a while."""
    writer.begin("chatcmpl-1")
    writer.say("chatcmpl-1", "Hello")
    writer.end("chatcmpl-1")
    await asyncio.wait_for(writer.outbox.sent(), 5)
    assert 1 == len(await writer.engine.left_by("token"))
    writer.journal.forget(["chatcmpl-1"])
    async with asyncio.timeout(5):
        while await writer.engine.left_by("token"):
            await asyncio.sleep(0.01)
    assert "Hello" == text_of(await read(writer.engine, "chatcmpl-1"))


async def test_what_the_engine_missed_is_sent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order and whole, although memory held little of it meanwhile."""
    monkeypatch.setattr(outboxes, "MOST_HELD_BYTES", 2_000)
    shared = Shared()
    writer = Writer(tmp_path / "journal", MemoryEngine("token", shared))
    names = [f"chatcmpl-{number}" for number in range(3)]
    try:
        for name in names:
            writer.begin(name)
            writer.say(name, "begun ")
        await asyncio.wait_for(writer.outbox.sent(), 5)
        shared.is_away = True
        for number in range(100):
            for name in names:
                writer.say(name, f"{number} ")
            await asyncio.sleep(0)
        assert 300 == writer.outbox.lag
        shared.is_away = False
        await asyncio.wait_for(writer.outbox.sent(), 10)
        expected = "begun " + "".join(f"{number} " for number in range(100))
        assert [expected] * 3 == [text_of(await read(writer.engine, name)) for name in names]
    finally:
        await writer.close()


async def test_a_killed_engine_gets_it_all_when_it_is_back(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    """An empty one too: what runs can be read from its beginning again."""
    writer = Writer(tmp_path / "journal", RedisEngine(RedisLink(own_redis.url), "token"))
    try:
        writer.begin("chatcmpl-1")
        writer.say("chatcmpl-1", "one ")
        await asyncio.wait_for(writer.outbox.sent(), 5)
        own_redis.stop()
        writer.say("chatcmpl-1", "two ")
        await asyncio.sleep(0.2)
        own_redis.start()
        writer.say("chatcmpl-1", "three ")
        await asyncio.wait_for(writer.outbox.sent(), 20)
        assert "one two three " == text_of(await read(writer.engine, "chatcmpl-1"))
    finally:
        await writer.close()
        await writer.engine.close()
