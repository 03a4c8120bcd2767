"""Published clients ask an agent with tools: see `make clients`, which installs them.

Each asks with a script of its own in `scripts/`, as a process, and tells what it made of the answer. An
agent tells of its calls in chunks with an empty delta and a field that no client knows; these are to
change nothing of the text, the finish reason and the client's own tools.
"""

import asyncio
import json
import os
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from service.settings.config import ScriptedAgentConfig
from service.settings.tools import ToolsConfig
from statemachine import Outcome, State
from tests.service.conftest import Service, ServiceMaker

pytestmark = [pytest.mark.clients, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("CLIENTS_PATH", "nowhere")).absolute()
"""Where `bin/python` is, and `llama-index/bin/python`."""
DEMO = ScriptedAgentConfig(
    name="demo",
    kind="scripted",
    tools=ToolsConfig(builtin=("clock", "dice")),
    tokens_per_second=200.0,
)
PYTHON = {
    "openai_sdk": "openai",
    "openai_helper": "openai",
    "langchain": "langchain_openai",
    "litellm_sdk": "litellm",
    "pydantic_ai_agent": "pydantic_ai",
    "haystack_generator": "haystack",
    "agno_agent": "agno",
    "smolagents_model": "smolagents",
    "openai_agents": "agents",
    "llama_index_like": "llama_index",
}
"""Script → the package that it needs."""
NODE = {
    "openai_node": "openai",
    "openai_node_helper": "openai",
    "ai_sdk": "@ai-sdk/openai-compatible",
    "langchain_node": "@langchain/openai",
    "huggingface": "@huggingface/inference",
}
AT_HOME = {"HAYSTACK_TELEMETRY_ENABLED": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""Keeps clients from asking anybody else."""
SHOW_NO_REASON = {
    ("agno_agent", "stream"),
    ("agno_agent", "plain"),
    ("openai_agents", "stream"),
    ("openai_agents", "plain"),
    ("smolagents_model", "stream"),
}
"""Clients that keep the finish reason to themselves."""


def command_of(script: str) -> list[str]:
    """What runs a script; skips the test if its client isn't here."""
    if script in NODE:
        command, package = ["node", f"tests/clients/scripts/{script}.mjs"], NODE[script]
        is_here = (HERE / "node_modules" / package).is_dir()
    else:
        home, package = (
            FOLDER / ("llama-index" if script == "llama_index_like" else "."),
            PYTHON[script],
        )
        command = [str(home / "bin/python"), "-m", f"tests.clients.scripts.{script}"]
        is_here = any(home.glob(f"lib/python3*/site-packages/{package}"))
    if not is_here:
        pytest.skip(f"{package} isn't installed: make clients")
    return command


async def told_by(script: str, url: str, way: str) -> Any:
    """What a client made of the answer."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    process = await asyncio.create_subprocess_exec(
        *command_of(script), url, way, cwd=ROOT, env={**kept, **AT_HOME}, stdout=PIPE, stderr=PIPE
    )
    output, complaints = await process.communicate()
    assert 0 == process.returncode, complaints.decode()
    return json.loads(output.splitlines()[-1])


async def stored(service: Service) -> Any:
    """The one completion that is kept, as the service's own calls have it."""
    record = await service.kept.one()
    assert State.COMPLETED is record.state
    assert [Outcome.OK] * 2 == [call.outcome for call in record.tool_calls]
    url = f"{service.url}/v1/chat/completions"
    async with service.http.get(f"{url}/{record.completion_id}") as response:
        return (await response.json())["choices"][0]["message"]


@pytest.mark.parametrize("way", ["stream", "plain"])
@pytest.mark.parametrize("script", [*PYTHON, *NODE])
async def test_a_client_makes_one_answer_of_it(
    make_service: ServiceMaker, script: str, way: str
) -> None:
    """The text that is stored, one finish reason, no calls, nothing run, no error, and one request."""
    service = await make_service(DEMO)
    told = await told_by(script, f"{service.url}/v1", way)
    message = await stored(service)
    assert message["content"].startswith("Let me look.\n\nThis is what I was told: ")
    finish = [] if (script, way) in SHOW_NO_REASON else ["stop"]
    expected = {"text": message["content"], "finish": finish, "tool_calls": 0, "error": None}
    assert expected == told


def test_every_script_is_asked() -> None:
    """A script without a row above would be tried by nobody."""
    scripts = {path.stem for path in (HERE / "scripts").glob("*.*") if path.stem[:1] != "_"}
    assert {*PYTHON, *NODE, "told"} == scripts
