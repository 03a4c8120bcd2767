"""One scrape of several real processes: their sum, also when one of them is killed, hangs or is alone."""

import asyncio
import os
import signal
import sys
from typing import Any

import aiohttp
import pytest

from tests.service.metrics.conftest import PATH, Scraped
from tests.service.process.conftest import workers_of
from tests.service.stage.process import Process, config
from tests.service.stage.workers import Door, doors

ENDED = "verbatim_completions_total"
LAG = "verbatim_loop_lag_seconds_count"


async def scrape(process: Process) -> Scraped:
    """On a connection of its own, so at whichever worker accepts it."""
    url = process.line("serving")["admin_url"] + PATH
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        assert 200 == response.status
        return Scraped(await response.text())


async def answered(*askers: Door) -> None:
    """Ask a completion at each, and read it."""
    for door in askers:
        async with door.post(model="demo") as response:
            await response.read()


@pytest.fixture
async def two(spawn: Any, database_url: str) -> tuple[Process, list[int]]:
    """A service of two workers, with operators' own address."""
    settings = config(database_url, reply="Hello there.") | {
        "server": {"workers": 2},
        "admin": {"port": 0},
    }
    process = spawn(settings)
    return process, await workers_of(process)


async def test_a_scrape_has_the_sum_of_all_workers(two: tuple[Process, list[int]]) -> None:
    """Whoever is asked answers for all; figures of a process have its label."""
    process, pids = two
    async with doors(process, pids, 1) as ((first,), (second,)):
        await answered(first, first, second)
        for _ in range(6):
            found = await scrape(process)
            assert 3 == found.value(ENDED, state="completed")
            assert 3 == found.value("verbatim_completion_seconds_count")
            assert 3 == found.value("verbatim_saves_total", outcome="saved")
            assert 2 == found.value("verbatim_workers")
            assert {"0", "1"} == found.labels("verbatim_process_resident_bytes", "worker")
            assert 1 == found.value("verbatim_database_up")


async def test_a_worker_that_is_killed_takes_no_figures_with_it(
    two: tuple[Process, list[int]],
) -> None:
    """No sum falls: its figures stay while it is dead, and its successor counts on from them."""
    process, pids = two
    async with doors(process, pids, 1) as ((first,), (second,)):
        await answered(first, first, second)
        await scrape(process)
        os.kill(pids[0], signal.SIGKILL)
        await asyncio.to_thread(process.line, "worker died")
        while (found := await scrape(process)).value("verbatim_workers") < 2:
            assert 3 == found.value(ENDED)
            await asyncio.sleep(0.02)
        await asyncio.to_thread(process.line, "worker started", 3)
        pids[0] = process.line("worker started", 3)["pid"]
        async with doors(process, pids, 1) as ((successor,), _):
            await answered(successor, second)
            found = await scrape(process)
            assert (5, 2) == (found.value(ENDED), found.value("verbatim_workers"))


@pytest.mark.skipif(sys.platform != "linux", reason="a stopped worker's port answers elsewhere")
async def test_a_worker_that_hangs_costs_a_second(two: tuple[Process, list[int]]) -> None:
    """The others are answered for, and what it had counted is still in the sum."""
    process, pids = two
    async with doors(process, pids, 1) as ((first,), (second,)):
        await answered(first, second)
        await scrape(process)
        os.kill(pids[0], signal.SIGSTOP)
        try:
            begun = asyncio.get_running_loop().time()
            found = await ask_until_answered(process)
            took = asyncio.get_running_loop().time() - begun
        finally:
            os.kill(pids[0], signal.SIGCONT)
        assert (2, 1) == (found.value(ENDED), found.value("verbatim_workers"))
        assert {"1"} == found.labels("verbatim_process_resident_bytes", "worker")
        assert took < 10


async def ask_until_answered(process: Process) -> Scraped:
    """Scrape on several connections at once, until one is answered: those of the stopped one wait."""
    asking = [asyncio.create_task(scrape(process)) for _ in range(12)]
    done, waiting = await asyncio.wait(asking, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    return done.pop().result()
