"""Lines that are to be on replicas of the engine, too."""

import asyncio
from pathlib import Path

import pytest
import redis

from db.fleet.redis import RedisEngine
from db.fleet.redis_link import RedisLink
from db.journal import Fsync
from service.fleet.parts import Fleet
from service.settings.fleet import FleetConfig
from tests.db.fleet.writers import Writer, read, text_of
from tests.db.journal.journals import begin
from tests.redis_servers import RedisServer, redis_server

ONE = "chatcmpl-1"


async def failed(outbox: object) -> str:
    async with asyncio.timeout(10):
        while (failure := getattr(outbox, "failure", None)) is None:
            await asyncio.sleep(0.02)
    return str(failure)


@pytest.mark.parametrize(("journal", "is_failing"), [("before_send", True), ("follow", False)])
async def test_replicas_of_the_engine_are_waited_for_before_sending_alone(
    own_redis: RedisServer, tmp_path: Path, journal: str, is_failing: bool
) -> None:
    """And where nobody waits for the engine, nobody waits for its replicas."""
    config = FleetConfig(url=own_redis.url, replica="a", journal=journal, wait_replicas=1)  # type: ignore[arg-type]
    fleet = Fleet(config, None)
    lines = fleet.journal(tmp_path / "journal", Fsync.NEVER, 10**9)
    lines.start()
    fleet.outbox.start()
    assert begin(lines, ONE)
    if is_failing:
        assert "0 of 1 replicas of the engine have it" == await failed(fleet.outbox)
    else:
        await asyncio.wait_for(fleet.outbox.sent(), 5)
    await fleet.outbox.stop(0)
    lines.close()
    await fleet.engine.close()


@pytest.mark.fleet
async def test_what_is_told_to_be_there_is_on_a_replica(tmp_path: Path) -> None:
    """While there is none nobody is told so; once it is back all of it is there."""
    quick = ("--repl-diskless-sync-delay", "0", "--repl-timeout", "3")
    with (
        redis_server(tmp_path / "master", *quick) as master,
        redis_server(
            tmp_path / "replica", *quick, "--replicaof", "127.0.0.1", str(master.port)
        ) as replica,
    ):
        engine = RedisEngine(RedisLink(master.url), "token", wait_replicas=1)
        writer = Writer(tmp_path / "journal", engine)
        copy = RedisEngine(RedisLink(replica.url), "reader")
        try:
            writer.begin(ONE)
            writer.say(ONE, "one ")
            await asyncio.wait_for(writer.outbox.sent(), 20)
            assert "one " == text_of(await read(copy, ONE))
            replica.stop()
            writer.say(ONE, "two ")
            waiting = asyncio.create_task(writer.outbox.sent())
            assert "replicas of the engine" in await failed(writer.outbox)
            assert not waiting.done()
            assert "one two " == text_of(await read(engine, ONE))
            replica.start()
            await asyncio.wait_for(waiting, 20)
            with redis.Redis(port=replica.port) as client:
                assert 1 == client.exists(f"verbatim:1:log:{{{ONE}}}")
            assert "one two " == text_of(await read(copy, ONE))
        finally:
            await writer.close()
            await copy.close()
            await engine.close()
