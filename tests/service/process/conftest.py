"""A backend that says a word and leaves the rest to the test, and clients of single workers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.service.readers.conftest import Read, until
from tests.service.stage.backend import Backend, Exchange
from tests.service.stage.process import Process
from tests.service.stage.workers import Door


def settings(database_url: str, backend: Backend, workers: int = 2, **fields: Any) -> Any:
    """A service whose one agent is the backend."""
    agent = {
        "name": "backend",
        "kind": "openai",
        "base_url": backend.base_url,
        "api_key_env": None,
        "retries": 0,
    }
    return {
        "database": {"url": database_url},
        "server": {"workers": workers},
        "agents": [agent],
        **fields,
    }


async def told(exchange: Exchange) -> None:
    """Say a word, so that clients are answered, and leave the rest to the test."""
    await exchange.start()
    await exchange.words("Hello")
    await exchange.client_closed.wait()


@pytest.fixture
def script(backend: Backend) -> Backend:
    """The backend, which says a word and leaves the rest to the test."""
    backend.script = told
    return backend


async def workers_of(process: Process, count: int = 2) -> list[int]:
    """The process ids of those that serve, once there have been so many workers; of one process, its
    own."""
    await asyncio.to_thread(process.line, "serving")
    if process.lines_of("serving")[0]["workers"] == 1:
        return [process.popen.pid]
    await asyncio.to_thread(process.line, "worker started", count)
    started = {line["worker"]: line["pid"] for line in process.lines_of("worker started")}
    return [started[number] for number in sorted(started)]


async def exchanges(backend: Backend, count: int) -> list[Exchange]:
    """Once there are so many."""
    await until(lambda: len(backend.exchanges) >= count)
    assert count == len(backend.exchanges)
    return backend.exchanges


@asynccontextmanager
async def asked(door: Door, **fields: Any) -> AsyncIterator[Read]:
    async with door.post(**fields) as response:
        yield Read(response)


@asynccontextmanager
async def reading(door: Door, completion_id: str, **query: Any) -> AsyncIterator[Read]:
    async with door.read(completion_id, **query) as response:
        yield Read(response)


async def broken(read: Read) -> bytes:
    """Read until the connection breaks; all that came. A clean end is a failure."""
    async with asyncio.timeout(50):
        try:
            while data := await read.response.content.readany():
                read.seen += data
        except aiohttp.ClientError:
            return bytes(read.seen)
    raise AssertionError(f"a clean end: {bytes(read.seen)[-300:]!r}")
