"""A network that swallows all that is sent to the engine: no connection is refused, none ends, and nobody
waits for long."""

import asyncio
import time
from asyncio import Future
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from db.fleet import VERSION, Engine, Entry, FleetUnavailable, Replica, Run, keys
from db.fleet import redis as redis_engine
from db.fleet.adoption import Adoption
from db.fleet.redis import RedisEngine
from db.fleet.redis_link import CALL_SECONDS, RedisLink
from db.journal import Fsync
from service.edge.errors import ApiError
from service.fleet.elsewhere import Elsewhere
from service.fleet.parts import Fleet
from service.settings.fleet import FleetConfig
from tests.black_hole import BlackHole, black_hole
from tests.db.journal.journals import begin
from tests.redis_servers import RedisServer
from tests.service.fleet.conftest import MakeReplica
from tests.service.fleet.test_replicas import begun
from tests.service.stage.backend import Backend

ONE = "chatcmpl-1"


@pytest.fixture
async def hole(own_redis: RedisServer) -> AsyncIterator[BlackHole]:
    async with black_hole(own_redis.port) as made:
        yield made


@asynccontextmanager
async def kept(fleet: Fleet) -> AsyncIterator[None]:
    """A replica's part in the fleet, started and stopped as the service does."""
    keeping = fleet.keep(None)
    await anext(keeping)
    try:
        yield
    finally:
        with pytest.raises(StopAsyncIteration):
            await anext(keeping)


@asynccontextmanager
async def looking_after(fleet: Fleet) -> AsyncIterator[Adoption]:
    """It looks who is there, and saves nothing: nobody is dead."""

    async def never(_: str) -> bool:
        return False

    adoption = Adoption(fleet.engine, 3.0, lambda _: Future(), never)
    adoption.start()
    yield adoption
    await adoption.stop()


async def seconds_of(doing: Awaitable[object]) -> float:
    began = time.monotonic()
    await doing
    return time.monotonic() - began


async def test_a_start_a_look_and_a_stop_wait_for_no_engine(
    hole: BlackHole, tmp_path: Path
) -> None:
    """A second for the start, two for whoever asks for what is unknown here, and a stop is as quick."""
    hole.swallows = True
    fleet = Fleet(FleetConfig(url=hole.url, replica="a"), None)
    fleet.listen(_stops_nothing)
    keeping = fleet.keep(None)
    assert 2 > await seconds_of(anext(keeping))

    async def asked() -> None:
        with pytest.raises(ApiError) as refusal:
            await Elsewhere(fleet).find("anne", ONE)
        assert "fleet_unavailable" == refusal.value.failure.code

    assert 3 > await seconds_of(asked())
    assert 5 > await seconds_of(_ended(keeping))


async def _ended(keeping: AsyncIterator[None]) -> None:
    assert "ended" == await anext(keeping, "ended")


async def _stops_nothing(owner: str, completion_id: str) -> None:
    return None


@pytest.mark.fleet
async def test_what_was_swallowed_is_sent_after(hole: BlackHole, tmp_path: Path) -> None:
    """Once the network carries again, with no restart; the lease is renewed as well."""
    fleet = Fleet(FleetConfig(url=hole.url, replica="a", lease_seconds=1), None)
    journal = fleet.journal(tmp_path / "journal", Fsync.NEVER, 10**9)
    async with kept(fleet):
        held = [fleet.membership.is_held]
        hole.swallows = True
        journal.start()
        assert begin(journal, ONE)
        await asyncio.sleep(CALL_SECONDS + 3)
        held.append(fleet.membership.is_held)
        assert [True, False] == held
        assert fleet.outbox.failure is not None
        hole.swallows = False
        async with asyncio.timeout(15):
            while fleet.outbox.lag or not fleet.membership.is_held:
                await asyncio.sleep(0.05)
    journal.close()


async def test_a_call_ends_in_time_and_says_why(
    hole: BlackHole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the client would repeat."""
    monkeypatch.setattr("db.fleet.redis_link.CALL_SECONDS", 0.3)
    hole.swallows = True
    engine = RedisEngine(RedisLink(hole.url), "token")

    async def asked() -> None:
        with pytest.raises(FleetUnavailable, match="no answer in time"):
            await engine.find(ONE)

    assert 2 > await seconds_of(asked())
    assert 2 > await seconds_of(engine.close())


@pytest.mark.fleet
async def test_a_service_behind_a_network_that_drops_serves(
    hole: BlackHole, start_replica: MakeReplica, open_door: Any, script: Backend
) -> None:
    """From its start on: answers run and are stored, and nobody waits for what can't be told."""
    hole.swallows = True
    a = start_replica("a", url=hole.url)
    (ours, asks) = await open_door(a, 2)
    async with begun(ours, script) as (first, exchange):
        began = time.monotonic()
        status, body = await asks.shown("/chatcmpl-unknown")
        assert (503, "fleet_unavailable") == (status, body["error"]["code"])
        assert 5 > time.monotonic() - began
        await exchange.words(" world")
        await exchange.finish()
        await first.whole()
    assert "completed" == (await asks.shown(f"/{first.completion_id}"))[1]["state"]


# --- another version ----------------------------------------------------------------------------


class OfAnotherVersion:
    """An engine's calls, each made as a process of the next version would make it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def call(self, make: Callable[[Engine], Awaitable[Any]]) -> Any:
        with _another_version():
            return await make(self.engine)


@contextmanager
def _another_version() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (keys, redis_engine):
            patch.setattr(module, "VERSION", VERSION + 1)
        yield


async def test_a_replica_of_another_version_is_named_and_left_alone(own_redis: RedisServer) -> None:
    """It is known who it is and what it runs; none of that is read, stopped or adopted here."""
    other = OfAnotherVersion(RedisEngine(RedisLink(own_redis.url), "next"))
    run = Run(ONE, "anne", "b", "next")
    try:
        await other.call(lambda engine: engine.join("b", 30))
        await other.call(lambda engine: engine.append([Entry(ONE, 0, 1, b"?")], [run]))
        fleet = Fleet(FleetConfig(url=own_redis.url, replica="a"), None)
        async with kept(fleet), looking_after(fleet) as adoption:
            async with asyncio.timeout(5):
                while not adoption.strangers:
                    await asyncio.sleep(0.02)
            assert {"b": VERSION + 1} == adoption.strangers
            elsewhere = Elsewhere(fleet)
            with pytest.raises(ApiError) as read:
                async with elsewhere.reading("anne", ONE):
                    pass
            with pytest.raises(ApiError) as stopped:
                await elsewhere.cancel("anne", ONE)
            told = [each.value.failure for each in (read, stopped)]
            assert ["runs_elsewhere", "fleet_unavailable"] == [each.code for each in told]
            assert all("'b'" in each.message for each in told)
            assert await elsewhere.find("bob", ONE) is None
            dead = Replica("b", "next", VERSION + 1, lease_seconds=0)
            assert not await fleet.engine.take_over(dead, 30)
            assert [] == list(await fleet.engine.left_by("next"))
    finally:
        await other.engine.close()
