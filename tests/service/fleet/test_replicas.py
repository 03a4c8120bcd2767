"""Completions read and stopped at another replica than the one that runs them: real processes, a real
Redis, a backend of the test's own."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.redis_servers import RedisServer
from tests.service.fleet.conftest import MakeReplica
from tests.service.metrics.conftest import Scraped
from tests.service.process.conftest import asked, exchanges, reading, workers_of
from tests.service.readers.conftest import Read
from tests.service.stage.backend import Backend, Exchange
from tests.service.stage.process import answers
from tests.service.stage.workers import Door, doors


@asynccontextmanager
async def begun(door: Door, script: Backend) -> AsyncIterator[tuple[Read, Exchange]]:
    """An answer whose first word has come, and the backend's side of it."""
    async with asked(door) as first:
        (exchange,) = await exchanges(script, 1)
        await first.until(1)
        yield first, exchange


async def test_a_replica_shows_what_runs_at_another(
    start_replica: MakeReplica, open_door: Any, script: Backend
) -> None:
    """As a stream from any position, and as an object; every reader gets the same bytes."""
    a, b = start_replica("a"), start_replica("b")
    (ours,), theirs = await open_door(a), await open_door(b, 3)
    async with asked(ours) as first:
        (exchange,) = await exchanges(script, 1)
        await exchange.words(" world")
        await first.until(2)
        name = first.completion_id
        async with reading(theirs[0], name) as second:
            async with reading(theirs[1], name, starting_after=1) as third:
                await asyncio.gather(second.until(2), third.until(1))
                status, shown = await theirs[2].shown(f"/{name}")
                message = shown["choices"][0]["message"]
                assert (200, "streaming", "Hello world") == (
                    status,
                    shown["state"],
                    message["content"],
                )
                await exchange.words("!")
                await asyncio.gather(second.until(3), third.until(2))
                await exchange.finish()
                await asyncio.gather(first.whole(), second.whole(), third.whole())
        assert first.events == second.events
        assert first.events[1:] == third.events
    assert "completed" == (await theirs[2].shown(f"/{name}"))[1]["state"]
    for process in (a, b):
        assert 0 == await asyncio.to_thread(process.stop)


async def test_a_replica_stops_what_runs_at_another(
    start_replica: MakeReplica, open_door: Any, script: Backend
) -> None:
    """And is told whether that did it; what nobody runs isn't found."""
    a, b = start_replica("a"), start_replica("b")
    (ours,), theirs = await open_door(a), await open_door(b, 2)
    async with asked(ours) as first:
        async with reading(theirs[0], first.completion_id) as second:
            await asyncio.gather(first.until(1), second.until(1))
            assert (200, True) == _said(await theirs[1].cancel(first.completion_id))
            await asyncio.gather(first.whole(), second.whole())
        assert first.events == second.events
        assert 404 == (await theirs[1].cancel("chatcmpl-unknown"))[0]


def _said(answer: tuple[int, Any]) -> tuple[int, Any]:
    return answer[0], answer[1]["cancelled"]


@pytest.mark.fleet
async def test_with_the_log_off_its_replica_is_named(
    start_replica: MakeReplica, open_door: Any, script: Backend
) -> None:
    """What isn't copied can't be read elsewhere, and can be stopped."""
    a, b = start_replica("a", journal="off"), start_replica("b", journal="off")
    (ours,), (theirs,) = await open_door(a), await open_door(b)
    async with asked(ours) as first:
        await first.until(1)
        status, body = await theirs.shown(f"/{first.completion_id}", stream="true")
        assert (409, "runs_elsewhere") == (status, body["error"]["code"])
        assert "'a'" in body["error"]["message"]
        assert (200, True) == _said(await theirs.cancel(first.completion_id))


@pytest.mark.fleet
async def test_a_replica_that_dies_leaves_no_reader_hanging(
    start_replica: MakeReplica, open_door: Any, script: Backend
) -> None:
    """Another brings to an end what it ran: readers there see all that was copied, and how it ended; the
    partial answer is stored at once. The dead one's own process finds that so when it is back."""
    a, b = start_replica("a"), start_replica("b")
    (ours,), (reads, shows) = await open_door(a), await open_door(b, 2)
    async with asked(ours) as first:
        await first.until(1)
        name = first.completion_id
        async with reading(reads, name) as second:
            await second.until(1)
            a.stop(signal.SIGKILL)
            async with asyncio.timeout(20):
                await second.whole()
        assert b"process_died" in second.events[-1]
        assert first.events[0] == second.events[0]
        assert {"failed": "Hello"} == await stored(shows, name)
    again = start_replica("a")
    await open_door(again)
    await asyncio.to_thread(again.line, "recovered")
    assert {"failed": "Hello"} == await stored(shows, name)


async def stored(door: Door, name: str) -> dict[str, str]:
    """An answer's text by its state, once it runs no more."""
    async with asyncio.timeout(20):
        while (shown := await door.shown(f"/{name}"))[0] != 200 or (
            shown[1]["state"] == "streaming"
        ):
            await asyncio.sleep(0.1)
    return {shown[1]["state"]: shown[1]["choices"][0]["message"]["content"]}


async def test_streams_go_on_while_the_engine_is_away(
    start_replica: MakeReplica, open_door: Any, script: Backend, own_redis: RedisServer
) -> None:
    """Readers elsewhere are told to come back, and read all of it once the engine is there again."""
    a, b = start_replica("a"), start_replica("b")
    (ours,), (theirs, shows) = await open_door(a), await open_door(b, 2)
    async with begun(ours, script) as (first, exchange):
        name = first.completion_id
        own_redis.stop()
        await exchange.words(" world")
        await first.until(2)
        status, body = await shows.shown(f"/{name}", stream="true")
        assert (503, "fleet_unavailable") == (status, body["error"]["code"])
        own_redis.start()
        async with asyncio.timeout(20):
            while (await shows.shown(f"/{name}"))[0] != 200:
                await asyncio.sleep(0.1)
        async with reading(theirs, name) as second:
            await second.until(2)
            await exchange.finish()
            await asyncio.gather(first.whole(), second.whole())
        assert first.events == second.events


@pytest.mark.fleet
async def test_what_is_shown_before_send_is_in_the_log_first(
    start_replica: MakeReplica, open_door: Any, script: Backend, own_redis: RedisServer
) -> None:
    """No client sees a word that the engine doesn't have."""
    a = start_replica("a", journal="before_send")
    (ours,) = await open_door(a)
    async with begun(ours, script) as (first, exchange):
        own_redis.stop()
        await exchange.words(" world")
        await asyncio.sleep(1)
        assert 1 == len(first.events)
        own_redis.start()
        async with asyncio.timeout(20):
            await first.until(2)
        await exchange.finish()
        await first.whole()


@pytest.mark.fleet
async def test_two_processes_of_one_name_are_noticed(
    start_replica: MakeReplica, open_door: Any, script: Backend
) -> None:
    """The second one serves, and says that the name is another's."""
    a, same = start_replica("a"), start_replica("a")
    await open_door(a)
    await open_door(same)
    lines = [each.lines_of("another process is this replica") for each in (a, same)]
    assert [0, 1] == sorted(len(each) for each in lines)


@pytest.mark.fleet
async def test_workers_of_a_replica_are_seen_once(
    start_replica: MakeReplica, open_door: Any, script: Backend
) -> None:
    """Each is a replica of its own, and a sibling: lists, the page and metrics count it once."""
    b = start_replica("b", workers=2)
    pids = await workers_of(b, 2)
    a = start_replica("a")
    (ours,) = await open_door(a)
    async with doors(b, pids, 2) as ((first, lists), (second, too)):
        async with asked(first) as one, asked(second) as two, asked(ours) as three:
            await asyncio.gather(one.until(1), two.until(1), three.until(1))
            expected = {each.completion_id for each in (one, two, three)}
            for door in (lists, too):
                shown = await listed(door)
                assert sorted(expected) == sorted(each["id"] for each in shown["data"])
                assert "partial" not in shown
            url = f"http://127.0.0.1:{b.port}"
            async with aiohttp.ClientSession() as http:
                async with http.get(f"{url}/") as response:
                    page = await response.text()
                async with http.get(f"{url}/page/health") as response:
                    health = await response.text()
                async with http.get(f"{url}/metrics") as response:
                    figures = Scraped(await response.text())
            assert '<dd data-total="streams">3</dd>' in page
            assert (
                3 == health.count('data-label="Replica"') == health.count('chip completed">alive')
            )
            assert 3 == figures.value("verbatim_fleet_replicas", state="alive")
            assert 2 == figures.value("verbatim_fleet_lease_held")
    for process in (a, b):
        assert 0 == await asyncio.to_thread(process.stop)


async def listed(door: Door) -> Any:
    status, shown = await door.shown(state="streaming")
    assert 200 == status
    return shown


@pytest.mark.fleet
async def test_a_deleted_answer_is_gone_everywhere(
    start_replica: MakeReplica, open_door: Any, script: Backend, own_redis: RedisServer
) -> None:
    """At every replica, as an object and as a stream, and in the engine."""
    a, b = start_replica("a"), start_replica("b")
    (ours,), (theirs,) = await open_door(a), await open_door(b)
    async with begun(ours, script) as (first, exchange):
        await exchange.finish()
        await first.whole()
    name = first.completion_id
    assert "completed" == (await theirs.shown(f"/{name}"))[1]["state"]
    async with ours.delete(f"/{name}") as response:
        assert 200 == response.status
    for door in (ours, theirs):
        assert 404 == (await door.shown(f"/{name}"))[0]
        assert 404 == (await door.shown(f"/{name}", stream="true"))[0]
    assert not own_redis.holds(name)


@pytest.mark.fleet
async def test_a_stop_waits_for_no_engine(
    start_replica: MakeReplica,
    open_door: Any,
    script: Backend,
    own_redis: RedisServer,
    database_url: str,
) -> None:
    """Not with `before_send` either: what was said is saved, and the service ends."""
    a = start_replica("a", journal="before_send")
    (ours,) = await open_door(a)
    async with begun(ours, script) as (_, exchange):
        own_redis.stop()
        try:
            await exchange.words(" world")
            await asyncio.sleep(0.5)
            a.popen.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            a.popen.send_signal(signal.SIGTERM)  # ends the grace
            assert 0 == await asyncio.to_thread(a.popen.wait, 25)
        finally:
            own_redis.start()
    assert ["Hello world"] == [words for _, _, words, _ in answers(database_url)]


def test_a_url_that_makes_no_sense_ends_the_start(start_replica: MakeReplica) -> None:
    """With a sentence that says what one looks like, and without the password in it."""
    process = start_replica("a", url="redis+sentinel://:secret@host:port,other/service")
    assert 1 == process.popen.wait(30)
    said = process.log.read_text()
    assert "fleet.url can't be read" in said
    assert "Traceback" not in said and "secret" not in said
