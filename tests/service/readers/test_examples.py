"""The examples that read on where a connection broke: nothing is missing, nothing comes twice, and they
stop at the true end. Real SDKs, a real proxy that cuts, the real service."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.settings.config import ScriptedAgentConfig
from service.settings.tools import ToolsConfig
from tests.service.conftest import Service, ServiceMaker
from tests.service.readers.conftest import until

EXAMPLES = Path(__file__).parents[3] / "examples"
WORDS = " ".join(f"word{number}" for number in range(60))
TOOLS = ToolsConfig(builtin=("clock", "dice"))
ROLL = "Roll the dice, and tell the time"


@pytest.fixture(params=["python", "node"])
def reader(request: pytest.FixtureRequest) -> str:
    """Which SDK's example."""
    if request.param == "node":
        if shutil.which("node") is None:
            pytest.skip("there is no node on this machine")
        if not (EXAMPLES / "node_modules/openai").exists():
            pytest.skip("the Node SDK isn't installed: npm install --prefix examples")
    return str(request.param)


def demo(**fields: Any) -> ScriptedAgentConfig:
    return ScriptedAgentConfig(
        name="demo", kind="scripted", reply=WORDS, tokens_per_second=40, **fields
    )


async def started(service: Service, reader: str, *question: str) -> asyncio.subprocess.Process:
    """The example, reading an answer without cuts."""
    program = {"python": (sys.executable, "resuming.py"), "node": ("node", "resuming.mjs")}[reader]
    return await asyncio.create_subprocess_exec(
        program[0],
        str(EXAMPLES / program[1]),
        f"{service.url}/v1",
        *question,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def chunks_of(output: bytes) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]


def text_of(output: bytes) -> str:
    chunks = chunks_of(output)
    return "".join(choice["delta"].get("content") or "" for c in chunks for choice in c["choices"])


async def test_a_reader_that_is_cut_ten_times_has_what_one_has_that_is_not(
    make_service: ServiceMaker, reader: str
) -> None:
    """Chunk by chunk; and the model was asked once."""
    service = await make_service(demo())
    arguments = ("--cuts", "10", "--reader", reader, f"{service.url}/v1")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / "cuts.py"),
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert 0 == process.returncode, output.decode()
    assert output.endswith(b"the same\n")
    assert b"cut 10 times: 62 chunks" in output
    assert 1 == len(service.kept.records)


async def test_an_agents_calls_come_once_however_often_the_reader_is_cut(
    make_service: ServiceMaker, reader: str
) -> None:
    """They are chunks like others: the SDK hands them on, and no position is lost or told twice."""
    service = await make_service(demo(tools=TOOLS))
    process = await started(service, reader, ROLL)
    output, errors = await process.communicate()
    assert (0, b"") == (process.returncode, errors)
    assert text_of(output).startswith("Let me look.\n\nThis is what I was told:")
    told = [each["activity"]["type"] for each in chunks_of(output) if "activity" in each]
    assert ["tool_call.started"] * 2 + ["tool_call.finished"] * 2 == told
    cutting = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / "cuts.py"),
        *("--cuts", "4", "--reader", reader, "--question", ROLL, f"{service.url}/v1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await cutting.communicate()
    assert (0, True) == (cutting.returncode, said.endswith(b"the same\n")), said.decode()
    assert [2, 2] == [len(record.tool_calls) for record in service.kept.records]


async def test_a_broken_answer_is_an_error_after_its_words(
    make_service: ServiceMaker, reader: str
) -> None:
    """A reader that broke off itself would ask for ever."""
    service = await make_service(demo(fail_after_tokens=3, fail_with="truncate"))
    process = await started(service, reader)
    output, errors = await process.communicate()
    assert 1 == process.returncode
    assert "word0 word1 word2" == text_of(output)
    assert b"broke off before its end" in errors


async def test_a_stopped_answer_ends_in_silence(make_service: ServiceMaker, reader: str) -> None:
    """With the words that had come."""
    service = await make_service(demo())
    process = await started(service, reader)
    await until(lambda: service.relays and service.relays[0].session.first_token_at is not None)
    completion_id = service.relays[0].session.request.completion_id
    url = f"{service.url}/v1/chat/completions/{completion_id}/cancel"
    async with service.http.post(url) as response:
        assert (await response.json())["cancelled"]
    output, errors = await process.communicate()
    assert (0, b"") == (process.returncode, errors)
    assert WORDS.startswith(text_of(output))
    assert text_of(output)
