"""Whether a completion that another replica has claimed is lost, on the twin in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from db.fleet import Entry, Run
from db.fleet.memory import MemoryEngine, Shared
from service.fleet.listening import Listener
from service.fleet.whereabouts import Whereabouts

NAME = "chatcmpl-1"
LEASE_SECONDS = 0.3


class Replicas:
    """Two: one that has claimed a completion, and one that asks."""

    def __init__(self) -> None:
        shared = Shared()
        self.holder, self.asker = MemoryEngine("holder", shared), MemoryEngine("asker", shared)
        self.whereabouts = Whereabouts(self.asker, LEASE_SECONDS)
        self.known: set[str] = set()

    async def is_lost(self) -> bool:
        return await self.whereabouts.is_lost("anne", NAME, self.holder.token)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """The holder answers."""

        async def cancel(owner: str, completion_id: str) -> bool | None:
            return None

        listener = Listener(self.holder, cancel)
        listener.knows = lambda owner, completion_id: completion_id in self.known
        listener.start()
        yield
        await listener.stop()


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> Replicas:
    """They don't wait long for each other."""
    monkeypatch.setattr("service.fleet.whereabouts._ANSWER_SECONDS", 0.1)
    return Replicas()


async def test_who_has_claimed_it_says_so(replicas: Replicas) -> None:
    """What it knows may come; what it doesn't is lost at once."""
    await replicas.holder.join("a", 30)
    async with replicas.listening():
        replicas.known = {NAME}
        assert not await replicas.is_lost()
        replicas.known = set()
        assert await replicas.is_lost()


async def test_silence_is_no_answer_as_long_as_it_lives(replicas: Replicas) -> None:
    """A replica that is too busy to answer may be about to begin."""
    await replicas.holder.join("a", 30)
    for _ in range(5):
        assert not await replicas.is_lost()


async def test_who_is_dead_is_given_up_after_a_lease(replicas: Replicas) -> None:
    """Counted from when it was first missed: an engine that was emptied has forgotten everybody."""
    begun = asyncio.get_running_loop().time()
    while not await replicas.is_lost():
        await asyncio.sleep(0.01)
    assert LEASE_SECONDS <= asyncio.get_running_loop().time() - begun < 5


async def test_what_it_left_is_waited_for(replicas: Replicas) -> None:
    """Somebody is to bring it to an end, however long its replica has been dead."""
    engine = replicas.holder
    run = Run(NAME, "anne", "a", engine.token)
    await engine.append([Entry(NAME, 0, 1, b"line\n")], [run])
    replicas.whereabouts._silent_since[engine.token] = 0.0
    assert not await replicas.is_lost()
    await engine.finish(engine.token, [NAME], 60)
    assert await replicas.is_lost()
