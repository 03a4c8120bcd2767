"""A service that is killed at every point of an answer with tools: nothing is called twice, nothing that was
shown is lost, and the record says what nobody knows. Real processes, a real server of tools, real kills."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.postgres import execute
from tests.service.process.conftest import settings
from tests.service.readers.conftest import until
from tests.service.stage.backend import Backend, Exchange, chunk
from tests.service.stage.process import Process, text_of
from tests.service.tools.server import Call, ToolServer, text

QUESTION = [{"role": "user", "content": "Look it up, please."}]


class Scene:
    """What happens around one answer, and when the service is killed.

    Attributes:
        reached: set as soon as the point is reached at which it is to be.
        goes_on: what waits at that point waits for this.
    """

    def __init__(self, point: str) -> None:
        self.point = point
        self.reached = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.turns = 0

    async def at(self, point: str) -> None:
        """Here it may be killed."""
        if point == self.point:
            self.reached.set()
            await self.goes_on.wait()

    async def model(self, exchange: Exchange) -> None:
        """Two turns: one with two calls, and one that says what came of them."""
        self.turns += 1
        await self.at(f"asked in turn {self.turns}")
        await exchange.start()
        if self.turns > 1:
            await exchange.words("So", " it")
            await self.at("words of turn 2")
            await exchange.words(" is.")
            await self.at("all but the end")
            await exchange.finish()
            return
        await exchange.words("Let", " me", " look.")
        await self.at("words of turn 1")
        await exchange.event(chunk({"tool_calls": [item(0, "one"), item(1, "two")]}))
        await self.at("calls that aren't whole")
        await exchange.finish("tool_calls")

    async def one(self, call: Call) -> web.StreamResponse:
        """A tool that answers."""
        await self.at("first call at its server")
        response = call.json(text("found"))
        return response

    async def two(self, call: Call) -> web.StreamResponse:
        """A tool that takes its time."""
        await self.at("second call at its server")
        if self.point == "one call over, one at work":
            self.reached.set()
            await self.goes_on.wait()
        return call.json(text("found too"))


def item(index: int, name: str) -> Any:
    """A whole call."""
    function = {"name": f"docs__{name}", "arguments": "{}"}
    return {"index": index, "id": f"call_{name}", "type": "function", "function": function}


# point → how many calls were made, and what is known of each call
POINTS: dict[str, tuple[int, dict[str, str]]] = {
    "asked in turn 1": (0, {}),
    "words of turn 1": (0, {}),
    "calls that aren't whole": (0, {}),
    "first call at its server": (2, {"call_one": "unknown"}),
    "second call at its server": (2, {"call_two": "unknown"}),
    "one call over, one at work": (2, {"call_one": "ok", "call_two": "unknown"}),
    "asked in turn 2": (2, {"call_one": "ok", "call_two": "ok"}),
    "words of turn 2": (2, {"call_one": "ok", "call_two": "ok"}),
    "all but the end": (2, {"call_one": "ok", "call_two": "ok"}),
    "client told of a result": (2, {"call_one": "ok"}),
}
QUICK = ("second call at its server",)
LONG = tuple(point for point in POINTS if point not in QUICK)


@pytest.fixture
async def docs() -> AsyncIterator[ToolServer]:
    server = await ToolServer().start()
    yield server
    await server.stop()


@pytest.mark.parametrize(
    "point", [*QUICK, *(pytest.param(each, marks=pytest.mark.tools) for each in LONG)]
)
async def test_a_kill_loses_nothing_and_repeats_nothing(
    point: str, tmp_path: Path, database_url: str, backend: Backend, docs: ToolServer
) -> None:
    """At each point between an intent, its call, its result and the next turn."""
    scene = Scene("one call over, one at work" if point == "client told of a result" else point)
    backend.script = scene.model
    docs.handlers = {"one": scene.one, "two": scene.two}
    config = settings(database_url, backend, 1)
    config["agents"][0]["tools"] = {"servers": [{"name": "docs", "url": docs.url}]}
    process = Process(tmp_path, config)
    shown = bytearray()
    try:
        await asyncio.to_thread(process.line, "serving")
        async with aiohttp.ClientSession() as http:
            reading = asyncio.create_task(_read(http, process.port, shown))
            await asyncio.wait_for(scene.reached.wait(), 30)
            await _settled(point, shown, docs)
            process.popen.kill()
            process.popen.wait()
            await asyncio.gather(reading, return_exceptions=True)
        made = list(docs.calls)
        scene.goes_on.set()
        process = Process(tmp_path, config)
        await asyncio.to_thread(process.line, "recovered")
        await until(lambda: bool(_rows(database_url)))
        await asyncio.sleep(0.3)
        assert made == docs.calls
        assert 0 == await asyncio.to_thread(process.stop)
    finally:
        process.end()
    count, known = POINTS[point]
    (row,) = _rows(database_url)
    assert ("failed", "process_died") == row[:2]
    assert (row[2] or "").startswith(text_of(bytes(shown)).rstrip("\n"))
    assert count == len(made) == len(set(made))
    outcomes = dict(execute(database_url, "SELECT call_id, outcome FROM tool_calls"))
    assert known.items() <= outcomes.items()
    assert len(outcomes) == count
    told = [json.loads(line[6:]) for line in shown.decode().split("\n") if line[:7] == "data: {"]
    ended = [each["activity"] for each in told if "outcome" in each.get("activity", {})]
    assert {each["call_id"]: each["outcome"] for each in ended}.items() <= outcomes.items()


async def _read(http: aiohttp.ClientSession, port: int, shown: bytearray) -> None:
    """All that a client is shown."""
    body = {"model": "backend", "stream": True, "messages": QUESTION}
    async with http.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as response:
        async for data in response.content.iter_any():
            shown += data


async def _settled(point: str, shown: bytearray, docs: ToolServer) -> None:
    """Once all that comes before the point has come."""
    count, known = POINTS[point]
    await until(lambda: count == len(docs.calls))
    if "ok" in known.values():
        await until(lambda: list(known.values()).count("ok") == shown.count(b'"outcome":"ok"'))
    if point.startswith("words"):
        await until(lambda: text_of(bytes(shown)).endswith((" look.", " it")))


def _rows(database_url: str) -> list[tuple[Any, ...]]:
    return execute(
        database_url,
        "SELECT c.state, c.error->>'code', m.content FROM completions c"
        " LEFT JOIN messages m USING (completion_id)",
    )
