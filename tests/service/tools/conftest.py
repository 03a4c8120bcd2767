"""A scripted server, and toolboxes that call it."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from service.settings.tools import ToolsConfig, ToolServerConfig
from service.tools.contract import Calls, Tool, Toolbox
from service.tools.making import load_for, make_toolbox
from tests.service.tools.server import ToolServer

MakeBox = Callable[..., Toolbox]


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    """The SDK is imported before any test's time counts."""
    load_for([ToolsConfig(servers=(ToolServerConfig(name="d", url="http://h"),))])


@pytest.fixture
async def server() -> AsyncIterator[ToolServer]:
    server = await ToolServer().start()
    yield server
    await server.stop()


@pytest.fixture
async def make_box(server: ToolServer) -> AsyncIterator[MakeBox]:
    """Makes toolboxes with the scripted server as `docs`; fields are its keys."""
    made: list[Toolbox] = []

    def make(environ: Mapping[str, str] | None = None, **fields: Any) -> Toolbox:
        keys: dict[str, Any] = {"name": "docs", "url": server.url, "timeout_seconds": 5.0, **fields}
        if "command" in keys:
            del keys["url"]
        tools = ToolsConfig(servers=(ToolServerConfig(**keys),), allow_commands=True)
        made.append(make_toolbox(tools, environ or {}))
        return made[-1]

    yield make
    for box in made:
        await box.close()


@pytest.fixture
def box(make_box: MakeBox) -> Toolbox:
    return make_box()


@pytest.fixture
async def calls(box: Toolbox) -> AsyncIterator[Calls]:
    """The tools as one answer uses them."""
    async with box.open() as calls:
        yield calls


def named(name: str) -> Tool:
    """A tool of the scripted server, listed or not."""
    return Tool("docs", name, "", {})
