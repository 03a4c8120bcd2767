"""Readers of one answer over several processes: real workers, real kills, a backend of the test's own."""

import asyncio
import json
import os
import signal
import sys
from typing import Any

import pytest

from tests.service.process.conftest import (
    asked,
    broken,
    exchanges,
    reading,
    settings,
    workers_of,
)
from tests.service.stage.backend import Backend
from tests.service.stage.workers import Door, doors

ANN, BOB = "sk-ann-0123456789", "sk-bob-0123456789"


async def test_a_worker_answers_for_anothers_running_completion(
    spawn: Any, database_url: str, script: Backend
) -> None:
    """As a stream from any position, as an object, in the list; both ends are the same."""
    process = spawn(settings(database_url, script))
    async with doors(process, await workers_of(process), 3) as (ours, theirs):
        async with asked(ours[0]) as first:
            (exchange,) = await exchanges(script, 1)
            await exchange.words(" world")
            await first.until(2)
            name = first.completion_id
            async with reading(theirs[0], name) as second:
                async with reading(theirs[1], name, starting_after=1) as third:
                    await asyncio.gather(second.until(2), third.until(1))
                    for door in (ours[1], theirs[2]):
                        status, shown = await door.shown(f"/{name}")
                        message = shown["choices"][0]["message"]
                        assert (200, "streaming") == (status, shown["state"])
                        assert "Hello world" == message["content"]
                        assert shown["choices"][0]["finish_reason"] is None
                        assert [name] == await running(door)
                    await exchange.words("!")
                    await exchange.finish()
                    await asyncio.gather(first.whole(), second.whole(), third.whole())
            assert 200 == second.response.status
            assert name == second.completion_id == third.completion_id
            assert b"data: [DONE]" == first.events[-1]
            assert first.events == second.events
            assert first.events[1:] == third.events
        assert [] == await running(theirs[0])
        assert "completed" == (await theirs[0].shown(f"/{name}"))[1]["state"]
    assert 0 == await asyncio.to_thread(process.stop)


async def running(door: Door) -> list[str]:
    """The ids of what the list says is running."""
    _, listed = await door.shown(state="streaming")
    return [each["id"] for each in listed["data"]]


async def test_the_list_of_running_ones_is_all_workers(
    spawn: Any, database_url: str, script: Backend
) -> None:
    """Each worker lists what runs here and there, newest first, by pages too."""
    process = spawn(settings(database_url, script))
    async with doors(process, await workers_of(process), 3) as (ours, theirs):
        names: list[str] = []
        async with asked(ours[0]) as a, asked(theirs[0]) as b, asked(ours[1]) as c:
            for read in (a, b, c):
                await read.until(1)
                names.append(read.completion_id)
            for door in (ours[2], theirs[1]):
                assert set(names) == set(await running(door))
                status, page = await door.shown(state="streaming", limit=2)
                assert (200, 2, True) == (status, len(page["data"]), page["has_more"])
                _, rest = await door.shown(state="streaming", after=page["last_id"])
                assert set(names) == {each["id"] for each in page["data"] + rest["data"]}
                assert [] == (await door.shown(state="pending"))[1]["data"]
    assert 0 == await asyncio.to_thread(process.stop)


async def test_a_worker_stops_anothers_completion_and_its_readers_are_told(
    spawn: Any, database_url: str, script: Backend
) -> None:
    """By the bare end, on whichever worker they read."""
    process = spawn(settings(database_url, script))
    async with doors(process, await workers_of(process), 2) as (ours, theirs):
        async with asked(ours[0]) as first:
            async with reading(theirs[0], first.completion_id) as second:
                await asyncio.gather(first.until(1), second.until(1))
                status, body = await theirs[1].cancel(first.completion_id)
                assert (200, True) == (status, body["cancelled"])
                await asyncio.gather(first.whole(), second.whole())
            assert 1 == len(first.events)
            assert first.events == second.events
            assert 404 == (await theirs[1].cancel(first.completion_id))[0]
    assert 0 == await asyncio.to_thread(process.stop)


async def test_unknown_and_foreign_ids_are_not_found_on_any_worker(
    spawn: Any, database_url: str, script: Backend
) -> None:
    """In all ways of asking, also for what runs on another worker."""
    config = settings(database_url, script)
    process = spawn(config, API_KEYS=f"ann:{ANN},bob:{BOB}")
    pids = await workers_of(process)
    async with (
        doors(process, pids, 2, key=ANN) as anns,
        doors(process, pids, 1, key=BOB) as bobs,
        asked(anns[0][0], store=False) as first,
    ):
        (exchange,) = await exchanges(script, 1)
        await first.until(1)
        wrong = [(door, first.completion_id) for (door,) in bobs]
        wrong += [(each[1], "chatcmpl-unknown") for each in anns]
        for door, name in wrong:
            for query in ({}, {"stream": "true"}, {"stream": "true", "starting_after": 1}):
                status, body = await door.shown(f"/{name}", **query)
                assert (404, "not_found") == (status, body["error"]["code"])
            assert 404 == (await door.cancel(name))[0]
            assert [] == await running(door)
        assert [] == await running(anns[1][1])  # store: false
        async with reading(anns[1][1], first.completion_id) as second:
            await second.until(1)
            await exchange.finish()
            await asyncio.gather(first.whole(), second.whole())
        assert first.events == second.events
    assert 0 == await asyncio.to_thread(process.stop)


async def test_a_killed_worker_breaks_its_readers_connections_everywhere(
    spawn: Any, database_url: str, script: Backend
) -> None:
    """Nobody takes what there is for the whole; each resumes at the other worker, and gets the rest of
    what was written down, and its true end."""
    process = spawn(settings(database_url, script))
    pids = await workers_of(process)
    async with doors(process, pids, 4) as (ours, theirs):
        async with asked(ours[0]) as first:
            (exchange,) = await exchanges(script, 1)
            await exchange.words(" world", "!")
            await first.until(3)
            name = first.completion_id
            async with (
                reading(theirs[0], name) as second,
                reading(theirs[1], name, starting_after=2) as third,
            ):
                await asyncio.gather(second.until(3), third.until(1))
                os.kill(pids[0], signal.SIGKILL)
                await asyncio.gather(*map(broken, (first, second, third)))
        assert first.events == second.events
        assert first.events[2:] == third.events
        statuses = list[int]()
        while not statuses or statuses[-1] != 200:
            async with reading(theirs[2], name, starting_after=2) as resumed:
                statuses.append(resumed.response.status)
                if statuses[-1] == 200:
                    await resumed.whole()
            await asyncio.sleep(0.05)
        assert first.events[2:] == resumed.chunks
        error = json.loads(resumed.events[-1].removeprefix(b"data: "))["error"]
        assert "process_died" == error["code"]
        async with reading(theirs[3], name) as again:
            assert [*first.events, resumed.events[-1]] == (await again.whole()).events
        assert {200, 503} >= set(statuses), statuses
    assert 0 == await asyncio.to_thread(process.stop)


async def test_a_worker_that_hangs_holds_no_reader_up_for_ever(
    spawn: Any, database_url: str, script: Backend
) -> None:
    """Who asks elsewhere gets an error in bounded time, whose stream has begun is cut off; once the
    worker goes on, so does the answer."""
    process = spawn(settings(database_url, script))
    pids = await workers_of(process)
    key = {"Idempotency-Key": "k-1"}
    async with doors(process, pids, 7) as (ours, theirs), asked(ours[0], headers=key) as first:
        name = first.completion_id
        async with reading(theirs[5], name) as early:
            await asyncio.gather(first.until(1), early.until(1))
            os.kill(pids[0], signal.SIGSTOP)
            try:
                asking: list[Any] = [
                    theirs[0].get(f"/{name}"),
                    theirs[1].get(state="streaming"),
                    theirs[2].read(name),
                    theirs[3].post(headers=key),
                    theirs[4].post(headers=key, stream=False),
                ]
                async with asyncio.timeout(60):
                    *refused, _ = await asyncio.gather(*map(refusal, asking), broken(early))
            finally:
                os.kill(pids[0], signal.SIGCONT)
        assert [(503, "answer_unavailable")] * len(asking) == refused
        async with reading(theirs[6], name) as second:
            await second.until(1)
            await script.exchanges[0].finish()
            await asyncio.gather(first.whole(), second.whole())
        assert first.events == second.events
        assert first.events[:1] == early.events
    assert 1 == len(script.exchanges)
    assert 2 == len({line["worker"] for line in process.lines_of("worker started")})
    assert 0 == await asyncio.to_thread(process.stop)


async def refusal(asking: Any) -> tuple[int, str]:
    """Status and code of an error that may be tried again."""
    async with asking as response:
        assert "Retry-After" in response.headers
        return response.status, (await response.json())["error"]["code"]


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
