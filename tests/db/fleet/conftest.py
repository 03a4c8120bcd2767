"""Engines of several replicas, on the twin in memory and on a real Redis."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from db.fleet import Engine
from db.fleet.memory import MemoryEngine, Shared
from db.fleet.redis import RedisEngine
from db.fleet.redis_link import RedisLink
from tests.redis_servers import redis_cluster, redis_sentinels

MakeEngine = Callable[..., Engine]
"""Another replica's; its arguments are those that both kinds take."""


@pytest.fixture(scope="session")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield f"redis+cluster://127.0.0.1:{nodes[0].port}"


@pytest.fixture(scope="session")
def sentinel_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_sentinels(tmp_path_factory.mktemp("sentinels")) as (url, _, _):
        yield url


LONG = (pytest.param(name, marks=pytest.mark.fleet) for name in ("cluster", "sentinel"))


@pytest.fixture(params=["memory", "redis", *LONG])
async def make_engine(request: pytest.FixtureRequest) -> AsyncIterator[MakeEngine]:
    made: list[Engine] = []
    shared = Shared()
    url = None
    if request.param == "redis":
        url = request.getfixturevalue("own_redis").url
    elif request.param != "memory":
        url = request.getfixturevalue(f"{request.param}_url")
        await empty(url)

    def make(**options: Any) -> Engine:
        token = secrets.token_hex(8)
        engine: Engine = (
            MemoryEngine(token, shared, **options)
            if url is None
            else RedisEngine(RedisLink(url), token, **options)
        )
        made.append(engine)
        return engine

    yield make
    for engine in made:
        await engine.close()


async def empty(url: str) -> None:
    """Forget everything there."""
    engine = RedisEngine(RedisLink(url), "")
    try:
        await engine._client.flushall()
    finally:
        await engine.close()
