"""The page in a real Chromium: it loads, it moves, it can be used, by everybody. `make browser` runs it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from service.settings.access import AuthConfig
from service.settings.admin import AdminConfig
from service.settings.config import JournalConfig
from service.settings.fleet import FleetConfig
from statemachine import State
from tests.redis_servers import RedisServer
from tests.service.conftest import Service, ServiceMaker
from tests.service.page import stage
from tests.service.page.conftest import ADMIN, ADMIN_KEYS, FAST, SLOW
from tests.service.page.test_now import ask_slowly
from tests.service.stage.backend import Backend

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

SCREENS = ("/", "/page/completions", "/page/health", "/page/callers")
_HOW = "apt-get install chromium, and: make browser"


@pytest.fixture
async def chromium() -> AsyncIterator[Any]:
    """A browser, if there is one."""
    path = stage.installed()
    if path is None:
        pytest.skip(f"no Chromium is here: {_HOW}")
    pytest.importorskip("playwright", reason=f"Playwright is not here: {_HOW}")
    async with stage.browser_of(path) as browser:
        yield browser


class Tab:
    """A page in the browser, with all that must not happen noted."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.wrong: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", self._check)

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _check(self, request: Any) -> None:
        if not request.url.startswith(self.url):
            self.wrong.append(f"a request to {request.url}")

    async def go(self, path: str) -> None:
        response = await self.page.goto(self.url + path)
        assert 200 == response.status, path

    async def text(self, selector: str) -> str:
        return str(await self.page.inner_text(selector))


@pytest.fixture
async def tab(chromium: Any, open_service: Service) -> AsyncIterator[Tab]:
    """Of a service without keys."""
    context = await chromium.new_context(viewport=stage.DESKTOP)
    tab = Tab(await context.new_page(), open_service.url)
    yield tab
    assert [] == tab.wrong
    await context.close()


async def until(holds: Any) -> None:
    async with asyncio.timeout(15):
        while not await holds():
            await asyncio.sleep(0.05)


async def test_the_box_shows_the_words_coming(tab: Tab, open_service: Service) -> None:
    """Ask, see the words grow, follow the link to what is stored."""
    await tab.go("/")
    await tab.page.evaluate("document.querySelector('#ask').dataset.model = 'slow'")
    await tab.page.fill('#ask [name="question"]', "Hello!")
    await tab.page.click("#ask button")
    lengths = []
    for _ in range(5):
        await asyncio.sleep(0.2)
        lengths.append(len(await tab.text("#words")))
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
    await until(lambda: stored(tab))
    await tab.page.click("#asked a")
    assert "Hello!" in await tab.text("main")
    await open_service.kept.one()


async def stored(tab: Tab) -> bool:
    return "is stored" in await tab.text("#asked")


async def test_now_moves_and_cancels(tab: Tab, open_service: Service) -> None:
    """A row comes by itself, its figures grow, its button stops it, and it goes."""
    await tab.go("/")
    await tab.page.wait_for_selector("#live:not([hidden])")
    _, name = await ask_slowly(open_service)
    row = f'#running tr[data-id="{name}"]'
    await tab.page.wait_for_selector(row)
    before = int(await tab.text(f'{row} [data-cell="tokens"]'))

    async def has_grown() -> bool:
        return int(await tab.text(f'{row} [data-cell="tokens"]')) > before + 5

    await until(has_grown)
    assert "1" == await tab.text('[data-total="streams"]')
    await tab.page.get_by_role("button", name=f"cancel {name}").click()
    await tab.page.wait_for_url(tab.url + "/")
    assert State.CLIENT_GONE is (await open_service.kept.one()).state
    assert 0 == await tab.page.locator(row).count()


async def test_one_that_ends_leaves_by_itself(tab: Tab, open_service: Service) -> None:
    """And is in the totals no more."""
    await tab.go("/")
    response, name = await ask_slowly(open_service)
    row = f'#running tr[data-id="{name}"]'
    await tab.page.wait_for_selector(row)
    response.close()
    await tab.page.wait_for_selector(row, state="detached")
    assert "0" == await tab.text('[data-total="streams"]')


async def test_one_that_runs_grows(tab: Tab, open_service: Service) -> None:
    """Its words come in, each once, and at its end it is shown as it is stored."""
    _, name = await ask_slowly(open_service)
    await tab.go(f"/page/completions/{name}")
    lengths = []
    for _ in range(4):
        lengths.append(len(await tab.text("#answer")))
        await asyncio.sleep(0.25)
    assert lengths[0] < lengths[-1]
    await until(lambda: is_over(tab))
    assert "word " * 149 + "word" == (await tab.text(".said.assistant .text")).strip()


async def is_over(tab: Tab) -> bool:
    return "completed" in await tab.text("h1")


async def test_names_are_those_that_people_use(tab: Tab, open_service: Service) -> None:
    """Every screen is reached by its name; older, and a completion's conversation."""
    await stage.seed(open_service.store, 120)
    await tab.go("/")
    for name in ("Completions", "Health", "Callers", "Now", "Completions"):
        await tab.page.get_by_role("link", name=name, exact=True).click()
        assert name in await tab.page.title()
    first = await tab.text("td.id")
    await tab.page.get_by_role("link", name="older", exact=True).click()
    assert first != await tab.text("td.id")
    await tab.page.click("td.id a")
    name = (await tab.text("h1 span")).strip()
    await tab.page.locator('dd a[href^="/page/conversations/"]').click()
    assert "conv_" in await tab.text("h1")
    await tab.page.get_by_label("Find any id").fill(name)
    await tab.page.keyboard.press("Enter")
    await tab.page.wait_for_url(f"**/page/completions/{name}")


async def test_it_works_by_keyboard_alone(tab: Tab, open_service: Service) -> None:
    """The first tab leads past the header; all that can be used can be reached, and shows it."""
    await tab.go("/page/completions")
    await tab.page.keyboard.press("Tab")
    assert "Skip to the content" == await tab.page.evaluate("document.activeElement.innerText")
    await tab.page.keyboard.press("Enter")
    assert "main" == await tab.page.evaluate("document.activeElement.id")
    await tab.page.keyboard.press("Tab")
    assert "SUMMARY" == await tab.page.evaluate("document.activeElement.tagName")
    await tab.page.keyboard.press("Enter")
    assert await tab.page.locator('[name="model"]').is_visible()


async def test_it_works_without_script(chromium: Any, open_service: Service) -> None:
    """Every screen, finding, filtering, cancelling: all but what is live."""
    await stage.seed(open_service.store, 60)
    context = await chromium.new_context(java_script_enabled=False, viewport=stage.PHONE)
    page = await context.new_page()
    for path in SCREENS:
        await page.goto(open_service.url + path)
        assert "Verbatim" in await page.title()
    _, name = await ask_slowly(open_service)
    await page.goto(open_service.url)
    await page.get_by_role("button", name=f"cancel {name}").click()
    assert open_service.url + "/" == page.url
    assert name not in await page.inner_text("main")
    await page.get_by_label("Find any id").fill(name)
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**/page/completions/{name}")
    assert "client gone" in await page.inner_text("h1")
    await context.close()


# --- for everybody: contrast, names, structure, no sideways scrolling ------------------------------


@pytest.fixture
async def busy(
    make_service: ServiceMaker, backend: Backend
) -> AsyncIterator[tuple[Service, list[str]]]:
    """A service with keys and a bit of everything, and the screens to look at."""
    backend.script = stage.Trouble(0.1)
    service = await make_service(
        *stage.agents(backend.base_url),
        FAST,
        SLOW,
        auth=AuthConfig(stage.KEYS),
        admin=AdminConfig(ADMIN_KEYS),
    )
    records = await stage.seed(service.store)
    failed = next(record for record in records if record.failure is not None)
    row = await service.store.find(records[-1].completion_id)
    assert row is not None
    running = (await stage.ask(service, "open-webui")).headers["x-completion-id"]
    yield (
        service,
        [
            *SCREENS,
            "/page/completions?state=failed&model=small",
            "/page/find?id=nobody",
            f"/page/completions/{failed.completion_id}",
            f"/page/completions/{running}",
            f"/page/conversations/{row.conversation_id}",
        ],
    )


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [("light", stage.DESKTOP), ("dark", stage.DESKTOP), ("light", stage.PHONE)],
    ids=["light", "dark", "phone"],
)
async def test_everybody_can_use_it(
    chromium: Any, busy: tuple[Service, list[str]], scheme: str, viewport: Any
) -> None:
    """axe finds nothing on any screen, signed in or not, and none is wider than the window."""
    axe = pytest.importorskip("axe_playwright_python", reason=f"axe is not here: {_HOW}")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text("utf-8")
    service, paths = busy
    context = await chromium.new_context(color_scheme=scheme, viewport=viewport)
    tab = Tab(await context.new_page(), service.url)
    await tab.go("/page/sign-in")
    await check_all(tab, source)
    await tab.page.get_by_label("Admin key").fill(ADMIN)
    await tab.page.get_by_role("button", name="Sign in").click()
    await tab.page.wait_for_url(service.url + "/")
    for path in paths:
        await tab.go(path)
        await check_all(tab, source)
    assert [] == tab.wrong
    await context.close()


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [("light", stage.DESKTOP), ("dark", stage.DESKTOP), ("light", stage.PHONE)],
    ids=["light", "dark", "phone"],
)
async def test_a_fleet_can_be_used_by_everybody(
    chromium: Any,
    make_service: ServiceMaker,
    own_redis: RedisServer,
    tmp_path: Path,
    scheme: str,
    viewport: Any,
) -> None:
    """What runs at another replica comes by itself, is opened, grows, and is stopped; axe finds nothing."""
    axe = pytest.importorskip("axe_playwright_python", reason=f"axe is not here: {_HOW}")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text("utf-8")
    alder, birch = [
        await make_service(
            evolve(SLOW, reply="word " * 5000),
            fleet=FleetConfig(own_redis.url, name),
            journal=JournalConfig(directory=str(tmp_path / name)),
        )
        for name in ("alder", "birch")
    ]
    context = await chromium.new_context(color_scheme=scheme, viewport=viewport)
    tab = Tab(await context.new_page(), alder.url)
    await tab.go("/")
    await tab.page.wait_for_selector("#live:not([hidden])")
    _, name = await ask_slowly(birch)
    row = f'#running tr[data-id="{name}"]'
    await tab.page.wait_for_selector(row)
    assert "birch" == await tab.text(f'{row} [data-cell="replica"]')
    await check_all(tab, source)
    await tab.page.get_by_role("link", name=f"completion {name}").click()
    before = len(await tab.text("#answer"))

    async def has_grown() -> bool:
        return len(await tab.text("#answer")) > before + 20

    await until(has_grown)
    assert "birch" in await tab.text("dl.facts")
    await tab.page.get_by_role("button", name="cancel").click()
    await tab.page.wait_for_url(tab.url + "/")
    assert State.CLIENT_GONE is (await birch.kept.one()).state
    await tab.go("/page/health")
    assert 2 == await tab.page.locator('td[data-label="Replica"]').count()
    await check_all(tab, source)
    assert [] == tab.wrong
    await context.close()


async def check_all(tab: Tab, axe: str) -> None:
    """Nothing that axe knows is wrong, and nothing scrolls sideways."""
    await tab.page.evaluate(axe)
    found = await tab.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    told = [
        (each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found["violations"]
    ]
    assert [] == told, tab.page.url
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert 0 >= await tab.page.evaluate(wide), tab.page.url
