"""Measures how fast an answer is sent again, from memory while it runs and from its row afterwards.

    python -m benchmarks.questions.replays
    python -m benchmarks.questions.replays --chunks 50000 --characters 12 --rounds 3 --json

An answer of 200,000 chunks, cuts of four characters from this project's documents, pauses before its
end; readers take it from the start, one after the other, and throw it away. Then it ends, is saved,
and is read from PostgreSQL as often. Bytes are those that the service sent, events and their HTTP
frames; CPU time is the service's, user and system, from /proc, the row's reading included. Before
that one reader of each kind checks that the events are those of the first client. The longest that a
short request had to wait meanwhile (`/healthz`, every 5 ms) is `held_up_ms`.
"""

import argparse
import asyncio
import json
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from aiohttp import web

from benchmarks.stand.figures import print_table
from benchmarks.stand.machine import cpu_seconds, settle
from benchmarks.stand.reading import read_request
from benchmarks.stand.running import ROOT, agent, scene, service

_TOGETHER = 200
_PAUSED, _PAUSED_END = "@pauses", b"@pauses"
_DONE = b"data: [DONE]\n\n\r\n0\r\n\r\n"
_TAIL_BYTES = 4096
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.005


class Backend:
    """Says the texts, pauses until `go_on` is set, and ends."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self.go_on = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await request.read()
        await response.prepare(request)
        for start in range(0, len(self._texts), _TOGETHER):
            texts = self._texts[start : start + _TOGETHER]
            await response.write(b"".join([_chunk({"content": text}) for text in texts]))
        await response.write(_chunk({"content": _PAUSED}))
        await self.go_on.wait()
        await response.write(_chunk({}, "stop") + b"data: [DONE]\n\n")
        return response


def _chunk(delta: dict[str, Any], end: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}
    event = {
        "id": "chatcmpl-CH3uWYzbmCjhuUbRMg5nVkPJWnGs6",
        "object": "chat.completion.chunk",
        "created": 1767264752,
        "model": "gpt-4o-2024-08-06",
        "system_fingerprint": "fp_e819e3438b",
        "choices": [choice],
    }
    return f"data: {json.dumps(event, separators=(',', ':'), ensure_ascii=False)}\n\n".encode()


def cuts(count: int, characters: int) -> list[str]:
    """So many pieces of the documents, of so many characters each."""
    text = "".join(path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    text *= 1 + count * characters // len(text)
    return [text[n * characters : (n + 1) * characters] for n in range(count)]


# --- readers ----------------------------------------------------------------------------------


def _arriving(port: int, request: bytes, end: bytes) -> Iterator[memoryview]:
    """What comes of a response until it ends with this, give or take some bytes."""
    buffer = bytearray(1 << 20)
    view, tail = memoryview(buffer), b""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS) as connection:
        connection.sendall(request)
        while end not in tail:
            size = connection.recv_into(buffer)
            if not size:
                raise SystemExit("a stream broke off")
            tail = (tail + view[max(0, size - _TAIL_BYTES) : size])[-_TAIL_BYTES:]
            yield view[:size]


def discard(port: int, request: bytes, end: bytes) -> int:
    """How many bytes came."""
    return sum(len(read) for read in _arriving(port, request, end))


def events(port: int, request: bytes, end: bytes) -> bytes:
    """What was in the frames of a chunked response, as far as they are whole."""
    received = b"".join(map(bytes, _arriving(port, request, end)))
    place, read = received.index(b"\r\n\r\n") + 4, list[bytes]()
    while (line_end := received.find(b"\r\n", place)) >= 0:
        size = int(received[place:line_end], 16)
        read.append(received[line_end + 2 : line_end + 2 + size])
        place = line_end + 2 + size + 2
    return b"".join(read)


# --- the measurement ----------------------------------------------------------------------------


async def _round(port: int, pid: int, request: bytes, end: bytes) -> dict[str, float]:
    stop = asyncio.Event()
    held_up = asyncio.create_task(_longest_wait(port, stop))
    await asyncio.sleep(0.1)
    cpu, started = cpu_seconds(pid), time.monotonic()
    size = await asyncio.to_thread(discard, port, request, end)
    seconds = time.monotonic() - started
    cpu = cpu_seconds(pid) - cpu
    stop.set()
    return {
        "mb": size / 1e6,
        "cpu_ms": cpu * 1e3,
        "mb_per_cpu_second": size / 1e6 / cpu,
        "mb_per_second": size / 1e6 / seconds,
        "held_up_ms": await held_up,
    }


async def _longest_wait(port: int, stop: asyncio.Event) -> float:
    longest = 0.0
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        while not stop.is_set():
            asked = time.monotonic()
            async with http.get("/healthz") as response:
                await response.read()
            longest = max(longest, time.monotonic() - asked)
            await asyncio.sleep(_LOOK_SECONDS)
    return longest * 1e3


async def _first_client(port: int, started: "asyncio.Future[str]") -> bytes:
    body = {"model": "bench", "stream": True, "messages": [{"role": "user", "content": "Go."}]}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        async with http.post("/v1/chat/completions", json=body) as response:
            started.set_result(response.headers["x-completion-id"])
            return await response.read()


async def _measure(directory: Path, config: dict[str, Any], options: argparse.Namespace) -> Any:
    backend = Backend(cuts(options.chunks, options.characters))
    app = web.Application()
    app.router.add_post("/v1/chat/completions", backend.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    rounds: dict[str, list[dict[str, float]]] = {"from memory": [], "from the row": []}
    with service(directory, {**config, "agents": [agent(runner.addresses[0][1])]}) as (port, pid):
        started = asyncio.get_running_loop().create_future()
        first = asyncio.create_task(_first_client(port, started))
        request = read_request(await started)
        so_far = await asyncio.to_thread(events, port, request, _PAUSED_END)
        for _ in range(options.rounds):
            rounds["from memory"].append(await _round(port, pid, request, _PAUSED_END))
        backend.go_on.set()
        whole = await first
        stored = await asyncio.to_thread(events, port, request, _DONE)
        if not (stored == whole and whole.startswith(so_far) and len(so_far) > options.chunks):
            raise SystemExit("what is sent again differs from what was sent")
        for _ in range(options.rounds):
            rounds["from the row"].append(await _round(port, pid, request, _DONE))
    await runner.cleanup()
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=200_000)
    parser.add_argument("--characters", type=int, default=4, help="in a chunk's text")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    settle()
    with ExitStack() as stack:
        on = stack.enter_context(scene())
        rounds = asyncio.run(_measure(on.directory / "ours", on.config, options))
    if options.json:
        print(json.dumps(rounds, indent=2))
        return
    title = f"{options.chunks:,} chunks of {options.characters} characters, sent again"
    print_table(
        f"{title}; medians of {options.rounds} rounds",
        {
            name: {key: median(each[key] for each in found) for key in found[0]}
            for name, found in rounds.items()
        },
    )


if __name__ == "__main__":
    main()
