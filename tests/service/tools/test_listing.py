"""What tools a server has: all pages, kept fresh, and there while the server is away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from attrs import evolve

from service.tools.contract import Toolbox, ToolsUnavailable
from service.tools.link import Listing, NotConnected, Offered
from service.tools.listing import KnownTools
from service.tools.names import named
from tests.service.tools.conftest import MakeBox
from tests.service.tools.server import LEGACY, MODERN, ToolServer, tool


async def names(box: Toolbox) -> list[str]:
    return [tool.full_name for tool in await box.tools()]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


# --- over sockets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [MODERN, LEGACY])
async def test_all_pages_are_listed(server: ToolServer, box: Toolbox, version: str) -> None:
    """Tools come in the server's order from all of its pages, with what models are told of them."""
    server.version = version
    schema = {"type": "object", "properties": {"q": {"type": "string"}}}
    server.pages = [[tool("a", inputSchema=schema)], [tool("b"), tool("c")], [tool("d")]]
    assert ["docs__a", "docs__b", "docs__c", "docs__d"] == await names(box)
    first = (await box.tools())[0]
    assert ("docs", "a", "Does a.", schema) == (
        first.server,
        first.name,
        first.description,
        first.parameters,
    )
    assert 3 == server.asked.count("tools/list")


async def test_endless_pages_end(server: ToolServer, box: Toolbox) -> None:
    """A server that always has another page is asked for a hundred."""
    server.pages = [[tool(f"t{number}")] for number in range(150)]
    assert 100 == len(await names(box))


async def test_some_tools_are_allowed(server: ToolServer, make_box: MakeBox) -> None:
    """Patterns go by the tool's own name, capitals count, and `deny` wins."""
    server.pages = [[tool(name) for name in ("search", "search.all", "Search", "delete")]]
    box = make_box(allow=("search*", "del*"), deny=("*.all",))
    assert ["docs__search", "docs__delete"] == await names(box)


async def test_odd_names_are_made_callable(server: ToolServer, make_box: MakeBox) -> None:
    """A tool that models couldn't call by its own name is called by another, and the server by its own."""
    server.pages = [[tool("käse.essen"), tool("x" * 80)]]
    box = make_box()
    first, second = await box.tools()
    assert first.full_name.startswith("docs__k_se_essen_")
    assert 64 == len(second.full_name)
    async with box.open() as calls:
        assert "käse.essen" == (await calls.call(first, {})).text
        assert "x" * 80 == (await calls.call(second, {})).text


async def test_a_change_is_heard(server: ToolServer, box: Toolbox) -> None:
    """A notification while an answer calls has the list asked for again, waited for by nobody."""
    server.version = LEGACY
    (one, *_) = await box.tools()
    async with box.open() as calls:
        await calls.call(one, {})
        await until(lambda: len(server.sessions) == 1 and server.has_listener)
        server.pages = [[tool("new")]]
        await server.tell_of_change()
        async with asyncio.timeout(5):
            while ["docs__new"] != await names(box):
                await asyncio.sleep(0.01)


async def test_an_answers_client_brings_news(server: ToolServer, box: Toolbox) -> None:
    """Each client lists right after connecting, and what it hears is known from then on."""
    (one, *_) = await box.tools()
    server.pages = [[tool("new")]]
    assert ["docs__one", "docs__two"] == await names(box)
    async with box.open() as calls:
        await calls.call(one, {})
    assert ["docs__new"] == await names(box)


async def test_tools_that_were_never_known_are_unavailable(
    server: ToolServer, box: Toolbox
) -> None:
    """A server that is away and was never listed is named, and isn't asked again at once."""
    await server.stop()
    for _ in range(2):
        with pytest.raises(ToolsUnavailable, match="'docs'") as caught:
            await box.tools()
        failure = caught.value.failure
        assert ("tools_unavailable", 503) == (failure.code, failure.status)
        assert failure.retry_after_seconds is not None
        assert 0 < failure.retry_after_seconds <= 2
    await server.start()
    with pytest.raises(ToolsUnavailable):
        await box.tools()


@pytest.mark.parametrize("status", [401, 500])
async def test_a_refusal_is_told(server: ToolServer, box: Toolbox, status: int) -> None:
    """A call to a server that lets nobody in says with which status, and that nothing was called."""
    server.refusals = [status] * 9
    tools = named("docs", [Offered("one", "", {})])
    async with box.open() as calls:
        result = await calls.call(tools[0], {})
    words = f"The tool's server could not be reached (HTTP {status}). The tool was not called."
    assert words == result.text


async def test_a_busy_server_is_old_for_one_client(server: ToolServer, box: Toolbox) -> None:
    """A 503 while connecting has the SDK speak the older protocol for that client's life; the next answer's
    client speaks the new one again."""
    tools = named("docs", [Offered("one", "", {})])
    server.refusals = [503]
    for expected in (LEGACY, MODERN):
        async with box.open() as calls:
            assert "one" == (await calls.call(tools[0], {})).text
            assert expected == server.headers["mcp-protocol-version"]


async def test_headers_are_sent(server: ToolServer, make_box: MakeBox) -> None:
    """Configured headers go with each request, their variables filled in."""
    headers = {"Authorization": "Bearer ${TOKEN}", "X-Team": "blue"}
    await make_box({"TOKEN": "t0ken"}, headers=headers).tools()
    assert ("Bearer t0ken", "blue") == (server.headers["Authorization"], server.headers["X-Team"])


async def test_a_header_that_is_quoted_is_masked(server: ToolServer, make_box: MakeBox) -> None:
    """A server that quotes the token it refuses doesn't get it into an answer."""
    headers = {"Authorization": "Bearer ${TOKEN}"}
    box = make_box({"TOKEN": "sk-0123456789"}, headers=headers)
    server.handlers["one"] = lambda call: call.error(-32000, "no sk-0123456789 here", status=403)
    async with box.open() as calls:
        result = await calls.call((await box.tools())[0], {})
    assert "The tool's server answered with HTTP 403: no *** here" == result.text


# --- by the clock ---------------------------------------------------------------------------------


class Asked:
    """A server as `KnownTools` asks it, and a clock."""

    def __init__(self) -> None:
        self.listing = Listing((Offered("a", "", {}),))
        self.error: Exception | None = None
        self.times = 0
        self.now = 1000.0
        self.known = KnownTools(
            "docs", self._ask, lambda listing: named("docs", listing.tools), lambda: self.now
        )

    async def _ask(self) -> Listing:
        self.times += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.listing

    async def names(self) -> list[str]:
        """What is known now; then whatever is asked for behind it has come."""
        known = [tool.name for tool in await self.known.get()]
        for _ in range(9):
            await asyncio.sleep(0)
        return known


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    asked = Asked()
    yield asked
    asked.known.close()


@pytest.mark.parametrize(("said", "fresh"), [(None, 300.0), (60.0, 60.0), (0.0, 1.0)])
async def test_a_list_is_fresh_for_as_long_as_its_server_says(
    asked: Asked, said: float | None, fresh: float
) -> None:
    """Within that time nobody asks; after it the known list is given, and a new one asked for behind. What
    is not said is five minutes, and nothing is asked for more than once a second."""
    asked.listing = evolve(asked.listing, fresh_seconds=said)
    assert ["a"] == await asked.names()
    asked.listing = evolve(asked.listing, tools=(Offered("b", "", {}),))
    asked.now += fresh - 0.01
    assert (["a"], 1) == (await asked.names(), asked.times)
    asked.now += 0.02
    assert (["a"], 2) == (await asked.names(), asked.times)
    assert (["b"], 2) == (await asked.names(), asked.times)


@pytest.mark.parametrize("error", [NotConnected("ConnectError"), ValueError("odd")])
async def test_the_last_known_list_outlives_its_server(asked: Asked, error: Exception) -> None:
    """A server that is away is listed as last seen, and asked again after pauses that grow."""
    await asked.names()
    asked.error = error
    asked.now += 301
    for expected in (2, 2):
        assert (["a"], expected) == (await asked.names(), asked.times)
    asked.now += 2.01
    await asked.names()
    assert 3 == asked.times
    asked.now += 1.9
    await asked.names()
    assert 3 == asked.times
    asked.error = None
    asked.now += 2
    await asked.names()
    assert 4 == asked.times


async def test_many_who_ask_at_once_ask_once(asked: Asked) -> None:
    """However many answers begin before the first list is there, the server is asked once; who is cancelled
    meanwhile cancels nobody else."""
    waiting = [asyncio.create_task(asked.known.get()) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    results: list[Any] = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [["a"]] * 4 == [[tool.name for tool in tools] for tools in results[1:]]
    assert 1 == asked.times


async def test_a_change_while_asking_is_asked_for_again(asked: Asked) -> None:
    """A list that was asked for before a change may be the old one."""
    await asked.names()
    asked.known.change()
    await asyncio.sleep(0)
    asked.known.change()
    await until(lambda: asked.times == 3)
