"""Tools of servers that others publish, run for real: see `make tool-servers`, which installs them."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from service.settings.tools import ToolsConfig, ToolServerConfig
from service.tools.contract import Tool, Toolbox
from service.tools.making import make_toolbox
from statemachine import Outcome

FOLDER = Path(os.environ.get("TOOL_SERVERS_PATH", "nowhere"))
"""Where `bin/mcp-server-time` and `node_modules/.bin/mcp-server-everything` are."""

pytestmark = pytest.mark.tool_servers


class Everything:
    """The server from npm, over HTTP."""

    def __init__(self) -> None:
        # It listens on every address, where a port that a connection of anybody's has is taken.
        self.port = random.randrange(20_000, 32_000)

    def start(self) -> None:
        self._process = subprocess.Popen(
            [FOLDER / "node_modules/.bin/mcp-server-everything", "streamableHttp"],
            env={**os.environ, "PORT": str(self.port)},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while self._process.poll() is None:
            with suppress(ConnectionError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.05)
        raise AssertionError("it ended")

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def everything() -> Iterator[Everything]:
    everything = Everything()
    everything.start()
    yield everything
    everything.stop()


@pytest.fixture
async def box(everything: Everything) -> AsyncIterator[Toolbox]:
    command = str(FOLDER / "node_modules/.bin/mcp-server-everything")
    url = f"http://127.0.0.1:{everything.port}/mcp"
    servers = (
        ToolServerConfig("time", command=str(FOLDER / "bin/mcp-server-time")),
        ToolServerConfig("process", command=command, args=("stdio",)),
        ToolServerConfig("web", url=url, timeout_seconds=10),
        ToolServerConfig("hasty", url=url, timeout_seconds=2, allow=("trigger-long*",)),
    )
    box = make_toolbox(ToolsConfig(servers=servers, allow_commands=True), {})
    yield box
    await box.close()


async def tools_of(box: Toolbox) -> dict[str, Tool]:
    return {tool.full_name: tool for tool in await box.tools()}


async def test_the_time_server_tells_the_time(box: Toolbox) -> None:
    """The process from PyPI answers, and says which zones there aren't."""
    tools = await tools_of(box)
    now = tools["time__get_current_time"]
    async with box.open() as calls:
        good = await calls.call(now, {"timezone": "Asia/Tokyo"})
        bad = await calls.call(now, {"timezone": "Nowhere"})
    assert Outcome.OK is good.outcome
    assert "+09:00" in good.text
    assert Outcome.ERROR is bad.outcome


CALLS: list[tuple[str, Any, Outcome, str]] = [
    ("echo", {"message": "NUL \0 🧀"}, Outcome.OK, "Echo: NUL \0 🧀"),
    ("get-sum", {"a": 2, "b": 3}, Outcome.OK, "5"),
    ("get-tiny-image", {}, Outcome.OK, "[an image, image/png, 4033 bytes]"),
    ("get-structured-content", {"location": "New York"}, Outcome.OK, '"temperature"'),
    ("get-resource-links", {"count": 2}, Outcome.OK, "[a resource, Text Resource 2, demo://"),
    ("get-resource-reference", {"resourceType": "Text"}, Outcome.OK, "plaintext resource"),
    ("get-resource-reference", {"resourceType": "Blob"}, Outcome.OK, "[a resource, demo://"),
    ("echo", {"message": 5}, Outcome.ERROR, "expected string"),
]


@pytest.mark.parametrize("server", ["process", "web"])
async def test_the_everything_server_does_everything(box: Toolbox, server: str) -> None:
    """That of npm, as a process and over HTTP: texts, structures, images, resources, errors; what it would
    ask of us, sampling and elicitation, it doesn't offer."""
    tools = await tools_of(box)
    async with box.open() as calls:
        for name, arguments, outcome, words in CALLS:
            result = await calls.call(tools[f"{server}__{name}"], arguments)
            assert (outcome, True) == (result.outcome, words in result.text), (name, result)
    assert [] == [name for name in tools if "sampling" in name or "elicitation" in name]


async def test_calls_side_by_side_and_one_too_slow(box: Toolbox) -> None:
    """Twenty at once over one session, while another is given up after its two seconds."""
    tools = await tools_of(box)
    async with box.open() as calls:
        slow = calls.call(tools["hasty__trigger-long-running-operation"], {"duration": 5})
        sums = [calls.call(tools["web__get-sum"], {"a": n, "b": 1}) for n in range(20)]
        first, *others = await asyncio.gather(slow, *sums)
    assert Outcome.TIMEOUT is first.outcome
    assert [True] * 20 == [f"is {n + 1}." in result.text for n, result in enumerate(others)]


async def test_a_restarted_server_has_new_sessions(box: Toolbox, everything: Everything) -> None:
    """The server's own answer to a session that it doesn't know has the call sent again."""
    tools = await tools_of(box)
    async with box.open() as calls:
        echo = tools["web__echo"]
        assert "Echo: 1" == (await calls.call(echo, {"message": "1"})).text
        everything.stop()
        everything.start()
        assert "Echo: 2" == (await calls.call(echo, {"message": "2"})).text
