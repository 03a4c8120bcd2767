"""Servers that are processes: one for all answers, begun anew when it ends, ended with the toolbox."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from service.tools import servers
from service.tools.contract import Calls, Toolbox, ToolsUnavailable
from statemachine import Outcome
from tests.service.tools.conftest import MakeBox, named

SCRIPT = Path(__file__).with_name("process_server.py")


@pytest.fixture
def starts(tmp_path: Path) -> Path:
    return tmp_path / "starts"


@pytest.fixture
def box(make_box: MakeBox, starts: Path) -> Toolbox:
    return make_process(make_box, starts)


def make_process(make_box: MakeBox, starts: Path, **fields: Any) -> Toolbox:
    args = ("-S", "-E", str(SCRIPT), str(starts))
    return make_box(
        {"SECRET": "given"},
        command=sys.executable,
        args=args,
        env={"GIVEN": "${SECRET}"},
        **{"timeout_seconds": 20.0, **fields},
    )


def pids(starts: Path) -> list[int]:
    return [int(line) for line in starts.read_text("utf-8").split()] if starts.exists() else []


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def said(calls: Calls, name: str) -> str:
    result = await calls.call(named(name), {})
    assert Outcome.OK is result.outcome, result.text
    return result.text


async def test_one_process_serves_all_answers(box: Toolbox, starts: Path) -> None:
    """It begins when it is needed first, serves answers side by side, gets the variables that are
    configured and no others of ours, and ends with the toolbox."""
    assert [] == pids(starts)
    os.environ["NOT_GIVEN"] = "ours"
    try:
        tools = [tool.name for tool in await box.tools()]
    finally:
        del os.environ["NOT_GIVEN"]
    assert ["pid", "env", "die", "hang", "quiet"] == tools
    async with box.open() as one, box.open() as two:
        found = await asyncio.gather(*(said(calls, "pid") for calls in (one, two, one)))
        assert "given" == await said(two, "env")
    (pid,) = pids(starts)
    assert [str(pid)] * 3 == found
    assert is_alive(pid)
    await box.close()
    assert not is_alive(pid)


async def test_a_process_that_ends_begins_again(box: Toolbox, starts: Path) -> None:
    """A call in the middle of which it ends is unknown and not repeated; the next one waits for a new
    process."""
    async with box.open() as calls:
        assert Outcome.UNKNOWN is (await calls.call(named("die"), {})).outcome
        pid = await said(calls, "pid")
    assert 2 == len(pids(starts))
    assert str(pids(starts)[1]) == pid


async def test_a_process_that_was_killed_begins_again(box: Toolbox, starts: Path) -> None:
    """One that ends while nobody calls begins again by itself, and the next call goes there."""
    async with box.open() as calls:
        first = int(await said(calls, "pid"))
        os.kill(first, 9)
        async with asyncio.timeout(20):
            while len(pids(starts)) < 2:
                await asyncio.sleep(0.01)
        second = int(await said(calls, "pid"))
    assert [first, second] == pids(starts)


async def test_a_hanging_process_is_given_up(make_box: MakeBox, starts: Path) -> None:
    """A call times out, and closing ends a process that doesn't listen."""
    box = make_process(make_box, starts, timeout_seconds=1.0)
    await box.tools()
    async with box.open() as calls:
        assert Outcome.TIMEOUT is (await calls.call(named("hang"), {})).outcome
    before = time.monotonic()
    await box.close()
    assert time.monotonic() - before < 8
    (pid,) = pids(starts)
    assert not is_alive(pid)


async def test_what_it_says_besides_is_dropped(
    box: Toolbox, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its standard error is nobody's: it may hold arguments and results."""
    async with box.open() as calls:
        await said(calls, "quiet")
    await box.close()
    assert "secret" not in str(capfd.readouterr())


async def test_a_command_that_is_not_there(
    make_box: MakeBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that can't be run is tried again after pauses, and its calls say that nothing was called."""
    monkeypatch.setattr(servers, "_FIRST_PAUSE_SECONDS", 0.05)
    box = make_box(command="/nowhere/at-all", timeout_seconds=0.5)
    with pytest.raises(ToolsUnavailable, match="'docs'"):
        await box.tools()
    async with box.open() as calls:
        result = await calls.call(named("pid"), {})
    assert Outcome.ERROR is result.outcome
    assert result.text.endswith("The tool was not called.")
