"""Asking twice over several processes, and over their deaths: the model is asked once."""

import asyncio
import json
import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import psycopg2
import pytest

from tests.faults.damage import lines_of
from tests.postgres import execute
from tests.service.process.conftest import (
    asked,
    broken,
    exchanges,
    reading,
    settings,
    workers_of,
)
from tests.service.readers.conftest import Read
from tests.service.stage.backend import Backend, Exchange, say
from tests.service.stage.process import Process
from tests.service.stage.workers import Door, doors

KEY = {"Idempotency-Key": "k-1"}
REPLAYED = "Idempotency-Replayed"


async def chatters(exchange: Exchange) -> None:
    """Say word after word, until somebody is killed."""
    await exchange.start()
    for number in range(100_000):
        await exchange.words(f"w{number} ")
        await asyncio.sleep(0.002)


async def is_silent(exchange: Exchange) -> None:
    """Begin, and say nothing."""
    await exchange.start()
    await exchange.client_closed.wait()


@pytest.mark.parametrize("is_quick", [False, True])
async def test_twenty_at_once_over_two_workers_ask_the_model_once(
    spawn: Any, database_url: str, script: Backend, is_quick: bool
) -> None:
    """Whether the answer is over at once or runs while they come."""
    if is_quick:
        script.script = say("Hello", " world")
    process = spawn(settings(database_url, script))
    async with doors(process, await workers_of(process), 10) as (ours, theirs):

        async def ask(door: Door) -> Read:
            async with asked(door, headers=KEY) as read:
                if not is_quick:
                    await read.until(1)
                    together.release()
                return await read.whole()

        together = asyncio.Semaphore(0)
        asking = [asyncio.create_task(ask(door)) for door in (*ours, *theirs)]
        if not is_quick:
            for _ in asking:
                await together.acquire()
            (exchange,) = script.exchanges
            await exchange.words(" world")
            await exchange.finish()
        reads = await asyncio.gather(*asking)
    assert 1 == len(script.exchanges)
    assert 1 == len({read.completion_id for read in reads})
    assert 1 == len({tuple(read.events) for read in reads})
    assert 3 == len(reads[0].chunks)
    assert b"data: [DONE]" == reads[0].events[-1]
    assert 19 == sum(REPLAYED in read.response.headers for read in reads)
    assert 0 == await asyncio.to_thread(process.stop)
    assert [("completed",)] == execute(database_url, "SELECT state FROM completions")


async def after_the_kill(
    spawn: Any, config: Any, process: Process, pid: int, count: int
) -> tuple[Process, int]:
    """The service afterwards, and who is there in place of the killed one."""
    if config["server"]["workers"] > 1:
        return process, (await workers_of(process, count))[0]
    process.popen.wait()
    process = spawn(config)
    return process, (await workers_of(process))[0]


async def patiently(door: Door, **asking: Any) -> Read:
    """Ask until it is answered; whoever is to come again is told so."""
    while True:
        name = asking.get("completion_id")
        async with reading(door, **asking) if name else asked(door, **asking) as read:
            await read.whole()
        if read.response.status not in (409, 503):
            return read
        assert "Retry-After" in read.response.headers
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_killed_process_answer_is_resumed_and_repeated(
    spawn: Any, database_url: str, backend: Backend, tmp_path: Path, workers: int
) -> None:
    """From any position what was written down, with its true end; a repeat gets the same, and nobody
    asks the model again."""
    backend.script = chatters
    config = settings(database_url, backend, workers)
    process = spawn(config)
    pids = await workers_of(process)
    async with doors(process, pids, 2) as (ours, *_), asked(ours[0], headers=KEY) as first:
        name = first.completion_id
        async with reading(ours[1], name) as left:
            await left.until(3)
            left.leave()
        await first.until(50)
        os.kill(pids[0], signal.SIGKILL)
        await broken(first)
    assert len(first.chunks) == len(first.events)
    position = len(left.chunks)

    if workers == 1:
        process.popen.wait()
        written = {word for line in lines_of(tmp_path / "var/journal") for word in line.words}
    process, pid = await after_the_kill(spawn, config, process, pids[0], 3)
    async with doors(process, [pid, *pids[1:]], 5) as ((one, two, three, four, _), *others):
        repeat = await patiently(one, headers=KEY)
        assert (200, name, "true") == (
            repeat.response.status,
            repeat.completion_id,
            repeat.response.headers[REPLAYED],
        )
        assert first.chunks == repeat.chunks[: len(first.chunks)]
        texts = [json.loads(each[6:])["choices"][0]["delta"]["content"] for each in repeat.chunks]
        assert [f"w{number} " for number in range(len(texts))] == texts
        if workers == 1:
            assert written == set(texts)
        assert "process_died" == json.loads(repeat.events[-1][6:])["error"]["code"]
        assert repeat.chunks == repeat.events[:-1]

        resumed = await patiently(two, completion_id=name, starting_after=position)
        assert left.events + resumed.events == repeat.events
        for door in (each[0] for each in others):
            whole = await patiently(door, completion_id=name)
            assert repeat.events == whole.events
        end = await patiently(three, completion_id=name, starting_after=len(texts))
        assert repeat.events[-1:] == end.events
        beyond = await patiently(three, completion_id=name, starting_after=len(texts) + 1)
        assert 400 == beyond.response.status

        plain = await patiently(four, headers=KEY, stream=False)
        assert 500 == plain.response.status
        assert "false" == plain.response.headers["x-should-retry"]
        body = plain.json()
        assert "process_died" == body["error"]["code"]
        message = body["completion"]["choices"][0]["message"]
        assert "".join(texts) == message["content"]
    assert 1 == len(backend.exchanges)
    assert 0 == await asyncio.to_thread(process.stop)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_process_killed_before_the_first_token_frees_the_key(
    spawn: Any, database_url: str, backend: Backend, workers: int
) -> None:
    """Nothing was said, so the repeat is a real one; its own repeats find it."""
    backend.script = is_silent
    config = settings(database_url, backend, workers)
    process = spawn(config)
    pids = await workers_of(process)
    async with doors(process, pids, 1) as ((door, *_), *_):
        asking = asyncio.ensure_future(door.post(headers=KEY))
        await exchanges(backend, 1)
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await asking
    backend.script = say("Hello", " world")
    process, pid = await after_the_kill(spawn, config, process, pids[0], 3)
    async with doors(process, [pid, *pids[1:]], 2) as ((one, two), *others):
        second = await patiently(one, headers=KEY)
        assert b"data: [DONE]" == second.events[-1]
        assert REPLAYED not in second.response.headers
        for door in (two, *(each[0] for each in others)):
            third = await patiently(door, headers=KEY)
            assert "true" == third.response.headers[REPLAYED]
            assert second.events == third.events
    assert 2 == len(backend.exchanges)
    assert 0 == await asyncio.to_thread(process.stop)
    states = execute(database_url, "SELECT state FROM completions ORDER BY created_at")
    assert [("failed",), ("completed",)] == states


async def test_an_answer_that_is_being_brought_back_is_not_called_unknown(
    spawn: Any, database_url: str, backend: Backend
) -> None:
    """While its commit takes its time, whoever reads or repeats it is told to come again; nothing
    overtakes it."""
    backend.script = chatters
    config = settings(database_url, backend, 1)
    process = spawn(config)
    pids = await workers_of(process)
    async with doors(process, pids, 1) as ((door,),), asked(door, headers=KEY) as first:
        await first.until(3)
        os.kill(pids[0], signal.SIGKILL)
        await broken(first)
    with closing(psycopg2.connect(database_url)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE completions IN SHARE MODE")  # nothing is stored
        process, pid = await after_the_kill(spawn, config, process, pids[0], 3)
        async with doors(process, [pid], 3) as ((one, two, three),):
            for query in ({}, {"stream": "true", "starting_after": 2}):
                status, body = await one.shown(f"/{first.completion_id}", **query)
                assert (503, "answer_unavailable") == (status, body["error"]["code"])
            async with asked(two, headers=KEY) as pending:
                assert 409 == pending.response.status
                await pending.whole()
            connection.rollback()
            whole = await patiently(three, completion_id=first.completion_id)
            assert first.chunks == whole.chunks[: len(first.chunks)]
            async with asyncio.timeout(10):  # what was found is stored a moment before that is over
                while (await one.shown("/chatcmpl-unknown"))[0] == 503:
                    await asyncio.sleep(0.01)
            status, body = await one.shown("/chatcmpl-unknown")
            assert (404, "not_found") == (status, body["error"]["code"])
            repeat = await patiently(two, headers=KEY)
            assert whole.events == repeat.events
    assert 1 == len(backend.exchanges)
    assert 0 == await asyncio.to_thread(process.stop)


async def test_a_failure_that_waits_for_its_commit_frees_the_key_on_every_worker(
    spawn: Any, database_url: str, backend: Backend
) -> None:
    """The repeat at another worker is a real one, too, though nothing is stored yet."""
    config = settings(database_url, backend)
    config["database"]["commit_timeout_seconds"] = 0.05
    process = spawn(config)
    async with doors(process, await workers_of(process), 1) as ((ours,), (theirs,)):
        with closing(psycopg2.connect(database_url)) as connection:
            with connection.cursor() as cursor:
                cursor.execute("LOCK TABLE completions IN SHARE MODE")  # nothing is stored

            async def fail(exchange: Exchange) -> None:
                await exchange.json(500, {"error": {"message": "No.", "code": "no"}})

            backend.script = fail
            async with asked(ours, headers=KEY) as first:
                assert 500 == first.response.status
            backend.script = say("Hello")
            async with asked(theirs, headers=KEY) as second:
                await second.whole()
            assert 200 == second.response.status, second.seen
            assert REPLAYED not in second.response.headers
            assert first.completion_id != second.completion_id
    assert 2 == len(backend.exchanges)
    assert 0 == await asyncio.to_thread(process.stop)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
