"""A backend that plays cases over real sockets, whole or changed, each request as it asks for.

The case is named by the address, `/BACKEND/WHAT/v1/…`, so one server plays all of them to agents of
their own. How it is to be played stands in the request's body, under `play`.
"""

import asyncio
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

from tests.corpus.cases import Case, Close, Wait, to_bytes

_CLOSINGS = ("end", "close", "reset")
_BREATH_SECONDS = 0.002
"""Between two pieces that are to arrive apart."""


def whole() -> dict[str, Any]:
    """As it is."""
    return {}


def cut(events: int, closing: str) -> dict[str, Any]:
    """So many events, then the body's `end`, or the connection's `close` or `reset`."""
    assert closing in _CLOSINGS
    return {"events": events, "closing": closing}


def held(events: int) -> dict[str, Any]:
    """So many events, then nothing until the service hangs up."""
    return {"events": events, "closing": "hold"}


def split(at: Iterable[int]) -> dict[str, Any]:
    """The response's bytes, head and framing included, in pieces that begin at these places."""
    return {"at": list(at)}


def dripped(seed: int, longest: int) -> dict[str, Any]:
    """The same in pieces of 1 to `longest` bytes."""
    return {"seed": seed, "longest": longest}


class CorpusBackend:
    """The server. `failures` are mistakes of its own."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self._cases = {case.name: case for case in cases}
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures: list[BaseException] = []
        self.address = ""

    def base_url(self, case: Case) -> str:
        """Where an agent asks for this case."""
        return f"{self.address}/{case.name}/v1"

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, which brings one request."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the service hung up, or the server stops
        except BaseException as error:
            self.failures.append(error)
        finally:
            writer.close()
            self._tasks.discard(task)

    async def stop(self) -> None:
        """End what still plays."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert [] == self.failures

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        name = head.split(" ")[1].partition("/v1/")[0].removeprefix("/")
        length = head.lower().partition("content-length:")[2].partition("\r\n")[0]
        body = json.loads(await reader.readexactly(int(length)))
        await _play(self._cases[name], _Line(reader, writer), body.get("play", {}))


class _Line:
    """What a connection can be made to do."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def end(self) -> None:
        """End the body as HTTP wants it."""
        await self.send(b"0\r\n\r\n")

    async def reset(self) -> None:
        """Reset the connection, once the other side has read what came."""
        await asyncio.sleep(_BREATH_SECONDS)
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def wait_until_closed(self) -> None:
        """Wait for the other side to hang up."""
        await self._reader.read()


async def _play(case: Case, line: _Line, how: Mapping[str, Any]) -> None:
    """Answer one request."""
    if "closing" in how:
        await line.send(_head(case))
        await line.send(_frame(b"".join(case.events[: how["events"]])))
        await _close(line, how["closing"])
        return
    if how:
        for piece in _pieces(case, how):
            await line.send(piece)
            await asyncio.sleep(0)
    else:
        await line.send(_head(case))
        for item in case.response.body:
            if isinstance(item, Wait):
                await asyncio.sleep(item.wait)
            await line.send(_frame(to_bytes(item)))
    last = case.response.body[-1] if case.response.body else None
    if isinstance(last, Close):
        await _close(line, "reset" if last.reset else "close")
    else:
        await line.end()


async def _close(line: _Line, closing: str) -> None:
    """End an answer so; `close` is what follows anyhow."""
    match closing:
        case "end":
            await line.end()
        case "reset":
            await line.reset()
        case "hold":
            await line.wait_until_closed()


def _frame(data: bytes) -> bytes:
    """Bytes as one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def _head(case: Case) -> bytes:
    response = case.response
    headers = {"Content-Type": "text/event-stream", **response.headers}
    lines = [f"HTTP/1.1 {response.status} X", *(f"{key}: {headers[key]}" for key in headers)]
    lines += ["Transfer-Encoding: chunked", "Connection: close", "", ""]
    return "\r\n".join(lines).encode()


def response_bytes(case: Case) -> bytes:
    """All that is sent before the body's end, each event in an HTTP chunk of its own."""
    return _head(case) + b"".join(map(_frame, case.events))


def _pieces(case: Case, how: Mapping[str, Any]) -> list[bytes]:
    data = response_bytes(case)
    inner = how["at"] if "at" in how else _random_places(len(data), how["seed"], how["longest"])
    places = [0, *inner, len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def _random_places(length: int, seed: int, longest: int) -> list[int]:
    chance, place, places = random.Random(seed), 0, list[int]()
    while (place := place + chance.randint(1, longest)) < length:
        places.append(place)
    return places


@asynccontextmanager
async def playing(cases: Iterable[Case]) -> AsyncIterator[CorpusBackend]:
    """A running server with these cases."""
    backend = CorpusBackend(cases)
    server = await asyncio.start_server(backend.accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    backend.address = f"http://{host}:{port}"
    try:
        yield backend
    finally:
        server.close()
        await backend.stop()
        await server.wait_closed()
