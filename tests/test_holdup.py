"""The measuring of hold-ups sees what it is to see, and not what it isn't."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.holdup import BOUND_MS, LoopTime, cpu_clock, measured_loop, watched_process
from tests.service.stage.process import Process, config


def busy(seconds: float) -> None:
    """Compute for so long, by this thread's CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def hold_interpreter() -> float:
    """One call in C that lets no other thread run meanwhile; its CPU time in milliseconds."""
    began = time.thread_time()
    sum(range(12_000_000))
    return (time.thread_time() - began) * 1000


async def test_computing_is_seen() -> None:
    """Who computes for 300 ms in the loop holds it up for 300 ms, also as the very last thing."""
    async with measured_loop() as loop_time:
        await asyncio.sleep(0.01)
        busy(0.3)
    assert loop_time.longest_ms >= 295
    assert loop_time.longest_wall_ms >= loop_time.longest_ms


async def test_turns_are_told_apart() -> None:
    """Who computes as long, but gives the others their turns, holds nobody up."""
    async with measured_loop() as loop_time:
        for _ in range(30):
            busy(0.01)
            await asyncio.sleep(0)
            await asyncio.sleep(0.002)
    assert loop_time.longest_ms < loop_time.bound_ms
    assert loop_time.beats > 20


async def test_waiting_is_no_hold_up() -> None:
    """A loop with nothing to do isn't held up."""
    async with measured_loop() as loop_time:
        await asyncio.sleep(0.3)
    assert loop_time.longest_ms < loop_time.bound_ms
    assert loop_time.beats > 10


async def test_blocking_is_seen_by_the_clock() -> None:
    """Who blocks the loop without computing is seen by the clock alone."""
    async with measured_loop() as loop_time:
        time.sleep(0.3)  # noqa: ASYNC251  # the very mistake that is to be seen
    assert loop_time.longest_wall_ms >= 295
    assert loop_time.longest_ms < loop_time.bound_ms


async def test_a_thread_that_keeps_the_interpreter_is_seen() -> None:
    """A C call in another thread that lets nobody else run holds the loop up as well."""
    async with measured_loop() as loop_time:
        took_ms = await asyncio.to_thread(hold_interpreter)
    assert took_ms > 50
    assert loop_time.longest_ms > took_ms / 2


@pytest.fixture
def crowd() -> Iterator[None]:
    """More busy processes than most machines have cores, for a second."""
    spin = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(4)]
    yield
    for other in others:
        other.wait()


@pytest.mark.usefixtures("crowd")
async def test_a_busy_machine_is_no_hold_up() -> None:
    """What other processes compute doesn't count."""
    async with measured_loop() as loop_time:
        await asyncio.sleep(0.5)
    assert loop_time.longest_ms < loop_time.bound_ms


def test_a_slow_machine_gets_a_larger_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound grows with the time of the reference computation, and is never below its figure."""
    figures: Any = iter((1.0, 60.0))
    monkeypatch.setattr("tests.holdup.reference_ms", lambda: next(figures))
    loop_time = LoopTime()
    assert BOUND_MS == loop_time.bound_ms
    loop_time.close()
    assert 10 * BOUND_MS == loop_time.bound_ms


def test_the_clock_of_a_process_is_its_cpu_time() -> None:
    """The clock of this process goes while it computes."""
    clock = cpu_clock(os.getpid())
    began = clock()
    busy(0.05)
    assert clock() - began >= 0.05


def test_a_service_process_is_watched(tmp_path: Path, database_url: str) -> None:
    """A service that does nothing in particular holds nobody up; one that is gone is told."""
    process = Process(tmp_path, config(database_url))
    try:
        port = process.port
        with watched_process(process.popen.pid, port) as loop_time:
            time.sleep(0.3)
        process.stop()
    finally:
        process.end()
    assert loop_time.longest_ms < loop_time.bound_ms
    assert loop_time.beats > 5
    with pytest.raises(OSError), watched_process(os.getpid(), port):
        time.sleep(0.1)
