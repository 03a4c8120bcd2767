"""Services with all cases behind them, on one event loop."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.corpus.cases import load_all
from tests.corpus.stage import Stage, service


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """The service, with every case behind it, and its answers in memory."""
    asyncio.get_running_loop().set_debug(False)  # a third of the time; other tests have it on
    async with service(load_all(), tmp_path_factory.mktemp("corpus")) as made:
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage_without_shortcut(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Stage]:
    """The same, and each chunk is parsed and wakes its stream's task."""
    asyncio.get_running_loop().set_debug(False)
    directory = tmp_path_factory.mktemp("corpus")
    async with service(load_all(), directory, uses_shortcut=False) as made:
        yield made


@pytest.fixture(params=["shortcut", "no shortcut"])
def either(request: pytest.FixtureRequest) -> Stage:
    """One after the other."""
    name = "stage" if request.param == "shortcut" else "stage_without_shortcut"
    made: Stage = request.getfixturevalue(name)
    return made
