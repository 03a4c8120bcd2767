"""The stores that the contract's tests run over."""

from collections.abc import AsyncIterator

import pytest

from db.memory.store import MemoryStore
from db.overview import WholeStore
from db.postgres.store import PostgresStore


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[WholeStore]:
    opened: WholeStore
    if request.param == "memory":
        opened = MemoryStore()
    else:
        opened = await PostgresStore.open(request.getfixturevalue("database_url"))
    yield opened
    await opened.close()
