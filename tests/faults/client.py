"""Clients on bare sockets: they send one request, keep every byte, and leave as they are told to.

Each is a coroutine `(port, plan)`; what it saw is in `plan.seen`. None raises because of what the
service does: that is for `tests.faults.oracle` to judge.
"""

import asyncio
import json
import random
import re
import socket
import struct
from collections.abc import Awaitable, Callable

from tests.faults.plans import Plan

Client = Callable[[int, Plan], Awaitable[None]]

PATIENCE_SECONDS = 30.0
_STREAM_LIMIT = 256 * 1024


class Connection:
    """One request under way."""

    def __init__(
        self, port: int, plan: Plan, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.port = port
        self.plan = plan
        self._reader = reader
        self._writer = writer

    @classmethod
    async def ask(
        cls, port: int, plan: Plan, *, receive_buffer: int | None = None
    ) -> "Connection | None":
        """Send the request; None if nobody listens."""
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except OSError:
            sock.close()
            return None
        reader, writer = await asyncio.open_connection(sock=sock, limit=_STREAM_LIMIT)
        connection = cls(port, plan, reader, writer)
        writer.write(request_of(plan))
        return connection

    async def read_to_the_end(self) -> None:
        """Until the connection ends, however it does."""
        while await self._read():
            pass

    async def read_until(self, *marks: bytes) -> bool:
        """Until any of these came; False if the connection ended before."""
        searched = 0
        while True:
            seen = self.plan.seen.raw
            if any(seen.find(mark, searched) >= 0 for mark in marks):
                return True
            searched = max(0, len(seen) - max(map(len, marks)))
            if not await self._read():
                return False

    async def _read(self) -> bool:
        try:
            data = await self._reader.read(65536)
        except ConnectionError:
            return False
        self.plan.seen.raw += data
        return bool(data)

    def pause(self) -> None:
        """Take nothing from the kernel any more."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        if not self._writer.transport.is_closing():
            self._writer.transport.resume_reading()  # type: ignore[attr-defined]

    def leave(self, *, rudely: bool) -> None:
        """Close with a FIN, or a RST."""
        self.plan.client_left = True
        if rudely:
            sock = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.transport.abort()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass


def request_of(plan: Plan) -> bytes:
    """The request's bytes. The upstream finds the plan by the number in the question."""
    messages = [{"role": "u"}] * plan.history
    messages.append({"role": "user", "content": f"stream {plan.number}"})
    fields = {"vendor_field": "v" * plan.ballast} if plan.ballast else {}
    asked = {"model": plan.model, "stream": plan.stream, "n": plan.choices, "messages": messages}
    body = json.dumps({**asked, **fields, **plan.extra}, separators=(",", ":")).encode()
    key = f"Idempotency-Key: {plan.key}\r\n" if plan.has_key else ""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"X-Conversation-Id: {plan.key}\r\n{key}\r\n"
    )
    return head.encode() + body


async def _with(
    connection: Connection | None, act: Callable[[Connection], Awaitable[None]]
) -> None:
    if connection is None:
        return
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await act(connection)
    except TimeoutError:
        connection.plan.client_left = True
        connection.plan.seen.broken.append(f"no end within {PATIENCE_SECONDS:g} s")
    finally:
        await connection.close()


async def reads(port: int, plan: Plan) -> None:
    """Reads to the end."""
    await _with(await Connection.ask(port, plan), Connection.read_to_the_end)


def leaves(moment: str, chance: random.Random, *, rudely: bool) -> Client:
    """Goes away before the first token, mid-stream, or between the last chunk and `[DONE]`."""
    delay = chance.uniform(0, 0.05)

    async def act(connection: Connection) -> None:
        await _reach(connection, moment)
        await asyncio.sleep(delay)
        connection.leave(rudely=rudely)

    async def client(port: int, plan: Plan) -> None:
        await _with(await Connection.ask(port, plan), act)

    return client


def stalls(seconds: float, chance: random.Random) -> Client:
    """Reads a little, then nothing for so long, then whatever is left."""
    words = chance.randint(0, 3)

    async def act(connection: Connection) -> None:
        await connection.read_until(b"w%d.%d" % (connection.plan.number, words))
        connection.plan.client_left = True
        connection.pause()
        await asyncio.sleep(seconds)
        connection.resume()
        await connection.read_to_the_end()

    async def client(port: int, plan: Plan) -> None:
        await _with(await Connection.ask(port, plan, receive_buffer=4096), act)

    return client


def cancels(moment: str, chance: random.Random, *, leaves_too: bool) -> Client:
    """Asks for the stop of its own stream by its id, perhaps while it goes away."""
    head_start = chance.uniform(-0.01, 0.01)
    rudely = chance.random() < 0.5

    async def act(connection: Connection) -> None:
        await _reach(connection, moment)
        found = re.search(rb'"id": ?"(chatcmpl-[0-9a-f]+)"', connection.plan.seen.raw)
        if found is None:
            return
        stop = stop_completion(connection.port, found[1].decode())
        if not leaves_too:
            await asyncio.gather(stop, connection.read_to_the_end())
            return

        async def go() -> None:
            await asyncio.sleep(max(0.0, head_start))
            connection.leave(rudely=rudely)

        async def ask() -> None:
            await asyncio.sleep(max(0.0, -head_start))
            await stop

        await asyncio.gather(go(), ask())

    async def client(port: int, plan: Plan) -> None:
        await _with(await Connection.ask(port, plan), act)

    return client


async def _reach(connection: Connection, moment: str) -> None:
    plan = connection.plan
    if moment == "before first token":
        async with asyncio.timeout(PATIENCE_SECONDS):
            await plan.asked.wait()
    elif moment == "mid-stream":
        await connection.read_until(b"w%d.%d" % (plan.number, plan.breaks_at))
    else:
        await connection.read_until(b'"finish_reason":"stop"', b'"finish_reason": "stop"')


async def stop_completion(port: int, completion_id: str) -> int:
    """`POST …/cancel`; its status, 0 if there was no answer."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0
    try:
        writer.write(
            f"POST /v1/chat/completions/{completion_id}/cancel HTTP/1.1\r\nHost: localhost\r\n"
            "Connection: close\r\nContent-Length: 0\r\n\r\n".encode()
        )
        answer = await reader.read()
    except ConnectionError:
        return 0
    finally:
        writer.transport.abort()
    return int(answer.split(b" ", 2)[1]) if answer else 0
