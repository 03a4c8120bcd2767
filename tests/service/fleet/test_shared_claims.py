"""Asking twice over two replicas: the model is asked once. In one process, on a real Redis; and with
processes, one of which is killed."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.settings.access import LimitsConfig
from service.settings.config import JournalConfig
from service.settings.fleet import FleetConfig
from tests.redis_servers import RedisServer
from tests.service.callers.test_limits import end_at_once
from tests.service.conftest import QUESTION, Kept, Service, ServiceMaker, agent_for
from tests.service.fleet.conftest import LEASE_SECONDS, MakeReplica
from tests.service.process.conftest import asked, broken, reading
from tests.service.readers.conftest import Told, until
from tests.service.stage.backend import Backend

KEY = {"Idempotency-Key": "k-1"}
REPLAYED = "Idempotency-Replayed"
Pair = tuple[Service, Service]


@pytest.fixture
async def pair(
    make_service: ServiceMaker, backend: Backend, own_redis: RedisServer, tmp_path: Path
) -> AsyncIterator[Pair]:
    """Two replicas, each with a machine's own claims, and one database."""
    store = Kept()
    made = [
        await make_service(
            agent_for(backend),
            store=store,
            fleet=FleetConfig(own_redis.url, name, lease_seconds=1.5),
            journal=JournalConfig(directory=str(tmp_path / name)),
            limits=LimitsConfig(requests_per_minute=1000),
        )
        for name in "ab"
    ]
    yield made[0], made[1]
    if own_redis.process is None:
        own_redis.start()


def post(service: Service, key: str = "k-1", **fields: Any) -> Any:
    body = {"model": "any", "stream": True, "messages": QUESTION, **fields}
    url = f"{service.url}/v1/chat/completions"
    return service.http.post(url, json=body, headers={"Idempotency-Key": key})


async def whole(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    """What came, and whether it says that it came before."""
    assert 200 == response.status, await response.text()
    return await response.read(), REPLAYED in response.headers


async def code_of(response: aiohttp.ClientResponse) -> tuple[int, str]:
    return response.status, (await response.json())["error"]["code"]


async def test_two_at_once_ask_the_model_once(pair: Pair, backend: Backend) -> None:
    """Whoever comes second reads along what runs at the other replica, to the byte; a plain one gets the
    object of it."""
    backend.script = told = Told()
    told.say("Hello")

    async def ask(service: Service, **fields: Any) -> tuple[bytes, bool]:
        async with post(service, **fields) as response:
            return await whole(response)

    asking = [asyncio.create_task(ask(pair[number % 2])) for number in range(10)]
    await until(lambda: told.asked)
    await asyncio.sleep(0.3)
    told.say(" world")
    told.do("finish")
    answers = await asyncio.gather(*asking)
    assert (1, 1) == (told.asked, len({answer for answer, _ in answers}))
    assert 9 == sum(is_replayed for _, is_replayed in answers)
    assert b"Hello" in answers[0][0] and b"[DONE]" in answers[0][0]


async def test_a_plain_repeat_waits_for_the_other_replicas_answer(
    pair: Pair, backend: Backend
) -> None:
    """And gets the same object as the first one."""
    backend.script = told = Told()
    told.say("Hello")
    a, b = pair

    async def ask(service: Service) -> tuple[Any, bool]:
        async with post(service, stream=False) as response:
            assert 200 == response.status, await response.text()
            return await response.json(), REPLAYED in response.headers

    first = asyncio.create_task(ask(a))
    await until(lambda: told.asked)
    second = asyncio.create_task(ask(b))
    await asyncio.sleep(0.3)
    told.do("finish")
    answer, is_replayed = await first
    assert (answer, True) == await second
    assert not is_replayed and "Hello" == answer["choices"][0]["message"]["content"]
    assert 1 == told.asked


async def test_what_has_ended_is_repeated_at_any_replica(pair: Pair, backend: Backend) -> None:
    """From the database; a request that says something else is told so."""
    a, b = pair
    async with post(a) as response:
        first, _ = await whole(response)
    async with post(b) as response:
        assert (first, True) == await whole(response)
    async with post(b, temperature=0) as response:
        assert (422, "idempotency_mismatch") == await code_of(response)
    assert 1 == len(backend.exchanges)


async def test_what_said_nothing_frees_its_key_everywhere(pair: Pair, backend: Backend) -> None:
    """An SDK's own retry of a 502 asks anew, wherever the balancer sends it."""
    a, b = pair
    backend.script = end_at_once
    async with post(a) as response:
        assert 502 == response.status
    backend.script = told = Told()
    told.say("Hello")
    told.do("finish")
    async with post(b) as response:
        answer, is_replayed = await whole(response)
    assert not is_replayed and b"Hello" in answer
    async with post(a) as response:
        assert (answer, True) == await whole(response)
    assert 2 == len(backend.exchanges)


async def test_a_refused_request_frees_its_key_everywhere(pair: Pair) -> None:
    """Nothing was asked, so nothing is held."""
    a, b = pair
    async with post(a, model="any", messages=[]) as response:
        assert 400 == response.status
    async with post(b) as response:
        assert (200, False) == (response.status, REPLAYED in response.headers)


async def test_without_the_engine_no_model_is_asked_twice(
    pair: Pair, backend: Backend, own_redis: RedisServer
) -> None:
    """What the machine knows is repeated; any other key gets 503, and asks nobody. Once the engine is back,
    which had lost everything, it has been told again what was claimed."""
    a, b = pair
    async with post(a) as response:
        first, _ = await whole(response)
    own_redis.stop()
    async with post(a) as response:
        assert (first, True) == await whole(response)
    for service, key in ((b, "k-1"), (a, "k-2"), (b, "k-2")):
        async with post(service, key) as response:
            assert (503, "fleet_unavailable") == await code_of(response)
            assert "2" == response.headers["Retry-After"]
    assert 1 == len(backend.exchanges)
    own_redis.start()
    await until(lambda: own_redis.holds("claim"))
    async with post(b) as response:
        assert (first, True) == await whole(response)
    assert 1 == len(backend.exchanges)


# --- a replica that dies --------------------------------------------------------------------------


async def test_a_killed_replica_gives_its_places_back_and_keeps_its_keys(
    start_replica: MakeReplica, open_door: Any, script: Backend
) -> None:
    """Its streams count no longer than a lease; its keys are nobody else's as long as what it said can
    be brought back, and then they have that."""
    limits = {"limits": {"max_concurrent_streams": 1}}
    a, b = start_replica("a", settings_more=limits), start_replica("b", settings_more=limits)
    (ours,), (first_door, second_door) = await open_door(a), await open_door(b, 2)
    async with asked(ours, headers=KEY) as first:
        await first.until(1)
        name = first.completion_id
        async with first_door.post() as response:
            assert (429, "too_many_streams") == await code_of(response)
        async with reading(second_door, name) as along:
            await along.until(1)  # else the engine may not have what the client was shown
        a.stop(signal.SIGKILL)
        await broken(first)

    async def free() -> None:
        while True:
            async with second_door.post() as response:
                if response.status == 200:
                    return
                assert (429, "too_many_streams") == await code_of(response)
            await asyncio.sleep(0.2)

    async with asyncio.timeout(3 * LEASE_SECONDS):
        await free()
    again = start_replica("a", settings_more=limits)
    await open_door(again)
    async with asyncio.timeout(20):
        while True:
            async with first_door.post(headers=KEY) as response:
                answer = await response.read()
                if response.status == 200 and b"process_died" in answer:
                    break
                assert response.status in (200, 409, 503), answer
            await asyncio.sleep(0.2)
    assert name == response.headers["x-completion-id"] and b"Hello" in answer
    assert 2 == len(script.exchanges)  # the one that was killed, and the one that took its place
