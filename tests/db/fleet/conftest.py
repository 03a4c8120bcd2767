"""Engines of several replicas, on the twin in memory and on a real Redis."""

import secrets
from collections.abc import AsyncIterator, Callable

import pytest

from db.fleet import Engine
from db.fleet.memory import MemoryEngine, Shared
from db.fleet.redis import RedisEngine

MakeEngine = Callable[[], Engine]
"""Another replica's."""


@pytest.fixture(params=["memory", "redis"])
async def make_engine(request: pytest.FixtureRequest) -> AsyncIterator[MakeEngine]:
    made: list[Engine] = []
    shared = Shared()
    server = request.getfixturevalue("own_redis") if request.param == "redis" else None

    def make() -> Engine:
        token = secrets.token_hex(8)
        engine: Engine = (
            MemoryEngine(token, shared) if server is None else RedisEngine(server.url, token)
        )
        made.append(engine)
        return engine

    yield make
    for engine in made:
        await engine.close()
