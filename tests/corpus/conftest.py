"""One service for all cases of a file, on one event loop."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.corpus.cases import load_all
from tests.corpus.stage import Stage, service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """The service, with every case behind it, and its answers in memory."""
    asyncio.get_running_loop().set_debug(False)  # a third of the time; other tests have it on
    directory: Path = tmp_path_factory.mktemp("corpus")
    async with service(load_all(), directory / "journal") as made:
        yield made
