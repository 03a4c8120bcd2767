"""The service under test: the real application on a real port, with a backend of the test's own."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web
from pytest_aiohttp.plugin import aiohttp_client, aiohttp_client_cls

from db.memory.store import MemoryStore
from db.overview import WholeStore
from service.app import CONFIG, STREAMS, build_app
from service.edge.connections import Runner
from service.settings.config import (
    Config,
    DatabaseConfig,
    JournalConfig,
    OpenAIAgentConfig,
    ScriptedAgentConfig,
    ServerConfig,
    SseConfig,
    Timeouts,
)
from service.stream.relay import Relay
from statemachine import SessionRecord
from tests.service.stage.backend import Backend
from tests.service.stage.process import Process

# Fixtures of a plugin that isn't loaded (pyproject.toml says why).
__all__ = ["aiohttp_client", "aiohttp_client_cls"]

QUESTION: Any = [{"role": "user", "content": "Say hello."}]


class Kept(MemoryStore):
    """A store that also shows what it was given, and lets a test wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[SessionRecord] = []
        self._arrived = asyncio.Event()

    async def save(self, records: Sequence[SessionRecord]) -> None:
        await super().save(records)
        self.records.extend(records)
        self._arrived.set()

    async def one(self) -> SessionRecord:
        """The one record there is, or that comes within five seconds."""
        async with asyncio.timeout(5):
            await self._arrived.wait()
        (record,) = self.records
        return record


class Service:
    """A running service: where it is, what it kept, and what it logged."""

    def __init__(self, app: web.Application, runner: web.AppRunner, store: WholeStore) -> None:
        self.app = app
        self.runner = runner
        self.store = store
        self.url = ""
        self.key: str | None = None
        self.held: list[aiohttp.ClientResponse] = []
        """Streams that a test leaves open."""
        self.http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=20), connector=aiohttp.TCPConnector(limit=0)
        )

    @property
    def kept(self) -> Kept:
        assert isinstance(self.store, Kept)
        return self.store

    @property
    def relays(self) -> list[Relay]:
        streams = self.app[STREAMS]
        return list(streams)

    async def start(self) -> "Service":
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        host, port = self.runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def stop(self) -> None:
        for response in self.held:
            response.close()
        await self.http.close()
        await self.runner.cleanup()

    def post(self, body: Any = None, **fields: Any) -> "aiohttp.client._RequestContextManager":
        """Ask for a completion; `fields` override a plain streaming request."""
        if body is None:
            body = {"model": "any", "stream": True, "messages": QUESTION, **fields}
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(f"{self.url}/v1/chat/completions", data=data, headers=headers)

    async def stream(self, body: Any = None, **fields: Any) -> "Streamed":
        """Ask for a completion and read its stream to the end."""
        async with self.post(body, **fields) as response:
            return Streamed(response.status, response.headers, await response.read())


class Streamed:
    """A stream as a client saw it."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def data(self) -> list[str]:
        events = self.body.decode().split("\n\n")
        return [line[6:] for event in events for line in event.split("\n") if line[:6] == "data: "]

    @property
    def chunks(self) -> list[Any]:
        payloads = [json.loads(item) for item in self.data if item != "[DONE]"]
        return [payload for payload in payloads if "error" not in payload]

    @property
    def text(self) -> str:
        return "".join(
            choice["delta"].get("content") or ""
            for chunk in self.chunks
            for choice in chunk["choices"]
        )

    @property
    def is_done(self) -> bool:
        return self.data[-1:] == ["[DONE]"]

    @property
    def error(self) -> Any:
        """The error the client was told, in whichever way; None if none."""
        if self.status != 200:
            return json.loads(self.body)["error"]
        errors = [json.loads(item) for item in self.data if item != "[DONE]"]
        found = [payload["error"] for payload in errors if "error" in payload]
        assert len(found) <= 1
        return found[0] if found else None


ServiceMaker = Callable[..., Awaitable[Service]]


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    """A backend that says "Hello world!" until a test tells it otherwise."""
    server = await Backend().start()
    yield server
    await server.stop()


@pytest.fixture
async def make_service(tmp_path: Path) -> AsyncIterator[ServiceMaker]:
    """Makes services; they are stopped when the test ends."""
    running: list[Service] = []

    async def make(
        *agents: ScriptedAgentConfig | OpenAIAgentConfig,
        store: WholeStore | None = None,
        environ: dict[str, str] | None = None,
        **fields: Any,
    ) -> Service:
        config = Config(
            server=fields.pop("server", ServerConfig(drain_timeout_seconds=5.0)),
            sse=fields.pop("sse", SseConfig()),
            database=fields.pop("database", DatabaseConfig()),
            journal=fields.pop("journal", JournalConfig(directory=str(tmp_path / "journal"))),
            agents=agents or (ScriptedAgentConfig(name="demo", kind="scripted", models=("*",)),),
            **fields,
        )
        kept: WholeStore = Kept() if store is None else store
        app = build_app(config, environ=environ or {"KEY": "backend-key"}, store=kept)
        runner = Runner(
            app,
            config.server.idle_timeout_seconds,
            shutdown_timeout=1.0,
            send_timeout_seconds=lambda: app[CONFIG].value.sse.send_timeout_seconds,
        )
        service = Service(app, runner, kept)
        running.append(service)
        return await service.start()

    yield make
    for service in running:
        await service.stop()


def agent_for(backend: Backend, **fields: Any) -> OpenAIAgentConfig:
    """The configuration of an agent that asks this backend, without retries."""
    defaults: dict[str, Any] = {
        "name": "backend",
        "kind": "openai",
        "base_url": backend.base_url,
        "api_key_env": "KEY",
        "retries": 0,
        "timeouts": Timeouts(),
    }
    return OpenAIAgentConfig(**{**defaults, **fields})


@pytest.fixture
def log_lines() -> Any:
    """Every structlog line of the test, as dictionaries, context variables included."""
    lines: list[dict[str, Any]] = []

    def capture(_logger: Any, method: str, event: Any) -> Any:
        lines.append({**event, "log_level": method})
        raise structlog.DropEvent

    old = structlog.get_config()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield lines
    structlog.configure(**old)


@pytest.fixture
async def service(backend: Backend, make_service: ServiceMaker) -> Service:
    """A service whose one agent asks `backend`."""
    return await make_service(agent_for(backend))


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Any]:
    """Starts processes; whatever still runs at the end is killed."""
    running: list[Process] = []

    def start(config: dict[str, Any], *flags: str, **environ: str) -> Process:
        process = Process(tmp_path, config, *flags, **environ)
        running.append(process)
        return process

    yield start
    for process in running:
        process.end()
