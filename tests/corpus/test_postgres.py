"""Every case in a real PostgreSQL: the row is what the case expects, also after a kill."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from db.postgres.store import PostgresStore
from tests.corpus import expected
from tests.corpus.cases import Case, load_all
from tests.corpus.playing import CorpusBackend, held, playing
from tests.corpus.said import said_in
from tests.corpus.seen import Seen, from_row, from_stream, text_of
from tests.corpus.stage import QUESTION, service
from tests.corpus.test_recovered import middle_of
from tests.service.stage.process import Process


async def test_rows_are_the_same_in_postgres(database_url: str, tmp_path: Path) -> None:
    """What is read back of each is what its file expects."""
    asyncio.get_running_loop().set_debug(False)
    store = await PostgresStore.open(database_url)
    wrong: dict[str, Seen] = {}
    try:
        async with service(load_all(), tmp_path, store) as stage:
            for case in load_all():
                reading = await stage.stream(case)
                if expected.in_row(case) != expected.without_names(reading.row):
                    wrong[case.name] = reading.row
    finally:
        await store.close()
    assert {} == wrong


@pytest.mark.corpus
def test_answers_survive_a_kill(database_url: str, tmp_path: Path) -> None:
    """A real process is killed while each case is in the middle of its answer: the next one stores
    every word that a client was shown, and says how it ended."""
    runs = {case: place for case in load_all() if (place := middle_of(case)) is not None}
    shown, rows = asyncio.run(_killed(runs, database_url, tmp_path))
    assert len(runs) == len(shown) > 30
    for completion_id, seen in shown.items():
        row = rows[completion_id]
        assert text_of(seen.choices) == text_of(row.choices)
        assert row.error is not None and not row.is_whole
        assert "process_died" == row.error["code"]


async def _killed(
    runs: dict[Case, int], database_url: str, directory: Path
) -> tuple[dict[str, Seen], dict[str, Seen]]:
    """What clients saw up to a kill, and what the rows say after another start, by id."""
    async with playing(runs) as backend:
        config = {
            "database": {"url": database_url},
            "agents": [_agent(case, backend) for case in runs],
        }
        process = await asyncio.to_thread(Process, directory, config, KEY="backend-key")
        try:
            port = await asyncio.to_thread(lambda: process.port)
            shown = await asyncio.gather(
                *(_read_some(port, case, place) for case, place in runs.items())
            )
            process.popen.kill()
        finally:
            await asyncio.to_thread(process.end)
    process = await asyncio.to_thread(Process, directory, config, KEY="backend-key")
    try:
        await asyncio.to_thread(process.line, "recovered")
        ids = [seen.names["id"] for seen in shown]
        rows = {one: await asyncio.to_thread(_row, process, one) for one in ids}
    finally:
        await asyncio.to_thread(process.end)
    return dict(zip(ids, shown, strict=True)), rows


def _agent(case: Case, backend: CorpusBackend) -> dict[str, Any]:
    return {
        "name": case.name,
        "kind": "openai",
        "base_url": backend.base_url(case),
        "api_key_env": "KEY",
        "models": [],
        "retries": 0,
    }


def _row(process: Process, completion_id: str) -> Seen:
    status, value = process.get(f"/v1/chat/completions/{completion_id}")
    assert 200 == status
    return from_row(value)


async def _read_some(port: int, case: Case, place: int) -> Seen:
    """What a client has been shown once all that was said has come."""
    said = said_in(case.events[:place]).text
    body = {"model": case.name, "messages": QUESTION, "stream": True, "play": held(place)}
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps({**body, **case.request}).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)
    )
    events = b""
    async with asyncio.timeout(30):
        await reader.readuntil(b"\r\n\r\n")
        while text_of((seen := from_stream(200, events)).choices) != said:
            size = int(await reader.readuntil(b"\r\n"), 16)
            events += (await reader.readexactly(size + 2))[:-2]
            events = events[: events.rfind(b"\n\n") + 2]
    writer.close()
    return seen
