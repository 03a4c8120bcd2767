"""Readers of streams that others asked for: from the start, from the middle, and after the fault.

Each is a connection of its own that keeps every byte. None raises because of what the service does:
that is for `tests.faults.compare` to judge.
"""

import asyncio
import re
from collections.abc import Sequence

from tests.faults.plans import Plan, Reader

PATIENCE_SECONDS = 30.0
_ID = re.compile(rb"x-completion-id: (chatcmpl-[0-9a-f]+)", re.IGNORECASE)
_LOOK_SECONDS = 0.005
_AT_ONCE = 20


def id_shown(plan: Plan) -> str | None:
    """A completion's id, from its first client's headers."""
    found = _ID.search(plan.seen.raw)
    return None if found is None else found[1].decode()


async def follow(port: int, plan: Plan, client: "asyncio.Task[None]") -> None:
    """Two readers of a stream that its first client has just asked for: one from the start, one that
    joins once so many chunks have come. Ends with them."""
    async with asyncio.TaskGroup() as group:
        for joins_at in (0, plan.joins_at):
            group.create_task(_join(port, plan, client, joins_at))


async def _join(port: int, plan: Plan, client: "asyncio.Task[None]", joins_at: int) -> None:
    while (name := id_shown(plan)) is None or plan.seen.raw.count(b'"choices"') < joins_at:
        if client.done():
            return
        await asyncio.sleep(_LOOK_SECONDS)
    reader = Reader("joins in the middle" if joins_at else "from the start", joins_at)
    plan.readers.append(reader)
    await read(port, name, reader)


async def read(port: int, completion_id: str, reader: Reader) -> None:
    """Read a completion from the reader's position to the end, however that comes."""
    path = f"/v1/chat/completions/{completion_id}?stream=true&starting_after={reader.position}"
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    await send(port, head.encode(), reader)


async def send(port: int, request: bytes, reader: Reader) -> None:
    """Send a request, and keep what comes."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            source, sink = await asyncio.open_connection("127.0.0.1", port)
            try:
                sink.write(request)
                while data := await source.read(65536):
                    reader.seen.raw += data
                    if reader.leaves_at and reader.seen.raw.count(b'"choices"') >= reader.leaves_at:
                        reader.has_left = True
                        return
            finally:
                sink.transport.abort()
    except TimeoutError:
        reader.hung = True
    except OSError:
        pass  # nobody listens any more, or the connection broke


async def come_back(port: int, plans: Sequence[Plan]) -> None:
    """Once everything has settled: read each completion again, from where its first client was, and from
    the start."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def again(plan: Plan, name: str) -> None:
        plan.seen.read()
        resumed = Reader("resumes after the fault", len(plan.seen.chunks))
        plan.whole = Reader("from the start, after the fault", 0)
        plan.readers += [resumed, plan.whole]
        async with room:
            await read(port, name, resumed)
            await read(port, name, plan.whole)

    named = [(plan, plan.completion_id or id_shown(plan)) for plan in plans]
    await asyncio.gather(*(again(plan, name) for plan, name in named if name is not None))
