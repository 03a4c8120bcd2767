"""What is done for ever goes on, whatever happens to it."""

import asyncio

import pytest

from db.fleet import tending
from db.fleet.tending import Pulse, tend


async def test_a_cancelling_that_nobody_asked_for_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of a library whose own task was cancelled; one that is meant ends it."""
    monkeypatch.setattr(tending, "LONGEST_WAIT_SECONDS", 0.01)
    steps = 0
    went_on = asyncio.Event()

    async def step() -> None:
        nonlocal steps
        steps += 1
        if steps < 3:
            raise asyncio.CancelledError
        went_on.set()
        await asyncio.sleep(10)

    task = asyncio.create_task(tend(step, lambda _: None))
    await asyncio.wait_for(went_on.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


async def test_a_pulse_says_for_how_long_an_answer_is_due() -> None:
    """And that none is while nothing is asked."""
    pulse = Pulse()
    assert 0 == pulse.silent_seconds
    pulse.beat()
    await asyncio.sleep(0.05)
    assert 0.04 < pulse.silent_seconds
    pulse.rest()
    assert 0 == pulse.silent_seconds
