"""A store on the real server, for the tests that need one as it usually is."""

from collections.abc import AsyncIterator

import pytest

from db.postgres.store import PostgresStore


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    opened = await PostgresStore.open(database_url, pool_max_size=8)
    yield opened
    await opened.close()
