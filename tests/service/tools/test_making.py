"""Making toolboxes: what is imported when, what is logged, and what turns an agent off."""

import json
import logging
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import structlog

from service.settings.tools import ToolsConfig, ToolServerConfig
from service.tools import making
from service.tools.making import make_toolbox, why_off
from statemachine import Outcome
from tests.service.tools.conftest import MakeBox, named
from tests.service.tools.server import LEGACY, MODERN, ToolServer, text

ROOT = Path(__file__).parents[3]
SERVER = ToolServerConfig(name="docs", url="http://127.0.0.1:1/mcp")

LOADED = """\
import asyncio, json, sys
from service.settings.tools import ToolsConfig, ToolServerConfig
from service.agents.directory import AgentDirectory, load_for
from service.settings.config import Config, OpenAIAgentConfig
from service.tools.making import load_for as load_tools_for, make_toolbox
server = ToolServerConfig(name="docs", url="http://127.0.0.1:1/mcp")
loaded = [sorted({"mcp", "service.tools.mcp", "service.tools.http"} & sys.modules.keys())]
async def use():
    AgentDirectory.from_config(Config().agents, {})
    box = make_toolbox(ToolsConfig(builtin=("clock", "dice")), {})
    (now, roll) = await box.tools()
    async with box.open() as calls:
        await calls.call(now, {})
    await box.close()
asyncio.run(use())
load_tools_for([None, ToolsConfig(builtin=("dice",))])
make_toolbox(ToolsConfig(servers=(server,)), {})
loaded.append(sorted({"mcp", "service.tools.mcp", "service.tools.http"} & sys.modules.keys()))
load_tools_for([ToolsConfig(servers=(server,))])
loaded.append(sorted({"mcp", "service.tools.mcp", "service.tools.http"} & sys.modules.keys()))
print(json.dumps(loaded))
"""


def test_nothing_is_imported_that_nobody_needs() -> None:
    """The SDK is imported for servers alone: not by agents without them, nor with built-in tools, nor by
    making a toolbox; before workers are forked, it is."""
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    all_of_it = ["mcp", "service.tools.http", "service.tools.mcp"]
    assert [[], [], all_of_it] == json.loads(done.stdout)


@pytest.mark.parametrize(
    ("server", "environ", "why"),
    [
        ({"headers": {"A": "b"}}, {}, None),
        ({"headers": {"A": "${B}"}}, {}, "B is not set"),
        ({"headers": {"A": "x ${B}"}}, {"B": ""}, "B is not set"),
        ({"headers": {"A": "${B}"}}, {"B": "ä"}, "B holds characters that no HTTP header can"),
        ({"headers": {"A": "${B}"}}, {"B": "b"}, None),
        ({"env": {"A": "${B}"}}, {}, "B is not set"),
        ({"env": {"A": "${B}"}, "headers": {"A": "${C}"}}, {"C": "c"}, "B is not set"),
        ({"env": {"A": "${B}"}}, {"B": "ä"}, None),
    ],
)
def test_a_variable_that_is_missing_turns_tools_off(
    server: dict[str, Any], environ: dict[str, str], why: str | None
) -> None:
    """What a header or a process lacks is named, and its value isn't."""
    assert why == why_off(ToolsConfig(servers=(ToolServerConfig("docs", **server),)), environ)


def test_a_missing_package_turns_tools_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers need the extra; what can be done is said. Built-in tools don't."""

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(making, "distribution", missing)
    why = why_off(ToolsConfig(servers=(SERVER,)), {})
    assert (
        "its tools need the package mcp (in a checkout: make run, or pip install '.[tools]')" == why
    )
    assert None is why_off(ToolsConfig(builtin=("clock",)), {})
    assert None is why_off(None, {})


async def test_built_in_tools_and_servers_are_one_toolbox(server: ToolServer) -> None:
    """Built-in tools come first; each call finds its way."""
    docs = ToolServerConfig("docs", url=server.url)
    box = make_toolbox(ToolsConfig(builtin=("dice",), servers=(docs,)), {})
    tools = await box.tools()
    assert ["dice__roll", "docs__one", "docs__two"] == [tool.full_name for tool in tools]
    async with box.open() as calls:
        assert [Outcome.OK] * 3 == [(await calls.call(tool, {})).outcome for tool in tools]
    assert ["one", "two"] == server.calls
    await box.close()


@pytest.mark.parametrize("version", [MODERN, LEGACY])
async def test_nothing_of_a_call_is_logged(
    server: ToolServer,
    make_box: MakeBox,
    version: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither our lines nor the SDK's hold a header's value, an argument or a result, however a call ends."""
    server.version = version
    server.handlers.update(
        cut=lambda call: call.cut(),
        half=lambda call: call.stream_half(),
        odd=lambda call: call.json({"content": "secret-3"}),
        error=lambda call: call.error(-32000, "secret-3"),
        good=lambda call: call.json(text("secret-3")),
    )
    box = make_box({"TOKEN": "secret-1"}, headers={"Authorization": "Bearer ${TOKEN}"})
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as lines:
        await box.tools()
        async with box.open() as calls:
            for name in (*server.handlers, "good"):
                await calls.call(named(name), {"q": "secret-2"})
        await server.stop()
        async with box.open() as calls:
            await calls.call(named("good"), {"q": "secret-2"})
        await box.close()
    assert ["good"] * 2 == server.calls[-2:]
    assert lines
    assert "secret" not in str(lines)
    texts = [record.getMessage() + str(record.exc_info) for record in caplog.records]
    assert [] == [line for line in texts if "secret" in line]
