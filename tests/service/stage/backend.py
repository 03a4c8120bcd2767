"""A backend over real sockets that does what a test tells it, down to the byte.

`Backend` is a TCP server that reads one HTTP request per connection and then runs the test's
script against an `Exchange`. It is written on bare streams because a well-behaved HTTP server
can't be made to reset, stall or stop in the middle of a chunk.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

Script = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request and the means to answer it badly."""

    def __init__(
        self,
        headers: dict[str, str],
        body: Any,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.headers = headers
        self.body = body
        self.client_closed = asyncio.Event()
        self._writer = writer
        self._watch = asyncio.create_task(self._wait_for_close(reader))

    async def _wait_for_close(self, reader: asyncio.StreamReader) -> None:
        try:
            await reader.read()
        except ConnectionError:
            pass
        self.client_closed.set()

    async def start(
        self, status: int = 200, content_type: str = "text/event-stream", **headers: str
    ) -> None:
        """Send the status line and headers; the body follows in HTTP chunks."""
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += ["Transfer-Encoding: chunked", "Connection: close", "", ""]
        await self.raw("\r\n".join(lines).encode())

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def send(self, data: bytes) -> None:
        """Send bytes as one HTTP chunk."""
        if data:
            await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, payload: Any) -> None:
        await self.send(event_bytes(payload))

    async def words(self, *words: str) -> None:
        """One chunk per word."""
        for word in words:
            await self.event(chunk({"content": word}))

    async def finish(self, reason: str = "stop") -> None:
        """A finish chunk, `[DONE]` and the end."""
        await self.event(chunk({}, reason))
        await self.done()

    async def done(self) -> None:
        await self.send(b"data: [DONE]\n\n")
        await self.end()

    async def end(self) -> None:
        """End the body as HTTP wants it."""
        await self.raw(b"0\r\n\r\n")

    async def cut(self) -> None:
        """Close the connection (FIN) in the middle of the body."""
        self._writer.close()

    async def reset(self) -> None:
        """Reset the connection (RST)."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def json(self, status: int, body: Any, **headers: str) -> None:
        """A plain JSON answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.start(status, "application/json", **headers)
        await self.send(data)
        await self.end()

    def close(self) -> None:
        self._watch.cancel()
        self._writer.transport.abort()


class Backend:
    """The server. `script` may be changed between requests; `exchanges` are those so far."""

    def __init__(self) -> None:
        self.script: Script = say("Hello", " world", "!")
        self.exchanges: list[Exchange] = []
        self.failures: list[BaseException] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> "Backend":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    @property
    def base_url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for exchange in self.exchanges:
            exchange.close()
        await self._server.wait_closed()
        assert [] == self.failures

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the service hung up, as some tests want it to
        except asyncio.CancelledError:
            pass  # the backend stops; asyncio would report a cancelled handler as an error
        except BaseException as error:
            self.failures.append(error)
        finally:
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        exchange = Exchange(headers, json.loads(body) if body else None, reader, writer)
        self.exchanges.append(exchange)
        await self.script(exchange)


def say(*words: str) -> Script:
    """A script that answers well."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words(*words)
        await exchange.finish()

    return script


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {
        "id": "backend-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "backend-model",
        "choices": [choice],
        **fields,
    }


def event_bytes(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"
