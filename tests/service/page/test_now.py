"""What runs, live; cancelling; and that it ends with the service."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from service.app import STREAMS
from service.page.running import MOST_ROWS, Running, running_here
from service.settings.config import OpenAIAgentConfig
from statemachine import State
from tests.service.conftest import Service, ServiceMaker
from tests.service.page.conftest import FAST, SLOW, Visitor, VisitorMaker


class Feed:
    """The events of Now, as they come."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.rows: dict[str, dict[str, Any]] = {}
        self.totals: dict[str, int] = {}
        self.times: list[float] = []
        self.last: dict[str, Any] = {}

    async def next(self) -> dict[str, Any]:
        """The next change, applied to what was known. Raises EOFError at the end."""
        async with asyncio.timeout(10):
            while True:
                line = await self.response.content.readline()
                if not line:
                    raise EOFError
                if line.startswith(b"data: "):
                    break
        self.last = change = json.loads(line[6:])
        self.times.append(time.monotonic())
        for row in change.get("rows", ()):
            self.rows.setdefault(row["id"], {}).update(row)
        for name in change.get("gone", ()):
            del self.rows[name]
        self.totals.update(change.get("totals", {}))
        return change


@pytest.fixture
async def visitor(open_service: Service, visit: VisitorMaker) -> Visitor:
    return await visit(open_service)


@pytest.fixture
async def feed(visitor: Visitor) -> AsyncIterator[Feed]:
    async with visitor.http.get(f"{visitor.url}/page/now") as response:
        yield Feed(response)


async def ask_slowly(service: Service, **fields: Any) -> tuple[Any, str]:
    """A stream that takes its time, once its first chunk is there; and its id."""
    response = await service.post(model="slow", **fields)
    service.held.append(response)
    await response.content.readany()
    return response, response.headers["x-completion-id"]


async def test_what_runs_is_shown_as_it_goes(open_service: Service, feed: Feed) -> None:
    """It comes, its figures grow, it goes; only what is another is told."""
    assert {"at"} == set(await feed.next())
    response, name = await ask_slowly(open_service)
    first = await feed.next()
    assert [name] == [row["id"] for row in first["rows"]]
    row = feed.rows[name]
    assert ("slow", "anonymous", "slow") == (row["model"], row["owner"], row["agent"])
    assert State.STREAMING.value == row["state"]
    assert (1, False) == (row["readers"], row["detached"])
    assert {"streams": 1, "waiting": 0, "answering": 1, "detached": 0} == feed.totals
    before = row["tokens"]
    change = await feed.next()
    assert {"id", "tokens", "rate"} >= set(change["rows"][0])
    assert feed.rows[name]["tokens"] > before
    response.close()
    while name in feed.rows:
        await feed.next()
    assert 0 == feed.totals["streams"]


async def test_events_come_at_most_twice_a_second(open_service: Service, feed: Feed) -> None:
    """However fast tokens come."""
    await ask_slowly(open_service)
    for _ in range(5):
        await feed.next()
    gaps = [after - before for before, after in zip(feed.times, feed.times[1:], strict=False)]
    assert all(gap > 0.4 for gap in gaps)


async def test_an_absent_client_shows(make_service: ServiceMaker, visit: VisitorMaker) -> None:
    """A stream that nobody reads, and that goes on."""
    service = await make_service(SLOW, client_gone="finish")
    response, name = await ask_slowly(service)
    response.close()
    visitor = await visit(service)
    async with visitor.http.get(f"{visitor.url}/page/now") as events:
        feed = Feed(events)
        while not feed.rows.get(name, {}).get("detached"):
            await feed.next()
        assert 0 == feed.rows[name]["readers"]
        assert 1 == feed.totals["detached"]
    assert "detached" in (await visitor.get("/")).words


async def test_one_look_serves_all_who_look_on(
    open_service: Service, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three viewers cost as many looks as one, and nobody none."""
    looks = 0
    real = running_here

    def counted(*arguments: Any) -> Running:
        nonlocal looks
        looks += 1
        return real(*arguments)

    monkeypatch.setattr("service.page.now.running_here", counted)
    await ask_slowly(open_service)
    await asyncio.sleep(1.2)
    assert 0 == looks
    streams = [await visitor.http.get(f"{visitor.url}/page/now") for _ in range(3)]
    feeds = [Feed(stream) for stream in streams]
    for _ in range(3):
        await asyncio.gather(*[feed.next() for feed in feeds])
    assert 3 <= looks <= 4
    for stream in streams:
        stream.close()
    await asyncio.sleep(1.2)
    looks = 0
    await asyncio.sleep(1.2)
    assert 0 == looks


async def test_viewers_are_bounded(visitor: Visitor) -> None:
    """One too many is told so."""
    streams = [await visitor.http.get(f"{visitor.url}/page/now") for _ in range(20)]
    assert {200} == {stream.status for stream in streams}
    assert 503 == (await visitor.get("/page/now")).status
    for stream in streams:
        stream.close()


async def test_the_events_end_with_the_service(open_service: Service, feed: Feed) -> None:
    """A drain waits for no viewer."""
    await feed.next()
    began = time.monotonic()
    await open_service.app[STREAMS].drain(0.0)
    with pytest.raises(EOFError):
        await feed.next()
    assert time.monotonic() - began < 2


async def test_cancel_stops_it_and_keeps_what_was_said(
    open_service: Service, visitor: Visitor, log_lines: Any
) -> None:
    """By the button's form; the log says who did it."""
    _, name = await ask_slowly(open_service)
    page = await visitor.get("/")
    assert f'action="/page/completions/{name}/cancel"' in page.text
    seen = await visitor.post(f"/page/completions/{name}/cancel")
    assert (303, "/") == (seen.status, seen.headers["Location"])
    record = await open_service.kept.one()
    assert (name, State.CLIENT_GONE) == (record.completion_id, record.state)
    line = next(line for line in log_lines if line["event"] == "cancelled by an operator")
    assert (name, "anonymous") == (line["completion_id"], line["admin"])
    assert 409 == (await visitor.post(f"/page/completions/{name}/cancel")).status


async def test_what_is_not_to_be_stored_has_no_address(
    open_service: Service, visitor: Visitor
) -> None:
    """`store: false`: it can be stopped, and not be read."""
    _, name = await ask_slowly(open_service, store=False)
    page = await visitor.get("/")
    assert "not stored" in page.words
    assert f'href="/page/completions/{name}"' not in page.text
    assert 404 == (await visitor.get(f"/page/completions/{name}")).status
    assert 404 == (await visitor.get(f"/page/completions/{name}/stream")).status
    assert 303 == (await visitor.post(f"/page/completions/{name}/cancel")).status


async def test_the_box_is_there_where_nobody_needs_a_key(
    open_service: Service, visitor: Visitor
) -> None:
    """And on a first run it comes first, with something to say."""
    page = await visitor.get("/")
    assert 'data-model="demo"' in page.text
    assert "Nothing was asked yet." in page.words
    assert page.text.index('id="ask"') < page.text.index('id="running"')
    await open_service.stream(model="demo")
    await open_service.kept.one()
    page = await visitor.get("/")
    assert "Nothing was asked yet." not in page.words
    assert page.text.index('id="ask"') > page.text.index('id="running"')


async def test_the_box_asks_for_a_model_that_there_is(
    make_service: ServiceMaker, visit: VisitorMaker
) -> None:
    """Not for the name of an agent that has no model of its own."""

    def backend(name: str, **fields: Any) -> OpenAIAgentConfig:
        url = "http://127.0.0.1:9/v1"
        return OpenAIAgentConfig(name=name, kind="openai", base_url=url, api_key_env=None, **fields)

    everything = backend("remote")
    for agents, model in (
        ([everything], None),
        ([everything, backend("b", models=("gpt-*", "gpt-4"))], "gpt-4"),
        ([everything, backend("b", parameters={"model": "llama"})], "b"),
        ([everything, FAST], "demo"),
    ):
        page = await (await visit(await make_service(*agents))).get("/")
        assert (model is not None) == ('id="ask"' in page.text)
        assert model is None or f'data-model="{model}"' in page.text


def test_rows_are_bounded_and_counted() -> None:
    """Of all workers' rows the newest are shown, and all are counted."""
    rows = [{"id": str(n), "created_at": float(n)} for n in range(MOST_ROWS)]
    totals = {"waiting": 1, "answering": 2, "detached": 3, "streams": 6}
    other = {"rows": [{"id": "new", "created_at": 1e9}], "totals": totals}
    both = Running(1.0, rows, totals).with_others([other])
    assert MOST_ROWS == len(both.rows)
    assert ("new", "99") == (both.rows[0]["id"], both.rows[1]["id"])
    assert {"waiting": 2, "answering": 4, "detached": 6, "streams": 12} == both.totals


def test_a_change_is_what_is_another() -> None:
    """Nothing for what is the same; all of what is new; ids of what has gone."""
    before = Running(1.0, [{"id": "a", "tokens": 1}, {"id": "b", "tokens": 1}], {"streams": 2})
    after = Running(2.0, [{"id": "c", "tokens": 0}, {"id": "a", "tokens": 2}], {"streams": 2})
    assert {} == before.change_from(before)
    assert {
        "rows": [{"id": "a", "tokens": 2}, {"id": "c", "tokens": 0}],
        "gone": ["b"],
    } == after.change_from(before)


def test_rates_follow_what_came() -> None:
    """Tokens a second between two looks, smoothed; what is new keeps its mean."""
    before = Running(1.0, [{"id": "a", "tokens": 10, "rate": 10.0}])
    after = Running(
        1.5, [{"id": "a", "tokens": 20, "rate": 0.0}, {"id": "b", "tokens": 1, "rate": 2.0}]
    )
    assert [15.0, 2.0] == [row["rate"] for row in after.with_rates(before).rows]
