"""The real service with an agent for each case, and the calls that cases are tried with."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
import openai
from aiohttp import web
from attrs import frozen

from db.journal import writing
from db.journal.replay import Replay
from db.memory.store import MemoryStore
from db.overview import WholeStore
from service.agents import directory
from service.agents.openai.agent import OpenAIAgent
from service.app import STREAMS, build_app
from service.edge.connections import Runner
from service.ids import random_hex
from service.settings.config import (
    Config,
    DatabaseConfig,
    JournalConfig,
    OpenAIAgentConfig,
    ServerConfig,
    Timeouts,
)
from statemachine import SessionRecord, StreamSession
from tests.corpus.cases import Case
from tests.corpus.playing import CorpusBackend, playing
from tests.corpus.seen import (
    Seen,
    from_plain,
    from_record,
    from_row,
    from_stream,
    through_sdk,
)

QUESTION = [{"role": "user", "content": "Say hello."}]
PATIENCE_SECONDS = 10.0


class Noting(MemoryStore):
    """A store that also shows what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[str, SessionRecord] = {}
        self.by_trace: dict[str, SessionRecord] = {}

    async def save(self, records: Sequence[SessionRecord]) -> None:
        await super().save(records)
        self.records.update({record.completion_id: record for record in records})
        self.by_trace.update({record.request.trace_id: record for record in records})

    def forget(self) -> None:
        """Lose all that was kept, to stay small."""
        self.__init__()  # type: ignore[misc]


@frozen
class Reading:
    """What a client saw, and what the row says of the same completion."""

    client: Seen
    row: Seen
    usage_source: str
    completion_id: str


class Stage:
    """A running service, the backend behind it, and its clients."""

    def __init__(
        self, app: web.Application, backend: CorpusBackend, store: WholeStore, journal: Path
    ) -> None:
        self.store = store
        self.backend = backend
        self.journal = journal
        self.url = ""
        self._streams = app[STREAMS]
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS),
            connector=aiohttp.TCPConnector(limit=0),
        )
        self._sdk: openai.AsyncOpenAI | None = None

    async def serve(self, runner: web.AppRunner) -> None:
        """Begin to listen, on any port."""
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self._sdk = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    async def close(self) -> None:
        """Close the clients."""
        await self._http.close()
        if self._sdk is not None:
            await self._sdk.close()

    async def stream(self, case: Case, play: Mapping[str, Any] | None = None) -> Reading:
        """Ask for a stream and read it to its end, then its row."""
        trace = random_hex(32)
        async with self.ask(case, trace, stream=True, play=play or {}) as response:
            seen = from_stream(response.status, await response.read())
        return await self._with_row(seen, trace)

    async def stream_and_record(self, case: Case, play: Mapping[str, Any]) -> tuple[Seen, Seen]:
        """What a client sees, and what its record says: quicker than with the row."""
        assert isinstance(self.store, Noting)
        trace = random_hex(32)
        async with self.ask(case, trace, stream=True, play=play) as response:
            seen = from_stream(response.status, await response.read())
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (record := self.store.by_trace.pop(trace, None)) is None:
                await asyncio.sleep(0.001)
        return seen, from_record(record)

    def forget(self) -> None:
        """Lose what was kept so far, where that would be much."""
        assert isinstance(self.store, Noting)
        self.store.forget()

    async def plain(self, case: Case) -> Reading:
        """Ask for one object, then read its row."""
        trace = random_hex(32)
        async with self.ask(case, trace) as response:
            seen = from_plain(response.status, await response.read())
        return await self._with_row(seen, trace)

    async def through_sdk(self, case: Case) -> tuple[Seen, Any]:
        """What the official SDK sees of a stream, and what its helper folds."""
        assert self._sdk is not None
        return await through_sdk(
            self._sdk, model=case.name, messages=QUESTION, extra_body=case.request
        )

    async def drain(self, case: Case) -> None:
        """Ask for a stream and read its bytes, as cheaply as can be."""
        async with self.ask(case, random_hex(32), stream=True) as response:
            await response.read()

    def ask(self, case: Case, trace: str, **fields: Any) -> Any:
        """Send a request of this trace; the response is a context."""
        body = {"model": case.name, "messages": QUESTION, **case.request, **fields}
        headers = {
            "Content-Type": "application/json",
            "traceparent": f"00-{trace}-{random_hex(16)}-01",
        }
        url = f"{self.url}/v1/chat/completions"
        return self._http.post(url, data=json.dumps(body), headers=headers)

    def session(self, trace: str) -> StreamSession | None:
        """The running session of a request."""
        sessions = [relay.session for relay in list(self._streams)]
        return next((one for one in sessions if one.request.trace_id == trace), None)

    async def _with_row(self, seen: Seen, trace: str) -> Reading:
        row: Any = await self._row_of(trace)
        completion = await self.store.find(row["id"])
        assert completion is not None
        return Reading(seen, from_row(row), completion.usage_source, row["id"])

    async def _row_of(self, trace: str) -> Any:
        """The stored completion of a request, found by its trace: an error names no id."""
        url = f"{self.url}/v1/chat/completions?order=desc&limit=10"
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                async with self._http.get(url) as response:
                    for row in (await response.json())["data"]:
                        if row["request_id"] == trace:
                            return row
                await asyncio.sleep(0.002)


async def replayed(journal: Path, only: Collection[str]) -> dict[str, SessionRecord]:
    """What another process would make of these completions in a journal, by id."""
    replay = Replay(sorted(journal.rglob("*.jsonl")), only)
    found = {record.completion_id: record async for record in replay.records()}
    assert 0 == replay.damages
    return found


@asynccontextmanager
async def service(
    cases: Iterable[Case],
    journal: Path,
    store: WholeStore | None = None,
    *,
    uses_shortcut: bool = True,
) -> AsyncIterator[Stage]:
    """A service with these cases behind it, each under its name as the model."""
    chosen = list(cases)
    async with playing(chosen) as backend:
        config = Config(
            server=ServerConfig(drain_timeout_seconds=1.0),
            database=DatabaseConfig(commit_timeout_seconds=PATIENCE_SECONDS),
            journal=JournalConfig(directory=str(journal)),
            agents=tuple(agent_for(case, backend) for case in chosen),
        )
        kept = Noting() if store is None else store
        # What is saved stays in the journal, to be read again by tests of recovery.
        keeping = patch.object(writing, "_IDLE_SEGMENT_BYTES", 10**9)
        with made_for_tests(uses_shortcut), keeping:
            app = build_app(config, environ={"KEY": "backend-key"}, store=kept)
        runner = Runner(app, config.server.idle_timeout_seconds, shutdown_timeout=1.0)
        stage = Stage(app, backend, kept, journal)
        try:
            await stage.serve(runner)
            yield stage
        finally:
            await stage.close()
            await runner.cleanup()


@contextmanager
def made_for_tests(uses_shortcut: bool) -> Iterator[None]:
    """Have agents that are made meanwhile use the shortcut or not."""
    making: Any = directory
    making.OpenAIAgent = partial(OpenAIAgent, uses_shortcut=uses_shortcut)
    try:
        yield
    finally:
        making.OpenAIAgent = OpenAIAgent


def agent_for(case: Case, backend: CorpusBackend) -> OpenAIAgentConfig:
    """The agent that asks for this case, once."""
    return OpenAIAgentConfig(
        name=case.name,
        kind="openai",
        base_url=backend.base_url(case),
        api_key_env="KEY",
        models=(),
        retries=0,
        timeouts=Timeouts(),
        circuit=None,  # each case is asked often, and some fail each time
    )
