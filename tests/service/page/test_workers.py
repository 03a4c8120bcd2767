"""The page of a service of several workers: one page, whoever answers. Real processes."""

import asyncio
import re
from typing import Any

import aiohttp
import pytest

from tests.service.page.conftest import ADMIN, hashed
from tests.service.process.test_workers import pids
from tests.service.stage.process import Process, config

WORDS = "word " * 200


def settings(database_url: str, **admin: Any) -> dict[str, Any]:
    return {
        **config(database_url, reply=WORDS, tokens_per_second=40),
        "server": {"workers": 2},
        **({"admin": admin} if admin else {}),
    }


class Browser:
    """One that connects anew each time, so that either worker may answer."""

    def __init__(self, process: Process) -> None:
        self.url = f"http://127.0.0.1:{process.port}"
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            cookie_jar=aiohttp.CookieJar(unsafe=True),
        )

    async def get(self, path: str) -> tuple[int, str]:
        async with self.http.get(self.url + path, allow_redirects=False) as response:
            return response.status, await response.text()

    async def post(self, path: str, **form: str) -> int:
        headers = {"Origin": self.url}
        async with self.http.post(
            self.url + path, data=form, headers=headers, allow_redirects=False
        ) as response:
            return response.status


def token_in(page: str) -> str:
    found = re.search(r'name="form_token" value="([0-9a-f]+)"', page)
    assert found
    return found[1]


@pytest.fixture
async def browser(spawn: Any, database_url: str, request: pytest.FixtureRequest) -> Any:
    admin = getattr(request, "param", {})
    process = spawn(settings(database_url, **admin))
    pids(process)
    browser = Browser(process)
    yield browser
    await browser.http.close()


async def ask(browser: Browser, count: int) -> list[aiohttp.ClientResponse]:
    """So many streams, on connections of their own, each begun."""
    url = f"{browser.url}/v1/chat/completions"
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    streams = [await browser.http.post(url, json=body) for _ in range(count)]
    for stream in streams:
        assert 200 == stream.status
        await stream.content.readany()
    return streams


async def test_all_workers_streams_are_shown_and_cancelled(browser: Browser) -> None:
    """Whichever worker answers: Now has all, each has its page and its stream, each can be
    cancelled."""
    streams = await ask(browser, 6)
    names = [stream.headers["x-completion-id"] for stream in streams]
    for _ in range(4):
        _, page = await browser.get("/")
        assert names == [name for name in names if name in page]
    for name in names[:3]:
        for _ in range(3):
            status, page = await browser.get(f"/page/completions/{name}")
            assert 200 == status and "still being said" in page
        async with browser.http.get(f"{browser.url}/page/completions/{name}/stream") as stream:
            assert b"chat.completion.chunk" in await stream.content.readany()
        token = token_in(page)
        assert 303 == await browser.post(f"/page/completions/{name}/cancel", form_token=token)
    async with asyncio.timeout(20):
        while set(names[:3]) & set(re.findall("chatcmpl-[0-9a-f]+", (await browser.get("/"))[1])):
            await asyncio.sleep(0.1)
    for stream in streams:
        stream.close()


async def test_health_has_all_workers(browser: Browser) -> None:
    """Each by its process, with the sum of what waits."""
    status, page = await browser.get("/page/health")
    assert 200 == status
    assert 2 == page.count('data-label="Process"')
    assert "workers answer" not in page
    assert "are the sums" in (await browser.get("/page/callers"))[1]


@pytest.mark.parametrize(
    "browser", [{"api_keys": [{"name": "ops", "sha256": hashed(ADMIN)}]}], indirect=True
)
async def test_a_sign_in_holds_on_all_workers(browser: Browser) -> None:
    """And so does signing out, also of whoever has kept the cookie."""
    _, form = await browser.get("/page/sign-in")
    assert 303 == await browser.post("/page/sign-in", form_token=token_in(form), key=ADMIN)
    (cookie,) = [one for one in browser.http.cookie_jar if one.key == "verbatim_session"]
    for _ in range(8):
        status, page = await browser.get("/")
        assert 200 == status
    assert 303 == await browser.post("/page/sign-out", form_token=token_in(page))
    kept = {"Cookie": f"verbatim_session={cookie.value}"}
    for _ in range(8):
        async with browser.http.get(browser.url, headers=kept, allow_redirects=False) as response:
            assert 303 == response.status
