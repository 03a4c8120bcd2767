"""What people and operators see of a fleet, at a replica of it: probes, lists, the page.

The replicas are whole services in this process; the engine is a real Redis.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from db.fleet import VERSION, Replica
from service.app import FLEET
from service.fleet.others import Others, Told
from service.fleet.standing import degraded
from service.settings.access import AuthConfig
from service.settings.admin import AdminConfig
from service.settings.config import JournalConfig
from service.settings.fleet import FleetConfig
from tests.redis_servers import RedisServer
from tests.service.conftest import Kept, Service, ServiceMaker
from tests.service.metrics.conftest import scraped
from tests.service.page.conftest import (
    ADMIN_KEYS,
    CALLER,
    CALLER_KEYS,
    FAST,
    SLOW,
    VisitorMaker,
)
from tests.service.page.conftest import visit as visit
from tests.service.page.test_now import ask_slowly

COMPLETIONS = "/v1/chat/completions"
FIGURES = "verbatim_fleet"
LONG = evolve(SLOW, reply="word " * 5000)
Join = Callable[..., Awaitable[Service]]


@pytest.fixture
async def join(
    make_service: ServiceMaker, own_redis: RedisServer, tmp_path: Path
) -> AsyncIterator[Join]:
    """Starts a replica by name; all have one store."""
    store = Kept()

    async def start(name: str, *, journal: Any = "follow", **fields: Any) -> Service:
        fleet = FleetConfig(own_redis.url, name, journal, lease_seconds=3.0)
        directory = JournalConfig(directory=str(tmp_path / name))
        return await make_service(LONG, store=store, journal=directory, fleet=fleet, **fields)

    yield start


async def ready(service: Service) -> tuple[int, Any]:
    async with service.http.get(f"{service.url}/readyz") as response:
        return response.status, (await response.json())["degraded"]


async def listed(service: Service, key: str | None = None, **query: str) -> Any:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    params = {"state": "streaming", **query}
    async with service.http.get(
        service.url + COMPLETIONS, params=params, headers=headers
    ) as response:
        assert 200 == response.status
        return await response.json()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(15):
        while not await holds():
            await asyncio.sleep(0.05)


# --- probes -------------------------------------------------------------------------------------


async def test_a_replica_says_what_is_degraded(join: Join, own_redis: RedisServer) -> None:
    """It stays ready: with the engine away, and where another process has its name."""
    a, sure = await join("a"), await join("sure", journal="before_send")
    assert (200, []) == await ready(a) == await ready(sure)
    same = await join("a")
    assert (200, ["fleet: another process is this replica"]) == await ready(same)
    own_redis.stop()
    try:
        await until(lambda: says(a, "the engine is away"))
        await until(lambda: says(sure, "no new streams"))
        await until(lambda: says(a, "lease not held"))
        assert not await says(a, "no new streams")
    finally:
        own_redis.start()

    async def is_well() -> bool:
        return await ready(a) == (200, [])

    await until(is_well)


async def says(service: Service, what: str) -> bool:
    status, told = await ready(service)
    assert 200 == status
    return what in str(told)


async def test_another_version_is_told(join: Join) -> None:
    """Of the living alone."""
    standing = (await join("a")).app[FLEET].standing()
    others = [
        Replica("new", "1" * 16, VERSION + 1, lease_seconds=9),
        Replica("old", "2" * 16, VERSION - 1, lease_seconds=0),
        Replica("same", "3" * 16, VERSION, lease_seconds=9),
    ]
    (told,) = degraded(standing, others)
    assert f"a replica of another version: 'new', {VERSION + 1}" in told


# --- metrics ------------------------------------------------------------------------------------


async def test_metrics_tell_of_the_fleet(join: Join) -> None:
    """Who is there, what is followed and by how many, what was asked, how long the engine took."""
    a, b = await join("a"), await join("b")
    _, name = await ask_slowly(a)
    path = f"{b.url}{COMPLETIONS}/{name}?stream=true"
    async with b.http.get(path) as one, b.http.get(path) as two:
        await asyncio.gather(one.content.readany(), two.content.readany())
        found = await scraped(b)
        assert (1, 2) == (
            found.value(f"{FIGURES}_mirrors"),
            found.value(f"{FIGURES}_mirror_readers"),
        )
    assert 2 == found.value(f"{FIGURES}_replicas", state="alive")
    assert (1, 1) == (found.value(f"{FIGURES}_lease_held"), found.value(f"{FIGURES}_engine_up"))
    async with b.http.post(f"{b.url}{COMPLETIONS}/{name}/cancel") as response:
        assert 200 == response.status
    found = await scraped(a)
    assert 1 == found.value(f"{FIGURES}_commands_total", outcome="answered")
    assert found.value(f"{FIGURES}_append_seconds_count") > 1
    assert 5 > found.value(f"{FIGURES}_listener_silent_seconds")
    assert 0 == found.value(f"{FIGURES}_calls_failed_total")


# --- lists --------------------------------------------------------------------------------------


async def test_lists_have_what_runs_at_all_replicas(join: Join) -> None:
    """As it is where it runs, in one order, page by page, by the same filters; nobody else's."""
    keys = {"auth": AuthConfig(CALLER_KEYS), "admin": AdminConfig(ADMIN_KEYS)}
    a, b = await join("a", **keys), await join("b", **keys)
    a.key = b.key = CALLER
    (_, ours), (_, tagged) = await ask_slowly(a), await ask_slowly(b, metadata={"chat": "42"})
    whole = await listed(a, CALLER)
    order = sorted((each["created"], each["id"]) for each in whole["data"])
    (_, first), (_, second) = order
    assert [first, second] == [each["id"] for each in whole["data"]]
    assert {ours, tagged} == {first, second}
    assert "partial" not in whole
    theirs = (await listed(b, CALLER, limit="1"))["data"][0]
    assert (first, "streaming") == (theirs["id"], theirs["state"])
    assert theirs["choices"][0]["message"]["content"].startswith("word")
    page = await listed(a, CALLER, limit="1", after=first)
    assert [second] == [each["id"] for each in page["data"]]
    filtered = await listed(a, CALLER, **{"metadata[chat]": "42"})
    assert [tagged] == [each["id"] for each in filtered["data"]]
    assert [] == (await listed(a, CALLER, model="other"))["data"]
    assert [] == (await listed(a, CALLER, state="pending"))["data"]
    assert not await b.app[FLEET].engine.runs_of("ops")


async def test_a_list_that_may_lack_something_says_so(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known here is there, and `partial`: with a replica that says nothing, and with one that
    has too much to tell."""
    a, b = await join("a"), await join("b")
    (_, ours), (_, theirs) = await ask_slowly(a), await ask_slowly(b)
    assert {ours, theirs} == {each["id"] for each in (await listed(a))["data"]}
    monkeypatch.setattr("service.endpoints.listing._MOST_TOLD", 10)
    assert ([ours], True) == known(await listed(a))
    monkeypatch.undo()
    monkeypatch.setattr("service.fleet.others.LIST_SECONDS", 0.3)
    fleet = b.app[FLEET]
    assert fleet.listener is not None
    await fleet.listener.stop()
    assert ([ours], True) == known(await listed(a))


def known(shown: Any) -> tuple[list[str], bool]:
    return [each["id"] for each in shown["data"]], shown["partial"]


async def test_nothing_is_asked_of_another_version(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named as one whose answers are missing, and costs no waiting."""
    a, _ = await join("a"), await join("b")
    _, ours = await ask_slowly(a)
    fleet = a.app[FLEET]
    assert await fleet.roster.look(5)
    monkeypatch.setattr(
        fleet.roster,
        "replicas",
        [evolve(each, version=each.version + (each.name == "b")) for each in fleet.roster.replicas],
    )

    async def stay_as_it_is(_: float) -> bool:
        return True

    monkeypatch.setattr(fleet.roster, "look", stay_as_it_is)
    began_at = time.monotonic()
    told = await Others(fleet).tell("now", (), 5)
    assert Told((), ("b",)) == told
    assert ([ours], True) == known(await listed(a))
    assert 4 > time.monotonic() - began_at


# --- the page -----------------------------------------------------------------------------------


async def test_the_page_shows_what_runs_at_all_replicas(join: Join, visit: VisitorMaker) -> None:
    """By its replica's name; it is opened, read as it grows, and stopped."""
    a, b = await join("a"), await join("b")
    _, name = await ask_slowly(a)
    visitor = await visit(b)
    seen = await visitor.get("/")
    assert name in seen.text and 'data-cell="replica" class="cut">a</td>' in seen.text
    async with visitor.http.get(f"{visitor.url}/page/now") as events:
        await events.content.readuntil(b'"replica":"a"')
    path = f"/page/completions/{name}"
    seen = await visitor.get(path)
    assert 200 == seen.status
    assert "Replica a" in seen.words and "still being said" in seen.words
    assert "word word" in seen.words
    async with visitor.http.get(f"{visitor.url}{path}/stream?starting_after=1") as stream:
        assert 200 == stream.status
        assert b"chat.completion.chunk" in await stream.content.readany()
        assert 303 == (await visitor.post(f"{path}/cancel")).status
        assert b"[DONE]" not in await stream.read()
    assert "client_gone" == (await a.kept.one()).state.value
    assert "client gone" in (await visitor.get(path)).words
    assert 409 == (await visitor.post(f"{path}/cancel")).status


async def test_nobody_opens_what_is_hidden(join: Join, visit: VisitorMaker) -> None:
    """`store: false` at another replica: it is seen to run, and has neither page nor stream."""
    a, b = await join("a"), await join("b")
    _, name = await ask_slowly(a, store=False)
    visitor = await visit(b)
    assert "not stored" in (await visitor.get("/")).words
    for path in (f"/page/completions/{name}", f"/page/completions/{name}/stream"):
        assert 404 == (await visitor.get(path)).status


async def test_without_a_log_its_replica_is_named(join: Join, visit: VisitorMaker) -> None:
    """It can't be opened elsewhere; it is in the list, and can be stopped."""
    a, b = await join("a", journal="off"), await join("b", journal="off")
    _, name = await ask_slowly(a)
    visitor = await visit(b)
    seen = await visitor.get(f"/page/completions/{name}")
    assert 503 == seen.status and "at the replica 'a'" in seen.words.replace("&#39;", "'")
    await visitor.get("/")
    assert 303 == (await visitor.post(f"/page/completions/{name}/cancel")).status


async def test_health_shows_each_replica(
    join: Join, visit: VisitorMaker, own_redis: RedisServer
) -> None:
    """What it says of itself; that it is silent; that the engine is away, and then lists are partial."""
    a, b, c = await join("a"), await join("b"), await join("c")
    _, name = await ask_slowly(b)
    visitor = await visit(a)
    seen = await visitor.get("/page/health")
    assert 3 == seen.text.count('data-label="Replica"')
    token = b.app[FLEET].engine.token[:6]
    assert f"b {token} alive held answers 1 " in seen.words
    listener = c.app[FLEET].listener
    assert listener is not None
    await listener.stop()
    await asyncio.sleep(1.1)  # what was seen is old by then
    assert f"c {c.app[FLEET].engine.token[:6]} silent" in (await visitor.get("/page/health")).words
    own_redis.stop()
    try:
        assert ([name], True) == known(await listed(b))
        await asyncio.sleep(1.1)
        seen = await visitor.get("/page/health")
        assert "doesn't say who is there" in seen.words and "away ConnectionError" in seen.words
        words = (await visitor.get("/")).words.replace("&#39;", "'")
        assert "can't be told now: the engine is away" in words
    finally:
        own_redis.start()


async def test_without_a_fleet_there_is_nothing_of_it(
    make_service: ServiceMaker, visit: VisitorMaker
) -> None:
    """No column, no section."""
    service = await make_service(FAST, SLOW)
    await ask_slowly(service)
    visitor = await visit(service)
    assert "Replica" not in (await visitor.get("/")).text
    assert "Replica" not in (await visitor.get("/page/health")).text
    assert (200, []) == await ready(service)
