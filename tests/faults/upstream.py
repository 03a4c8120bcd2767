"""The upstream: says what each stream's plan says, and breaks where and how the plan wants it.

On bare sockets, through `tests.service.stage.backend`, since a well-behaved server can't be made to
misbehave. A misdeed is a function of the exchange; it is done at one of the `MOMENTS`.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable

from tests.faults.plans import Plan
from tests.service.stage.backend import Backend, Exchange, chunk, event_bytes

MOMENTS = ("before headers", "after headers", "after role", "mid-stream", "after finish")

_LONGEST_STALL_SECONDS = 25.0

Misdeed = Callable[[Exchange, str], Awaitable[None]]


class Upstream:
    """A server that knows every plan by its number. `add` a plan before its stream is asked for."""

    def __init__(self) -> None:
        self._backend = Backend()
        self._backend.script = self._play
        self._plans: dict[int, Plan] = {}

    async def start(self) -> "Upstream":
        await self._backend.start()
        return self

    @property
    def base_url(self) -> str:
        return self._backend.base_url

    def add(self, plan: Plan) -> None:
        self._plans[plan.number] = plan

    async def stop(self) -> None:
        await self._backend.stop()

    async def _play(self, exchange: Exchange) -> None:
        found = re.search(r"stream (\d+)", str(exchange.body["messages"][-1]["content"]))
        assert found is not None
        plan = self._plans[int(found[1])]
        plan.asked.set()
        plan.asks += 1
        slow = plan.misdeed is dribble
        if slow:
            exchange = Dribbled(exchange, plan.moment)
        if await _breaks(exchange, plan, "before headers"):
            return
        await exchange.start()
        if await _breaks(exchange, plan, "after headers"):
            return
        await _pause(exchange, plan.first_pause_seconds)
        for index in range(plan.choices):
            await exchange.event(chunk_of(index, {"role": "assistant", "content": ""}))
        if await _breaks(exchange, plan, "after role"):
            return
        for place in range(plan.words):
            if place == plan.breaks_at and await _breaks(exchange, plan, "mid-stream"):
                return
            plan.told = place + 1
            await exchange.event(chunk_of(place % plan.choices, {"content": plan.word(place)}))
            await _pause(exchange, plan.interval_seconds)
        plan.finished = True
        for index in range(plan.choices):
            await exchange.event(chunk_of(index, {}, "stop"))
        if await _breaks(exchange, plan, "after finish"):
            return
        await _pause(exchange, plan.last_pause_seconds)
        await exchange.done()


async def _breaks(exchange: Exchange, plan: Plan, moment: str) -> bool:
    """Do the misdeed if this is its moment. True if nothing can follow it."""
    if plan.moment != moment or plan.misdeed is None:
        return False
    if plan.misdeed is dribble:
        assert isinstance(exchange, Dribbled)
        exchange.is_slow = True
        return False
    await plan.misdeed(exchange, moment)
    return True


async def _pause(exchange: Exchange, seconds: float) -> None:
    """Wait, but not for somebody who has hung up."""
    if seconds > 0.2:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(exchange.client_closed.wait(), seconds)
    elif seconds:
        await asyncio.sleep(seconds)


def chunk_of(index: int, delta: dict[str, object], finish_reason: str | None = None) -> object:
    """A chunk of one choice."""
    payload = chunk(delta, finish_reason)
    payload["choices"][0]["index"] = index
    return payload


# --- misdeeds -------------------------------------------------------------------------------


async def reset(exchange: Exchange, _moment: str) -> None:
    """RST."""
    await exchange.reset()


async def fin(exchange: Exchange, _moment: str) -> None:
    """FIN in the middle of the HTTP body."""
    await exchange.cut()


async def stall(exchange: Exchange, _moment: str) -> None:
    """Say nothing any more, for as long as anybody waits."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(exchange.client_closed.wait(), _LONGEST_STALL_SECONDS)


async def malformed(exchange: Exchange, moment: str) -> None:
    """Something that is no JSON, or no HTTP."""
    if moment == "before headers":
        await exchange.raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        await exchange.cut()
    else:
        await exchange.send(b'data: {"choices": [{oops\n\n')
        await stall(exchange, moment)


async def bad_utf8(exchange: Exchange, moment: str) -> None:
    """A word that is no UTF-8."""
    if moment == "before headers":
        await exchange.start()
    await exchange.send(b'data: {"choices": [{"index": 0, "delta": {"content": "\xff\xfe"}}]}\n\n')
    await stall(exchange, moment)


async def error_event(exchange: Exchange, moment: str) -> None:
    """An error in the upstream's own words; before any header, as a plain JSON body."""
    body = {"error": {"message": "GPU on fire", "type": "hot", "code": "overloaded"}}
    if moment == "before headers":
        await exchange.json(200, body)
    else:
        await exchange.event(body)
        await stall(exchange, moment)


async def truncated(exchange: Exchange, moment: str) -> None:
    """An end like any other, without finish reason and `[DONE]`; or half a status line."""
    if moment == "before headers":
        await exchange.raw(b"HTTP/1.1 20")
        await exchange.cut()
    elif moment == "mid-stream":
        await exchange.send(event_bytes(chunk({"content": "never whole"}))[:-20])
        await exchange.end()
    else:
        await exchange.end()


def status(number: int) -> Misdeed:
    """A refusal with this status."""

    async def refuse(exchange: Exchange, _moment: str) -> None:
        await exchange.json(number, {"error": {"message": "No.", "code": f"no_{number}"}})

    return refuse


async def dribble(_exchange: Exchange, _moment: str) -> None:
    """From this moment on byte by byte. `Dribbled` does it."""


class Dribbled(Exchange):
    """An exchange that, once `is_slow`, sends every byte by itself."""

    def __init__(self, exchange: Exchange, moment: str) -> None:
        self.headers = exchange.headers
        self.body = exchange.body
        self.client_closed = exchange.client_closed
        self.is_slow = False
        self._exchange = exchange

    async def raw(self, data: bytes) -> None:
        if not self.is_slow:
            await self._exchange.raw(data)
            return
        for position in range(len(data)):
            await self._exchange.raw(data[position : position + 1])
            await asyncio.sleep(0)
