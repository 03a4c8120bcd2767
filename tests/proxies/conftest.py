"""The proxies that are installed, a backend, and places that proxies may read."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.proxies.running import PROXIES, Proxy, path_of
from tests.service.stage.backend import Backend

MEASURED: dict[str, dict[str, str]] = {}
"""Proxy → what was measured behind two replicas: name → figure. Printed at the end."""


@pytest.fixture(params=PROXIES, ids=lambda proxy: proxy.name)
def proxy(request: pytest.FixtureRequest) -> Proxy:
    chosen: Proxy = request.param
    if path_of(chosen) is None:
        pytest.skip(f"{chosen.program} is not here: {chosen.install}")
    return chosen


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    server = await Backend().start()
    yield server
    await server.stop()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder that proxies can read as another user."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    made = tmp_path / "proxy"
    made.mkdir()
    return made


@pytest.fixture(scope="session", autouse=True)
def measured() -> Iterator[None]:
    """Prints what was measured, a line for each proxy."""
    yield
    for name, figures in MEASURED.items():
        print(f"\n{name}: " + "; ".join(f"{key} {value}" for key, value in figures.items()), end="")
