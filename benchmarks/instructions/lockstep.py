"""A load that is the same each time: client and backend in one process, taking turns.

The backend sends a chunk when the client has the one before, so that no two of them ever come to the
service in one read. Requests go one after the other, each when the last answer is saved and the
saver's next transaction may begin, so that each has one of its own. So the service does the same
steps in the same order each time, however slowly it runs. Nothing is timed.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

Kind = Literal["alike", "parsed"]
"""Chunks that differ in their text alone, or in more, so that each has to be parsed."""

_ANSWER_SECONDS = 60.0
"""Longest wait for anything from a service that runs some fifty times slower than usual."""
_PAUSE_SECONDS = 0.03
"""After a request: longer than a transaction keeps the next one waiting (`db.saver`)."""
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"
)
_LAST = b"0\r\n\r\n"
_USAGE = ',"usage":{"prompt_tokens":5,"completion_tokens":%d,"total_tokens":%d}'


def _event(delta: dict[str, str], finish_reason: str = "null", more: str = "") -> bytes:
    """A chunk of the answer in an HTTP chunk of its own."""
    text = (
        'data: {"id":"up","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
        f'"choices":[{{"index":0,"delta":{json.dumps(delta)},"logprobs":null,'
        f'"finish_reason":{finish_reason}}}]{more}}}\n\n'
    ).encode()
    return b"%x\r\n%b\r\n" % (len(text), text)


_END = _event({}, '"stop"') + b"e\r\ndata: [DONE]\n\n\r\n" + _LAST


def _text(number: int) -> str:
    """As long for every number below ten million."""
    return f"@{number:07}"


def _first() -> bytes:
    return _HEAD + _event({"role": "assistant", "content": _text(0)})


def next_chunk(number: int, kind: Kind) -> bytes:
    """A chunk in the middle. A `parsed` one tells the usage so far, as vLLM's do when asked to."""
    more = _USAGE % (10_000 + number, 10_005 + number) if kind == "parsed" else ""
    return _event({"content": _text(number)}, more=more)


def _request(number: int) -> bytes:
    """A question that nobody has asked before."""
    messages = [{"role": "user", "content": f"Question {number:07}"}]
    body = json.dumps({"model": "bench", "stream": True, "messages": messages}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        "Content-Type: application/json\r\nAccept: text/event-stream\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Turns:
    """Both ends of one service: `connect` the client to it, then ask. Every call returns when the
    client has what it was to get, and raises `TimeoutError` if that doesn't come.
    """

    def __init__(self) -> None:
        self._asked: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        self._open: list[asyncio.StreamWriter] = []
        self._asks = 0
        self._said = 0

    async def connect(self, port: int) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        self._open.append(self._writer)

    async def begin(self) -> None:
        """Ask, and get the answer's first chunk."""
        self._writer.write(_request(self._asks))
        self._asks += 1
        self._said = 0
        async with asyncio.timeout(_ANSWER_SECONDS):
            self._backend = await self._asked.get()
        self._backend.write(_first())
        await self._see(_text(0).encode())

    async def say(self, count: int, kind: Kind) -> None:
        """So many chunks more, one by one."""
        for _ in range(count):
            self._said += 1
            self._backend.write(next_chunk(self._said, kind))
            await self._see(_text(self._said).encode())

    async def end(self) -> None:
        """The end of the answer that began."""
        self._backend.write(_END)
        await self._see(_LAST)

    async def ask(self, count: int) -> None:
        """So many answers of one word, one after the other; each comes in one write."""
        for _ in range(count):
            self._writer.write(_request(self._asks))
            self._asks += 1
            async with asyncio.timeout(_ANSWER_SECONDS):
                backend = await self._asked.get()
            backend.write(_first() + _END)
            await self._see(_text(0).encode())
            await self._see(_LAST)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _see(self, expected: bytes) -> None:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await self._reader.readuntil(expected)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The backend's side of a connection: requests are read here and answered above."""
        self._open.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                self._asked.put_nowait(writer)
        except (OSError, EOFError):
            writer.close()

    async def close(self) -> None:
        """Both sides of every connection."""
        for writer in self._open:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def backend_and_client() -> AsyncIterator[tuple[int, Turns]]:
    """A backend's port, and what makes it and the client take turns."""
    turns = Turns()
    async with await asyncio.start_server(turns.take, "127.0.0.1", 0) as server:
        try:
            yield server.sockets[0].getsockname()[1], turns
        finally:
            await turns.close()
