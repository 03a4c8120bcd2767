"""Replicas that die, or are only stopped, while answers run: real processes, a real Redis, a PostgreSQL."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from tests.db.postgres.servers import locked, until_blocked
from tests.postgres import execute
from tests.redis_servers import RedisServer
from tests.service.fleet.conftest import MakeReplica
from tests.service.fleet.test_replicas import begun, stored
from tests.service.process.conftest import reading
from tests.service.readers.conftest import Read
from tests.service.stage.backend import Backend
from tests.service.stage.workers import Door

QUICKLY = {"lease_seconds": 2}


def words_of(read: Read) -> str:
    """What a client was shown."""
    chunks = [json.loads(event.partition(b"data: ")[2]) for event in read.chunks]
    return "".join(each["choices"][0]["delta"].get("content", "") for each in chunks)


@contextmanager
def takes_nothing(server: RedisServer) -> Iterator[None]:
    """The engine refuses to write meanwhile: it is out of memory."""
    with redis.Redis(port=server.port) as client:
        client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            client.config_set("maxmemory", 0)


async def text_once_saved(door: Door, name: str, text: str) -> dict[str, str]:
    """The same as `stored`, once it has so much text."""
    async with asyncio.timeout(30):
        while text not in (found := await stored(door, name)).values():
            await asyncio.sleep(0.1)
    return found


async def test_what_only_the_dead_ones_journal_has_comes_back_with_it(
    start_replica: MakeReplica, open_door: Any, script: Backend, own_redis: RedisServer
) -> None:
    """Until then every replica has what was copied; afterwards all that was shown, and whoever had read
    the shorter answer goes on where that ended."""
    a, b = start_replica("a", **QUICKLY), start_replica("b", **QUICKLY)
    (ours,), (reads, shows) = await open_door(a), await open_door(b, 2)
    async with begun(ours, script) as (first, exchange):
        name = first.completion_id
        async with reading(reads, name) as second:
            await second.until(1)
            with takes_nothing(own_redis):
                await exchange.words(" world")
                await first.until(2)
                a.stop(signal.SIGKILL)
            async with asyncio.timeout(20):
                await second.whole()
        assert b"process_died" in second.events[-1]
        assert {"failed": "Hello"} == await stored(shows, name)
        again = start_replica("a", **QUICKLY)
        await open_door(again)
        assert {"failed": "Hello world"} == await text_once_saved(shows, name, "Hello world")
        async with reading(reads, name, starting_after=1) as third:
            await third.whole()
        assert first.events[1] == third.events[0]
        assert b"process_died" in third.events[-1]


@pytest.mark.parametrize(
    "journal", ["before_send", pytest.param("follow", marks=pytest.mark.fleet)]
)
async def test_one_that_was_stopped_for_long_shows_no_more(
    start_replica: MakeReplica, open_door: Any, script: Backend, journal: str
) -> None:
    """Its client and its readers are told that another has the answer, its model is told to stop, and
    every replica tells the same of it, which is at least what anybody was shown. With `before_send` nobody
    was shown more than the others."""
    how = {**QUICKLY, "journal": journal}
    a, b = start_replica("a", **how), start_replica("b", **how)
    (ours, beside, later), (reads, shows) = await open_door(a, 3), await open_door(b, 2)
    async with begun(ours, script) as (first, exchange):
        name = first.completion_id
        async with reading(beside, name) as along, reading(reads, name) as second:
            await asyncio.gather(along.until(1), second.until(1))
            a.popen.send_signal(signal.SIGSTOP)
            await exchange.words(" world", "!")
            async with asyncio.timeout(20):
                await second.whole()
            assert b"process_died" in second.events[-1]
            assert {"failed": "Hello"} == await stored(shows, name)
            a.popen.send_signal(signal.SIGCONT)
            async with asyncio.timeout(20):
                await asyncio.gather(first.whole(), along.whole(), exchange.client_closed.wait())
    for told in (first, along):
        assert b"adopted_elsewhere" in told.events[-1]
        assert "Hello world!".startswith(words_of(told))
        if journal == "before_send":
            assert "Hello" == words_of(told)
    (text,) = (await text_once_saved(shows, name, "Hello world!")).values()
    assert {"failed": text} == await stored(later, name)


@pytest.mark.fleet
async def test_an_adopter_that_is_killed_is_followed_by_another(
    start_replica: MakeReplica, open_door: Any, script: Backend, database_url: str
) -> None:
    """What it had taken over, and not stored yet, a third one brings to an end."""
    a, b = start_replica("a", **QUICKLY), start_replica("b", **QUICKLY)
    (ours,) = await open_door(a)
    await open_door(b)
    async with begun(ours, script) as (first, exchange):
        await exchange.words(" world")
        await first.until(2)
        with locked(database_url, "completions"):
            a.stop(signal.SIGKILL)
            await asyncio.to_thread(b.line, "adopting")
            await until_blocked(database_url)
            b.stop(signal.SIGKILL)
        assert [] == execute(database_url, "SELECT FROM completions")
        c = start_replica("c", **QUICKLY)
        (theirs,) = await open_door(c)
        await asyncio.to_thread(c.line, "adopted")
        assert {"failed": "Hello world"} == await stored(theirs, first.completion_id)
