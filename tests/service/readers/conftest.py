"""A backend that says a word when it is told to, and readers that count what they get."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.service.conftest import Service
from tests.service.stage.backend import Backend, Exchange

COMPLETIONS = "/v1/chat/completions"


class Told:
    """A script that is told what to say, step by step. One request at a time."""

    def __init__(self) -> None:
        self._steps: asyncio.Queue[Any] = asyncio.Queue()
        self.asked = 0
        self.left = asyncio.Event()

    def say(self, *words: str) -> None:
        """Say these words, a chunk each."""
        self._steps.put_nowait(words)

    def do(self, step: str) -> None:
        """`finish`, `cut` or `error`."""
        self._steps.put_nowait(step)

    async def __call__(self, exchange: Exchange) -> None:
        self.asked += 1
        await exchange.start()
        closing = asyncio.create_task(exchange.client_closed.wait())
        while True:
            step = asyncio.create_task(self._steps.get())
            await asyncio.wait({step, closing}, return_when=asyncio.FIRST_COMPLETED)
            if closing.done():
                step.cancel()
                self.left.set()
                return
            match step.result():
                case "finish":
                    await exchange.finish()
                    break
                case "cut":
                    await exchange.cut()
                    break
                case "error":
                    await exchange.event({"error": {"message": "It broke.", "code": "broken"}})
                    await exchange.end()
                    break
                case words:
                    await exchange.words(*words)
        closing.cancel()


class Read:
    """A response as a client sees it, event by event."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.seen = bytearray()

    @property
    def completion_id(self) -> str:
        return self.response.headers["x-completion-id"]

    @property
    def events(self) -> list[bytes]:
        """The events that have come, without comments."""
        lines = [line for line in self.seen.split(b"\n") if not line.startswith(b":")]
        return bytes(b"\n".join(lines)).split(b"\n\n")[:-1]

    @property
    def chunks(self) -> list[bytes]:
        """Those with a chunk."""
        return [event for event in self.events if b'"choices"' in event]

    async def until(self, count: int) -> "Read":
        """Read until so many chunks have come."""
        async with asyncio.timeout(10):
            while self.seen.count(b'"choices"') < count:
                data = await self.response.content.readany()
                assert data, self.seen[-1000:]
                self.seen += data
        return self

    async def whole(self) -> "Read":
        """Read to the end."""
        async with asyncio.timeout(10):
            self.seen += await self.response.read()
        return self

    def leave(self) -> None:
        self.response.close()

    def json(self) -> Any:
        return json.loads(self.seen)


@pytest.fixture
def told(backend: Backend) -> Told:
    """The backend's script."""
    backend.script = script = Told()
    return script


@asynccontextmanager
async def asked(service: Service, **fields: Any) -> AsyncIterator[Read]:
    """The response to a POST. `headers` among the fields are the request's."""
    headers = fields.pop("headers", {})
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hi"}], **fields}
    if service.key is not None:
        headers = {"Authorization": f"Bearer {service.key}", **headers}
    async with service.http.post(service.url + COMPLETIONS, json=body, headers=headers) as response:
        yield Read(response)


@asynccontextmanager
async def reading(
    service: Service, completion_id: str, *, key: str | None = None, **query: Any
) -> AsyncIterator[Read]:
    """The response to a GET with `stream=true`. `headers` among the parameters are the request's."""
    headers = query.pop("headers", {})
    if key is not None:
        headers = {"Authorization": f"Bearer {key}", **headers}
    url = f"{service.url}{COMPLETIONS}/{completion_id}"
    params = {"stream": "true", **{name: str(value) for name, value in query.items()}}
    async with service.http.get(url, params=params, headers=headers) as response:
        yield Read(response)


async def until(condition: Any) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)
