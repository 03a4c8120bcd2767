"""An agent's calls at another replica than the one that makes them: read along, and kept by whoever adopts
them. Real processes, a real Redis, a PostgreSQL."""

import asyncio
import json
import signal
from typing import Any

import pytest

from tests.service.fleet.conftest import MakeReplica
from tests.service.process.conftest import asked, reading
from tests.service.readers.conftest import Read

ROLL = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Roll the dice, and tell the time"}],
}


def agents(tokens_per_second: float) -> dict[str, Any]:
    agent = {
        "name": "demo",
        "kind": "scripted",
        "tokens_per_second": tokens_per_second,
        "tools": {"builtin": ["clock", "dice"]},
    }
    return {"settings_more": {"agents": [agent]}}


def phases(read: Read) -> list[str]:
    """What was told of the calls, in its order."""
    chunks = [json.loads(event.partition(b"data: ")[2]) for event in read.chunks]
    told = [each["activity"]["type"] for each in chunks if "activity" in each]
    return [each.partition(".")[2] for each in told]


async def test_calls_are_read_along_at_another_replica(
    start_replica: MakeReplica, open_door: Any
) -> None:
    """The same bytes, whether they are read from the beginning or from between two calls."""
    a, b = start_replica("a", **agents(40)), start_replica("b", **agents(40))
    (ours,), (whole, rest) = await open_door(a), await open_door(b, 2)
    async with asked(ours, **ROLL) as first:
        await first.until(3)
        name = first.completion_id
        async with reading(whole, name) as second, reading(rest, name, starting_after=5) as third:
            await asyncio.gather(first.whole(), second.whole(), third.whole())
    assert ["started", "started", "finished", "finished"] == phases(first)
    assert first.events == second.events
    assert first.events[5:] == third.events


@pytest.mark.fleet
async def test_calls_of_a_replica_that_died_are_kept_with_their_outcomes(
    start_replica: MakeReplica, open_door: Any
) -> None:
    """They are in its log as its words are, and nobody makes them again."""
    a, b = start_replica("a", **agents(10)), start_replica("b", **agents(10))
    (ours,), (reads, shows) = await open_door(a), await open_door(b, 2)
    async with asked(ours, **ROLL) as first:
        name = first.completion_id
        async with reading(reads, name) as second:
            async with asyncio.timeout(20):
                while phases(second)[-1:] != ["finished"]:
                    await second.until(len(second.events) + 1)
            await second.until(len(second.events) + 3)  # the next turn has begun
            a.stop(signal.SIGKILL)
            async with asyncio.timeout(20):
                await second.whole()
    assert b"process_died" in second.events[-1]
    status, shown = await shows.shown(f"/{name}")
    assert (200, "failed") == (status, shown["state"])
    assert [("clock", "ok"), ("dice", "ok")] == [
        (call["server"], call["outcome"]) for call in shown["tool_calls"]
    ]
