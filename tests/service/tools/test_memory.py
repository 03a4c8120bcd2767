"""The toolbox in memory does what those of the service do, as far as their callers can tell."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from service.tools.contract import Toolbox, ToolsUnavailable
from statemachine import Outcome
from tests.service.tools.conftest import MakeBox
from tests.service.tools.memory import MemoryToolbox
from tests.service.tools.server import Call, ToolServer, text, tool


class Both:
    """A toolbox of either kind with the tools `docs__good`, `docs__bad` and `docs__hang`."""

    def __init__(self, box: Toolbox, called: Callable[[], int]) -> None:
        self.box = box
        self.called = called


@pytest.fixture(params=["memory", "server"])
async def both(
    request: pytest.FixtureRequest, server: ToolServer, make_box: MakeBox
) -> AsyncIterator[Both]:
    async def hang(_: Call) -> None:
        await asyncio.sleep(60)

    server.pages = [[tool("good"), tool("bad"), tool("hang")]]
    server.handlers["good"] = lambda call: call.json(text("fine"))
    server.handlers["bad"] = lambda call: call.json(text("oh no", isError=True))
    server.handlers["hang"] = hang  # type: ignore[assignment]  # it never answers
    memory = MemoryToolbox()
    memory.answer("docs__good", "fine")
    memory.answer("docs__bad", "oh no", Outcome.ERROR)
    memory.hang("docs__hang")
    if request.param == "memory":
        yield Both(memory, lambda: len(memory.called))
    else:
        yield Both(make_box(), lambda: len(server.calls))


async def test_both_list_and_call_alike(both: Both) -> None:
    """Tools have names, schemas and results; nothing is called by listing."""
    tools = {tool.full_name: tool for tool in await both.box.tools()}
    assert ["docs__good", "docs__bad", "docs__hang"] == list(tools)
    assert {"type": "object"} == tools["docs__good"].parameters
    assert 0 == both.called()
    async with both.box.open() as calls:
        results = [await calls.call(tools[name], {"a": 1}) for name in ("docs__good", "docs__bad")]
    assert [(Outcome.OK, "fine", 4), (Outcome.ERROR, "oh no", 5)] == [
        (result.outcome, result.text, result.size) for result in results
    ]
    assert 2 == both.called()


async def test_both_give_a_cancelled_call_up(both: Both) -> None:
    """Cancelling a call raises what cancelling raises, and leaving doesn't wait."""
    tools = {tool.full_name: tool for tool in await both.box.tools()}
    async with both.box.open() as calls:
        task = asyncio.create_task(calls.call(tools["docs__hang"], {}))
        while both.called() == 0:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await both.box.close()


async def test_memory_counts() -> None:
    """It says how many worked at once, what was given up, and what was opened and left."""
    box = MemoryToolbox()
    box.answer_after("m__slow", 0.05, "done")
    box.hang("m__hang")
    slow, hang = await box.tools()
    async with box.open() as calls:
        hanging = asyncio.create_task(calls.call(hang, {}))
        results = await asyncio.gather(*(calls.call(slow, {"n": n}) for n in range(3)))
        hanging.cancel()
        await asyncio.wait((hanging,))
    assert ["done"] * 3 == [result.text for result in results]
    assert (4, 0, ["m__hang"], 1, 1) == (
        box.most_running,
        box.running,
        box.given_up,
        box.opened,
        box.left,
    )
    box.unavailable = True
    with pytest.raises(ToolsUnavailable):
        await box.tools()
