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
LONG = (
    "125 MB of empty lines",
    "a packed error of 300 MB",
    "a small body that unpacks to 300 MB",
    "text behind lists of parts",
)
"""Each takes seconds of a core, and has a like among the others: `make holdup` plays all."""
PLAYED = [
    pytest.param(attack, marks=[pytest.mark.holdup] if attack.name in LONG else [])
    for attack in ATTACKS
]


async def test_the_long_ones_are_known() -> None:
    """No name above is one of nobody."""
    assert set(LONG) <= {attack.name for attack in ATTACKS}


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


@pytest.mark.parametrize("attack", PLAYED, ids=lambda attack: attack.name)
async def test_nobody_else_waits(stage: Stage, attack: Request | Answer) -> None:
    """Others wait for no tenth of a second, memory stays bounded, and the attacker is told why."""
    outcome = await stage.play(attack)
    assert outcome.loop_time.longest_ms < outcome.loop_time.bound_ms
    assert outcome.grown_bytes < MOST_GROWTH_BYTES
    assert outcome.status > 0
    assert outcome.code in attack.codes
