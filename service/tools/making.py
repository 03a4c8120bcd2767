"""Makes an agent's toolbox from its configuration, or says why there can be none.

What an agent without servers needs not, it doesn't import: see `load_for`. Never here: keys
(`service.settings.tools`).
"""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution

from service.settings.tools import ToolsConfig, ToolServerConfig, filled_in, variables
from service.tools.builtin import Builtin
from service.tools.contract import Toolbox
from service.tools.link import Link
from service.tools.servers import AddressServer, CommandServer, Server
from service.tools.toolbox import ServersToolbox

_CONNECT_SECONDS = 10.0
_loaded = threading.Event()


def why_off(tools: ToolsConfig | None, environ: Mapping[str, str]) -> str | None:
    """Why an agent with these tools can't be, in the words of the log; None if it can. Imports nothing."""
    if tools is None:
        return None
    for server in tools.servers:
        for name in (*variables(server.headers), *variables(server.env)):
            if not environ.get(name):
                return f"{name} is not set"
        for name in variables(server.headers):
            if not (environ[name].isascii() and environ[name].isprintable()):
                return f"{name} holds characters that no HTTP header can"
    if tools.servers and not _is_installed("mcp"):
        return "its tools need the package mcp (in a checkout: make run, or pip install '.[tools]')"
    return None


def make_toolbox(
    tools: ToolsConfig, environ: Mapping[str, str], now: Callable[[], float] = time.time
) -> Toolbox:
    """The toolbox of an agent that `why_off` finds nothing wrong with. Connects to nobody yet.

    Args:
        environ: where headers' variables are.
        now: POSIX seconds, for the built-in clock.
    """
    servers = [_server(config, environ) for config in tools.servers]
    return ServersToolbox(servers, Builtin(tools.builtin, now, random.SystemRandom()), _prepare)


def load_for(configs: Iterable[ToolsConfig | None]) -> None:
    """Import what toolboxes of these import late, so that processes that are forked hereafter share its
    memory. Blocks for half a second."""
    if any(tools is not None and tools.servers for tools in configs) and _is_installed("mcp"):
        _load()


def _server(config: ToolServerConfig, environ: Mapping[str, str]) -> Server:
    if config.command is None:
        headers = filled_in(config.headers, environ)
        return AddressServer(config, partial(_open_address, config, headers), time.monotonic)
    env = filled_in(config.env, environ)
    return CommandServer(config, partial(_open_command, config, env), time.monotonic)


@asynccontextmanager
async def _open_address(
    config: ToolServerConfig, headers: Mapping[str, str], changed: Callable[[], None]
) -> AsyncIterator[Link]:
    from service.tools.mcp import Address, open_address

    assert config.url is not None
    connect_seconds = min(_CONNECT_SECONDS, config.timeout_seconds)
    address = Address(config.url, headers, connect_seconds, config.max_result_bytes)
    async with open_address(address, changed) as link:
        yield link


@asynccontextmanager
async def _open_command(
    config: ToolServerConfig, env: Mapping[str, str], changed: Callable[[], None]
) -> AsyncIterator[Link]:
    from service.tools.mcp import Command, open_command

    assert config.command is not None
    async with open_command(Command(config.command, config.args, env), changed) as link:
        yield link


async def _prepare() -> None:
    """Import what speaks MCP, in a thread, so that streams go on meanwhile."""
    if not _loaded.is_set():
        await asyncio.to_thread(_load)


def _load() -> None:
    import_module("service.tools.mcp")
    _loaded.set()


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
