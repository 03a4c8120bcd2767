"""How spans end when answers don't end well, when others read them, and when saving takes its time."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest

from db.store import StoreUnavailable
from service.settings.config import DatabaseConfig
from service.tracing.requests import READING_ROUTE
from statemachine import SessionRecord
from tests.service.conftest import Kept, Service, agent_for
from tests.service.readers.conftest import until
from tests.service.stage.backend import Backend, Exchange
from tests.service.tracing.conftest import (
    ERROR,
    PATH,
    SERVER,
    UNSET,
    Collector,
    TracedMaker,
    asking,
    headers_for,
    named,
)

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


async def half(exchange: Exchange) -> None:
    """A word, and then nothing until the service hangs up."""
    await exchange.start()
    await exchange.words("Hello")
    await exchange.client_closed.wait()


async def test_a_client_that_leaves_is_no_error(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """State and the moment of leaving tell; nothing of ours failed."""
    backend.script = half
    service = await make_traced(agent_for(backend))
    async with aiohttp.ClientSession() as http:
        response = await http.post(service.url + PATH, json=body())
        await response.content.readany()
        response.close()
        spans = await collector.count(3)
    server, client = named(spans, "POST"), named(spans, "chat")
    assert "client_gone" == server.attributes["verbatim.state"]
    assert "client_gone" == client.attributes["verbatim.state"]
    assert (UNSET, UNSET) == (server.status, client.status)
    assert ["client_left"] == server.events
    assert "http.response.status_code" not in server.attributes
    assert "client_left" == server.attributes["error.type"] == client.attributes["error.type"]


def body(**fields: Any) -> dict[str, Any]:
    question = [{"role": "user", "content": "Say hello."}]
    return {"model": "any", "stream": True, "messages": question, **fields}


async def test_an_answer_that_goes_on_without_its_client_is_one_span(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """The request's span lasts as long as what it began, and says how that ended."""
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hello")
        await go_on.wait()
        await exchange.words(" world")
        await exchange.finish()

    backend.script = script
    service = await make_traced(agent_for(backend), client_gone="finish")
    async with aiohttp.ClientSession() as http:
        response = await http.post(service.url + PATH, json=body())
        await response.content.readany()
        response.close()
    (relay,) = service.relays
    await until(lambda: relay.readers.count == 0)
    go_on.set()
    spans = await collector.count(3)
    server, client = named(spans, "POST"), named(spans, "chat")
    assert "completed" == server.attributes["verbatim.state"]
    assert client.ended_ns <= server.ended_ns
    assert ["client_left"] == server.events


async def test_a_cancelled_answer_ends_its_spans(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """By its id, before its first token: there is no token, and nothing failed."""

    async def silent(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.client_closed.wait()

    backend.script = silent
    service = await make_traced(agent_for(backend))
    asked = asyncio.create_task(service.stream())
    await until(lambda: len(backend.exchanges) == 1)
    (relay,) = service.relays
    url = f"{service.url}{PATH}/{relay.session.request.completion_id}/cancel"
    async with service.http.post(url) as response:
        assert 200 == response.status
    await asked
    spans = await collector.count(3)
    server, client = named(spans, "POST"), named(spans, "chat")
    assert "client_gone" == server.attributes["verbatim.state"]
    assert [] == client.events
    assert (UNSET, "stopped") == (client.status, client.attributes["error.type"])


async def test_a_resume_is_a_span_with_a_link(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """Of a running answer, of a stored one: a trace of its own, linked to the one that asked."""
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hello", " world")
        await go_on.wait()
        await exchange.finish()

    backend.script = script
    service = await make_traced(agent_for(backend))
    async with asking(service, headers_for(SAMPLED)) as response:
        await response.content.readany()
        completion_id = response.headers["x-completion-id"]
        running = asyncio.create_task(read(service, completion_id, starting_after="1"))
        (relay,) = service.relays
        await until(lambda: relay.readers.count == 2)
        go_on.set()
        await response.read()
    await running
    await until(lambda: not service.relays)
    await read(service, completion_id, headers={"Last-Event-ID": "2"})
    spans = await collector.count(5)
    first = named(spans, "POST")
    resumed = [span for span in spans if span.name == f"GET {READING_ROUTE}"]
    assert [SERVER, SERVER] == [span.kind for span in resumed]
    link = (TRACE_ID, first.span_id)
    assert [[link], [link]] == [span.links for span in resumed]
    assert 3 == len({first.trace_id, *(span.trace_id for span in resumed)})
    assert {1, 2} == {span.attributes["verbatim.starting_after"] for span in resumed}
    assert {completion_id} == {span.attributes["verbatim.completion_id"] for span in resumed}
    assert {""} == {span.parent_id for span in resumed}
    assert [] == first.links


async def read(
    service: Service, completion_id: str, headers: dict[str, str] | None = None, **query: str
) -> bytes:
    url = f"{service.url}{PATH}/{completion_id}"
    params = {"stream": "true", **query}
    async with service.http.get(url, params=params, headers=headers) as response:
        assert 200 == response.status
        return await response.read()


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_repeat_is_a_span_with_a_link(
    make_traced: TracedMaker, backend: Backend, collector: Collector, is_streamed: bool
) -> None:
    """One that asks no model again has no attempt and no save, and links to the one that did."""
    service = await make_traced(agent_for(backend))
    headers = headers_for(SAMPLED, **{"Idempotency-Key": "k"})
    async with asking(service, headers, stream=is_streamed) as response:
        await response.read()
    again = headers_for(**{"Idempotency-Key": "k"})
    async with asking(service, again, stream=is_streamed) as response:
        await response.read()
        assert "true" == response.headers["Idempotency-Replayed"]
    spans = await collector.count(4)
    (repeat,) = (span for span in spans if "verbatim.replayed" in span.attributes)
    (first,) = (span for span in spans if span.kind == SERVER and span is not repeat)
    assert [(TRACE_ID, first.span_id)] == repeat.links
    assert TRACE_ID != repeat.trace_id
    assert 1 == len(backend.exchanges)


class Away(Kept):
    """A store that is away until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = True

    async def save(self, records: Sequence[SessionRecord]) -> None:
        if self.is_away:
            raise StoreUnavailable("away")
        await super().save(records)

    async def check(self) -> None:
        if self.is_away:
            raise StoreUnavailable("away")


SOON = DatabaseConfig(commit_timeout_seconds=0.05)


async def test_a_late_save_is_a_late_span(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """The client is told the end without it; its span comes when the row does."""
    store = Away()
    service = await make_traced(agent_for(backend), store=store, database=SOON)
    await service.stream()
    spans = await collector.count(2)
    server = named(spans, "POST")
    store.is_away = False
    spans = await collector.count(3)
    save = named(spans, "save")
    assert server.ended_ns < save.ended_ns
    assert (server.trace_id, server.span_id, UNSET) == (save.trace_id, save.parent_id, save.status)


async def test_what_is_never_saved_says_so(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """At a stop without a database: the span is an error, and the journal has the answer."""
    patience = DatabaseConfig(commit_timeout_seconds=0.05)
    service = await make_traced(agent_for(backend), store=Away(), database=patience)
    await service.stream()
    await collector.count(2)
    began = time.monotonic()
    await service.stop()
    assert time.monotonic() - began < 15
    save = named(await collector.count(3), "save")
    assert (ERROR, "not_saved") == (save.status, save.attributes["error.type"])
