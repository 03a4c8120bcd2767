"""One caller, or one backend, holds nobody else up: each attack in turn."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.hostile.attacks import ATTACKS, MEGABYTE, Answer, Request
from tests.hostile.stage import IS_POSSIBLE, Stage, attacked_service
from tests.postgres import empty_tables

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not IS_POSSIBLE, reason="memory is measured as on Linux"),
]

MOST_GROWTH_BYTES = 300 * MEGABYTE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(
    migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    """One service for all, which has to live through them."""
    asyncio.get_running_loop().set_debug(False)
    directory = tmp_path_factory.mktemp("hostile")
    async with attacked_service(directory, migrated_database) as made:
        yield made
    empty_tables(migrated_database)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_nobody_else_waits(stage: Stage, attack: Request | Answer) -> None:
    """Others wait for no tenth of a second, memory stays bounded, and the attacker is told why."""
    outcome = await stage.play(attack)
    assert outcome.loop_time.longest_ms < outcome.loop_time.bound_ms
    assert outcome.grown_bytes < MOST_GROWTH_BYTES
    assert outcome.status > 0
    assert outcome.code in attack.codes
