"""What a turn costs beside the model's and the tool's own time, and whether tools hold up other streams.

    python -m benchmarks.questions.turns
    python -m benchmarks.questions.turns --answers 500 --at-once 100

Answers of two turns are asked one after the other: the model, which answers at once, calls a tool of a server
on loopback (`mcp`'s own, in a process of its own), and is asked again. The overhead is what passes from the
model's last byte of the first turn to its being asked again, without the tool's own time: connecting to the
server, the call, the journal. Then a stream of a chunk every 10 ms is read alone, and again while many
answers wait for a tool that takes two seconds: how late its chunks are.

    overhead   ms a turn, p50 and p99
    beside     ms that the longest silence of the other stream lasted, alone and beside the tools
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import aiohttp
from aiohttp import web

from benchmarks.stand.figures import percentile, print_table
from benchmarks.stand.machine import settle
from benchmarks.stand.running import agent, answers, free_port, scene, service

_WORDS, _INTERVAL_SECONDS, _TOOL_SECONDS = 300, 0.01, 2.0
_SERVER = f"""
import asyncio, sys, time
from mcp.server import MCPServer
server = MCPServer("bench")
@server.tool()
async def quick() -> str:
    return str(time.monotonic())
@server.tool()
async def slow() -> str:
    await asyncio.sleep({_TOOL_SECONDS})
    return "done"
server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
"""


class Model:
    """Answers at once: with a call of the tool that is asked for, then with a word.

    Attributes:
        overheads: milliseconds from each first turn's end to the second one's request.
    """

    def __init__(self) -> None:
        self.overheads: list[float] = []
        self._ended_at: dict[str, float] = {}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked_at = time.monotonic()
        body = await request.json()
        first = body["messages"][0]["content"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if first == "words":
            for _ in range(_WORDS):
                await response.write(_event({"content": " word"}))
                await asyncio.sleep(_INTERVAL_SECONDS)
            await response.write(_event({}, "stop") + b"data: [DONE]\n\n")
            return response
        tool, number = first.split()
        if body["messages"][-1]["role"] == "tool":
            if number in self._ended_at:
                self.overheads.append((asked_at - self._ended_at.pop(number)) * 1000)
            await response.write(_event({"content": "So."}) + _event({}, "stop"))
        else:
            function = {"name": f"bench__{tool}", "arguments": "{}"}
            item = {"index": 0, "id": "call_1", "type": "function", "function": function}
            await response.write(_event({"tool_calls": [item]}) + _event({}, "tool_calls"))
            self._ended_at[number] = time.monotonic()
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**chunk, "choices": [choice]}).encode() + b"\n\n"


@contextmanager
def _tools() -> Iterator[str]:
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        try:
            url = f"http://127.0.0.1:{port}/mcp"
            until = time.monotonic() + 30
            while not _listens(port) and time.monotonic() < until:
                time.sleep(0.1)
            yield url
        finally:
            running.terminate()


def _listens(port: int) -> bool:

    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


async def _ask(http: aiohttp.ClientSession, url: str, text: str) -> float:
    """Read an answer to its end; its longest silence between two reads, in ms."""
    body = {
        "model": "bench",
        "stream": True,
        "messages": [{"role": "user", "content": text}],
    }
    longest, last = 0.0, None
    async with http.post(url, json=body) as response:
        response.raise_for_status()
        async for data in response.content.iter_any():
            now = time.monotonic()
            if last is not None:
                longest = max(longest, (now - last) * 1000)
            last = now
            ended = b"[DONE]" in data
    if not ended:
        raise SystemExit(f"an answer to {text!r} broke off")
    return longest


async def _measure(options: argparse.Namespace) -> None:
    model = Model()
    async with (
        model.serving() as port,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        with ExitStack() as stack:
            place = stack.enter_context(scene())
            tools = {"servers": [{"name": "bench", "url": stack.enter_context(_tools())}]}
            config = {**place.config, "agents": [{**agent(port), "tools": tools}]}
            running = service(place.directory / "service", config)
            ours, _ = await asyncio.to_thread(stack.enter_context, running)
            assert await asyncio.to_thread(answers, f"http://127.0.0.1:{ours}/healthz")
            url = f"http://127.0.0.1:{ours}/v1/chat/completions"
            for number in range(options.answers + 3):
                await _ask(http, url, f"quick {number}")
            overheads = model.overheads[3:]
            alone = await _ask(http, url, "words")
            many = [
                asyncio.create_task(_ask(http, url, f"slow {10**6 + number}"))
                for number in range(options.at_once)
            ]
            await asyncio.sleep(0.5)
            beside = await _ask(http, url, "words")
            await asyncio.gather(*many)
    rows: dict[str, dict[str, Any]] = {
        "overhead, ms a turn": {"p50": percentile(overheads, 50), "p99": percentile(overheads, 99)},
        "longest silence, ms": {"p50": alone, "p99": beside},
    }
    print_table(
        f"{options.answers} answers; alone (p50) and beside {options.at_once} at their tools (p99)",
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=100)
    options = parser.parse_args()
    settle()
    asyncio.run(_measure(options))


if __name__ == "__main__":
    main()
