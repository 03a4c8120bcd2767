"""Limits over two replicas: services in one process, each with an engine's client of its own, on a real
Redis."""

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from service.app import ADMISSION, FLEET, SHARED
from service.callers.sharing import SharedAdmission
from service.settings.access import LimitsConfig
from service.settings.config import JournalConfig, ScriptedAgentConfig
from service.settings.fleet import FleetConfig
from service.settings.tools import ToolsConfig
from tests.redis_servers import RedisServer
from tests.service.callers.test_limits import opened, refused, say_with_usage
from tests.service.conftest import Service, ServiceMaker, Streamed, agent_for
from tests.service.readers.conftest import until
from tests.service.stage.backend import Backend
from tests.service.stream.test_client_gone import talk_until_closed

MakePair = Callable[..., Awaitable[tuple[Service, Service]]]
ROLL: Any = [{"role": "user", "content": "Roll the dice, and tell the time"}]
TALKER = ScriptedAgentConfig(
    name="demo",
    kind="scripted",
    models=("*",),
    tokens_per_second=40,
    tools=ToolsConfig(builtin=("clock", "dice")),
)
LEASE_SECONDS = 1.5


@pytest.fixture
async def make_pair(
    make_service: ServiceMaker, backend: Backend, own_redis: RedisServer, tmp_path: Path
) -> AsyncIterator[MakePair]:
    """Two replicas that know of each other."""

    async def make(limits: LimitsConfig, agent: Any = None) -> tuple[Service, Service]:
        made = [
            await make_service(
                agent or agent_for(backend),
                limits=limits,
                fleet=FleetConfig(own_redis.url, name, lease_seconds=LEASE_SECONDS),
                journal=JournalConfig(directory=str(tmp_path / name)),
            )
            for name in "ab"
        ]
        one, two = made
        await until(lambda: all(2 == shared(each).replicas for each in made))
        return one, two

    yield make
    if own_redis.process is None:
        own_redis.start()
    own_redis.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]


def shared(service: Service) -> SharedAdmission:
    return service.app[SHARED]


def scripts_run(server: RedisServer) -> int:
    """How often a limit was asked for: nothing else looks at the server's clock."""
    with redis.Redis(port=server.port) as client:
        told: Any = client.info("commandstats")
    return int(told.get("cmdstat_time", {"calls": 0})["calls"])


def left(streamed: Streamed, things: str = "requests") -> int:
    return int(streamed.headers[f"x-ratelimit-remaining-{things}"])


async def told(*services: Service) -> None:
    """Once the engine has heard all of these."""
    await until(lambda: not any(shared(each)._untold for each in services))
    await asyncio.sleep(0.1)


async def test_requests_are_counted_over_both(
    make_pair: MakePair, own_redis: RedisServer, backend: Backend
) -> None:
    """A limit is a limit at whichever replica, every answer says what is left of it at all of them, and
    whoever is known to be over it is refused without asking again."""
    a, b = await make_pair(LimitsConfig(requests_per_minute=3))
    answers = [await each.stream() for each in (a, b, a)]
    assert [(200, 2), (200, 1), (200, 0)] == [(each.status, left(each)) for each in answers]
    code, headers = await refused(b)
    assert ("rate_limited", "0") == (code, headers["x-ratelimit-remaining-requests"])
    assert 15 <= int(headers["retry-after"]) <= 20
    asked = scripts_run(own_redis)
    for _ in range(20):
        assert ("rate_limited", "rate_limited") == ((await refused(a))[0], (await refused(b))[0])
    assert scripts_run(own_redis) - asked <= 2  # to renew, at either
    assert 3 == len(backend.exchanges)


async def test_tokens_are_charged_over_both(make_pair: MakePair, backend: Backend) -> None:
    """What an answer has used at one replica refuses the next at the other."""
    backend.script = say_with_usage
    a, b = await make_pair(LimitsConfig(tokens_per_minute=150))
    assert 150 == left(await a.stream(), "tokens")
    await told(a)
    assert left(await b.stream(), "tokens") in range(50, 55)
    await told(b)
    assert "rate_limited" == (await refused(b))[0]
    assert "rate_limited" == (await refused(a))[0]
    assert 2 == len(backend.exchanges)


async def test_calls_of_tools_are_counted_over_both(make_pair: MakePair) -> None:
    """What an answer at one replica has called is missing at the other."""
    a, b = await make_pair(LimitsConfig(tool_calls_per_minute=3), TALKER)
    for each in (a, b):
        await each.stream(messages=ROLL)
        await told(a, b)
    calls = [[call.outcome for call in (await each.kept.one()).tool_calls] for each in (a, b)]
    assert [["ok", "ok"], ["ok", "error"]] == calls


async def test_streams_are_counted_over_both(make_pair: MakePair, backend: Backend) -> None:
    """A place is taken and given back for all; it stays taken for longer than a lease."""
    backend.script = talk_until_closed
    a, b = await make_pair(LimitsConfig(max_concurrent_streams=1))
    response = await opened(a)
    await asyncio.sleep(2 * LEASE_SECONDS)
    assert "too_many_streams" == (await refused(b))[0]
    assert "too_many_streams" == (await refused(a))[0]
    response.close()
    await told(a)
    await until(lambda: not a.relays)
    await told(a)
    again = await opened(b)
    assert "too_many_streams" == (await refused(a))[0]
    again.close()


async def test_a_bad_request_gives_its_place_back_everywhere(make_pair: MakePair) -> None:
    """What is refused after it was admitted holds no place, and counts as a request."""
    a, b = await make_pair(LimitsConfig(max_concurrent_streams=1, requests_per_minute=100))
    for number in range(4):
        each = (a, b)[number % 2]
        streamed = await each.stream(b"{oops")
        assert 400 == streamed.status
        await told(each)
    assert 96 == left(streamed)


async def test_callers_without_limits_cost_no_round_trip(
    make_pair: MakePair, own_redis: RedisServer
) -> None:
    """Nothing is asked or told for them."""
    a, b = await make_pair(LimitsConfig())
    before = scripts_run(own_redis)
    for each in (a, b):
        assert (await each.stream()).is_done
    assert before == scripts_run(own_redis)


async def test_other_limits_apply_at_once(make_pair: MakePair) -> None:
    """After a reload what is used stays used, wherever it was."""
    a, b = await make_pair(LimitsConfig(requests_per_minute=2))
    for each in (a, b):
        assert 200 == (await each.stream()).status
    assert "rate_limited" == (await refused(a))[0]
    for each in (a, b):
        each.app[ADMISSION].replace(LimitsConfig(requests_per_minute=4), ())
    assert [1, 0] == [left(await each.stream()) for each in (a, b)]
    assert "rate_limited" == (await refused(a))[0]


# --- the engine away ------------------------------------------------------------------------------


async def test_limits_are_divided_while_the_engine_is_away(
    make_pair: MakePair, own_redis: RedisServer
) -> None:
    """Each replica admits its part; what was used is told once the engine is back, also to one that has
    lost everything."""
    a, b = await make_pair(LimitsConfig(requests_per_minute=6, max_concurrent_streams=3))
    own_redis.stop()
    for each in (a, b):
        answers = [await each.stream() for _ in range(3)]
        assert [200] * 3 == [answer.status for answer in answers]
        assert "3" == answers[0].headers["x-ratelimit-limit-requests"]
        assert "rate_limited" == (await refused(each))[0]
        assert shared(each).is_away
        assert 1 == each.app[FLEET].standing().fallbacks
    own_redis.start()
    await until(lambda: not shared(a).is_away and not shared(b).is_away)
    for each in (a, b):
        code, headers = await refused(each)
        assert ("rate_limited", "6") == (code, headers["x-ratelimit-limit-requests"])


async def test_nobody_waits_long_for_a_frozen_engine(
    make_pair: MakePair, own_redis: RedisServer
) -> None:
    """The first does for half a second, the next not at all; after it thaws limits are shared again."""
    a, b = await make_pair(LimitsConfig(requests_per_minute=100, max_concurrent_streams=10))
    process = own_redis.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    before = time.monotonic()
    assert 49 == left(await a.stream())
    assert 0.4 < time.monotonic() - before < 3
    before = time.monotonic()
    assert 48 == left(await a.stream())
    assert time.monotonic() - before < 0.4
    process.send_signal(signal.SIGCONT)
    await until(lambda: not shared(a).is_away)
    # The one that wasn't waited for was admitted all the same, perhaps: it was on its way.
    assert left(await b.stream()) in (96, 97)


async def test_the_page_says_what_is_shared(make_pair: MakePair) -> None:
    """What is left is that of all replicas, as this one last saw it; and it says so."""
    a, b = await make_pair(LimitsConfig(requests_per_minute=60))
    for each in (a, a, b):
        assert 200 == (await each.stream()).status
    async with b.http.get(f"{b.url}/page/callers") as response:
        shown = await response.text()
    assert "counted for all replicas together" in shown
    assert re.search("5[78] of 60 left", shown)
