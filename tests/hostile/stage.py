"""The real service in this process, each attack in a process of its own, and what others notice.

In its own process an attacker can be as busy as it likes: what is measured here is the service's.
"""

import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from attrs import frozen

from service.app import build_app
from service.edge.connections import Runner
from service.settings.config import (
    Config,
    DatabaseConfig,
    JournalConfig,
    OpenAIAgentConfig,
    ScriptedAgentConfig,
    ServerConfig,
    Timeouts,
)
from tests.holdup import LoopTime, measured_loop
from tests.hostile.attacks import ANSWERS, Answer, Request

ROOT = Path(__file__).parents[2]
FIRST_TOKEN_SECONDS = 5.0
PATIENCE_SECONDS = 100.0


@frozen
class Outcome:
    """What came of an attack.

    Attributes:
        status: of the response; 0 if the connection broke before one.
        code: of the error that was told, `""` if none.
        loop_time: how long others waited meanwhile.
        grown_bytes: how much memory the process took at most above what it had before.
    """

    status: int
    code: str
    loop_time: LoopTime
    grown_bytes: int


class Stage:
    """A running service with an agent for each answer, and `demo`."""

    def __init__(self, port: int, backend_port: int) -> None:
        self._port = port
        self._backend_port = backend_port

    async def play(self, attack: Request | Answer) -> Outcome:
        """Make one attack, and measure what others notice of it."""
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        attacker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.hostile.attacker", attack.name),
            *(str(self._port), str(self._backend_port)),
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        try:
            async with measured_loop() as loop_time, asyncio.timeout(PATIENCE_SECONDS):
                said, _ = await attacker.communicate()
        finally:
            if attacker.returncode is None:
                attacker.kill()
                await attacker.wait()
        status, code = json.loads(said)
        return Outcome(status, code, loop_time, _memory("VmHWM") - before)


def _memory(name: str) -> int:
    """A figure of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@asynccontextmanager
async def attacked_service(directory: Path, database_url: str) -> AsyncIterator[Stage]:
    """A running service whose agents ask whoever attacks."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        backend_port = free.getsockname()[1]
    agents = [_agent(answer, backend_port) for answer in ANSWERS]
    config = Config(
        server=ServerConfig(drain_timeout_seconds=1.0),
        database=DatabaseConfig(url=database_url),
        journal=JournalConfig(directory=str(directory)),
        agents=(ScriptedAgentConfig(name="demo", kind="scripted"), *agents),
    )
    app = build_app(config, environ={})
    runner = Runner(app, config.server.idle_timeout_seconds, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Stage(runner.addresses[0][1], backend_port)
    finally:
        await runner.cleanup()


def _agent(answer: Answer, port: int) -> OpenAIAgentConfig:
    return OpenAIAgentConfig(
        name=answer.name,
        kind="openai",
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key_env=None,
        models=(),
        retries=0,
        timeouts=Timeouts(first_token_seconds=FIRST_TOKEN_SECONDS),
        circuit=None,
    )


IS_POSSIBLE = os.path.exists("/proc/self/clear_refs")
"""Whether this system counts a process's memory as Linux does."""
