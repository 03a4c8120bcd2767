"""A dead replica's thousand running answers, in another's hands: a real Redis and a PostgreSQL."""

import asyncio
import time
from pathlib import Path

import pytest

from db.fleet.redis import RedisEngine
from db.fleet.redis_link import RedisLink
from db.journal import NoJournal
from db.postgres.store import PostgresStore
from db.saver import Saver
from statemachine import ChunkReceived
from tests.db.fleet.test_adoption import Member
from tests.db.journal.journals import begin
from tests.postgres import execute
from tests.redis_servers import RedisServer
from tests.statemachine.test_tape import PATTERNS, run_of

MANY, WORDS = 1_000, 100
LEASE_SECONDS = 3.0
MORE_SECONDS = 5.0


async def longest_stall(seconds: list[float]) -> None:
    """How long others had to wait for their turn, at most, noted as the list's one item."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(0.001)
        now = time.monotonic()
        seconds[0] = max(seconds[0], now - last)
        last = now


@pytest.mark.fleet
async def test_a_thousand_running_answers_are_adopted_in_seconds(
    own_redis: RedisServer, database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All are stored, and none is under way. That takes five seconds of a processor at most; on one that has
    time for it, five seconds past the lease."""
    engines = [RedisEngine(RedisLink(own_redis.url), name) for name in ("a", "b")]
    dead, other = (
        Member(each, each.token, tmp_path, lease_seconds=LEASE_SECONDS) for each in engines
    )
    store = await PostgresStore.open(database_url)
    saver = Saver(store, NoJournal())
    saver.start()
    other.adoption._save = saver.save
    stall = [0.0]
    await dead.start()
    await other.start()
    watching = asyncio.create_task(longest_stall(stall))
    try:
        for number in range(MANY):
            assert begin(dead.journal, f"chatcmpl-{number}")
        for word in range(WORDS):
            for number in range(MANY):
                run = run_of(PATTERNS[0], (f"word{word} ",), "as it is")
                dead.journal.append(f"chatcmpl-{number}", [ChunkReceived(run)], 1.0 + word)
            await asyncio.sleep(0)
        await asyncio.wait_for(dead.outbox.sent(), 120)
        await asyncio.sleep(LEASE_SECONDS * 1.5)  # who looks on gives everybody a lease first
        stall[0] = 0.0
        await dead.die()
        died_at, cpu = time.monotonic(), time.process_time()
        async with asyncio.timeout(60):
            while other.adoption.adopted < MANY:
                await asyncio.sleep(0.01)
        seconds, cpu = time.monotonic() - died_at, time.process_time() - cpu
        with capsys.disabled():
            print(
                f"\n{MANY} answers of {WORDS} chunks adopted {seconds:.2f} s after the death, lease"
                f" {LEASE_SECONDS:g} s, {cpu:.2f} s of CPU, longest stall {stall[0] * 1000:.0f} ms"
            )
        states = execute(
            database_url,
            "SELECT error->>'code', chunk_count, count(*) FROM completions GROUP BY 1, 2",
        )
        assert [("process_died", WORDS, MANY)] == states
        assert [] == list(await other.engine.left_by("a"))
        assert cpu < MORE_SECONDS
    finally:
        watching.cancel()
        await dead.close()
        await other.close()
        await saver.stop(1)
        await store.close()
        for engine in engines:
            await engine.close()
