"""Open WebUI, the real one, in a real Chromium: what its people see of an agent's tools.

`make open-webui` sets it up and runs this. What it asks and what it shows is all there is: nothing of it is
faked, and nothing leaves the machine.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from service.settings.config import ScriptedAgentConfig
from service.settings.tools import ToolsConfig, ToolServerConfig
from statemachine import Outcome, SessionRecord, State
from tests.service.conftest import Service, ServiceMaker
from tests.service.open_webui.stage import TASK_MODEL, Chat, installed, running
from tests.service.page import stage
from tests.service.page.pictures import PICTURES
from tests.service.tools.server import Call, ToolServer, tool

pytestmark = [pytest.mark.open_webui, pytest.mark.timeout(400)]

QUESTION = "Roll the dice and tell the time"
DEMO = ScriptedAgentConfig(
    name="demo", kind="scripted", models=("demo",), tools=ToolsConfig(builtin=("clock", "dice"))
)
PLAIN = ScriptedAgentConfig(
    name=TASK_MODEL, kind="scripted", models=(TASK_MODEL,), reply="{}", tokens_per_second=1000.0
)
_TASKS = 3
"""Title, follow-ups and tags."""
_HOW = "apt-get install chromium, and: make open-webui"

Opener = Callable[[Service, str], AbstractAsyncContextManager[Chat]]


@pytest.fixture
async def open_chat(tmp_path: Path) -> AsyncIterator[Opener]:
    """Opens a chat with a model of a service, in an Open WebUI and a browser of its own."""
    command, chromium = installed(), stage.installed()
    if command is None or chromium is None:
        pytest.skip(f"Open WebUI or Chromium is not here: {_HOW}")
    pytest.importorskip("playwright", reason=f"Playwright is not here: {_HOW}")

    @asynccontextmanager
    async def opened(service: Service, model: str) -> AsyncIterator[Chat]:
        web_ui = running(command, tmp_path / "open-webui", service.url)
        url = await asyncio.to_thread(web_ui.__enter__)
        try:
            async with stage.browser_of(chromium) as browser:
                page = await browser.new_page(viewport={"width": 1000, "height": 620})
                page.set_default_timeout(60_000)
                chat = Chat(page)
                await chat.begin(url, model)
                yield chat
        finally:
            await asyncio.to_thread(web_ui.__exit__, None, None, None)

    yield opened


async def test_its_people_see_what_is_called(make_service: ServiceMaker, open_chat: Opener) -> None:
    """A status line for each call's beginning and end, the whole text, nothing called twice; and the same
    when the chat is opened again."""
    service = await make_service(DEMO, PLAIN)
    async with open_chat(service, "demo") as chat:
        await chat.ask(QUESTION)
        await chat.wait_for_end()
        seen = await chat.statuses(), await chat.paragraphs()
        await shoot(chat.page)
        await chat.page.reload()
        await chat.wait_for_end()
        assert seen == (await chat.statuses(), await chat.paragraphs())
        tasks, record = await asked(service, _TASKS)
    assert [0] * _TASKS == [len(task.tool_calls) for task in tasks]
    assert (State.COMPLETED, True) == (record.state, record.whole)
    called = [(call.server, call.tool, call.outcome) for call in record.tool_calls]
    assert [("clock", "now", Outcome.OK), ("dice", "roll", Outcome.OK)] == called
    lines, paragraphs = seen
    assert ["clock: now …", "dice: roll …", "clock: now", "dice: roll"] == lines
    answers = ", ".join(str(call.result) for call in record.tool_calls)
    assert ["Let me look.", f"This is what I was told: {answers}."] == paragraphs


async def asked(service: Service, tasks: int = 0) -> tuple[list[SessionRecord], SessionRecord]:
    """What it asked the model for tasks, at least so many, and the one answer: had there been calls for it
    to make, it would have asked again with their results."""
    async with asyncio.timeout(30):
        while True:
            records = service.kept.records
            found = [each for each in records if each.request.model == TASK_MODEL]
            if len(found) >= tasks and len(found) < len(records):
                break
            await asyncio.sleep(0.1)
    (record,) = (each for each in records if each.request.model != TASK_MODEL)
    return found, record


async def shoot(page: Any) -> None:
    """Take the documents' picture, in few colours; not without what makes it small."""
    image = pytest.importorskip("PIL.Image", reason=f"Pillow is not here: {_HOW}")
    taken = image.open(BytesIO(await page.screenshot()))
    few = taken.convert("RGB").quantize(64, dither=image.Dither.NONE)
    few.save(PICTURES / "open-webui.png", optimize=True)


@pytest.fixture
async def slow() -> AsyncIterator[ToolServer]:
    """A server with a clock that doesn't answer before the test's end."""
    server, is_over = ToolServer(), asyncio.Event()
    server.pages = [[tool("now")]]

    async def hang(call: Call) -> web.StreamResponse:
        await is_over.wait()
        return call.json({"content": []})

    server.handlers["now"] = hang
    await server.start()
    yield server
    is_over.set()
    await server.stop()


async def test_its_stop_button_abandons_a_call(
    make_service: ServiceMaker, open_chat: Opener, slow: ToolServer
) -> None:
    """Stopped while a tool works: the record says so, the text so far is kept, nobody asks again."""
    tools = ToolsConfig(servers=(ToolServerConfig(name="clock", url=slow.url),))
    agent = ScriptedAgentConfig(name="slow", kind="scripted", models=("slow",), tools=tools)
    service = await make_service(agent, PLAIN)
    async with open_chat(service, "slow") as chat:
        await chat.ask("What time is it?")
        await chat.wait_for_status("clock: now …")
        await chat.page.get_by_role("button", name="Stop", exact=True).click()
        await chat.wait_for_end()
        _, record = await asked(service)
        assert ["Let me look."] == await chat.paragraphs()
    assert State.CLIENT_GONE is record.state
    assert [Outcome.ABANDONED] == [call.outcome for call in record.tool_calls]
    assert ["now"] == slow.calls
