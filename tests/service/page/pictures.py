"""Takes the pictures of the page that the documents show.

    python -m tests.service.page.pictures           writes docs/pictures/*.png

The service is the stage's, in this process; its store is in memory. `make pictures` installs what it
takes besides a Chromium.
"""

import asyncio
import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from db.fleet import Run
from db.fleet.redis import RedisEngine
from db.fleet.redis_link import RedisLink
from db.memory.store import MemoryStore
from service.app import CONFIG, build_app
from service.edge.connections import Runner
from service.settings.access import AuthConfig
from service.settings.admin import AdminConfig
from service.settings.config import Config, JournalConfig, ScriptedAgentConfig, ServerConfig
from service.settings.fleet import FleetConfig
from tests.redis_servers import redis_server
from tests.service.conftest import Service
from tests.service.page import stage
from tests.service.page.conftest import ADMIN, ADMIN_KEYS
from tests.service.stage.backend import Backend

PICTURES = Path(__file__).parents[3] / "docs" / "pictures"
_COLOURS = 256


async def serve(directory: str, *agents: Any, **fields: Any) -> Service:
    """A service of the stage, serving."""
    journal = JournalConfig(directory=f"{directory}/journal")
    server = ServerConfig(drain_timeout_seconds=0.0)
    config = Config(server=server, journal=journal, agents=agents, **fields)
    store = MemoryStore()
    app = build_app(config, environ={}, store=store)
    runner = Runner(app, 75.0, 1.0, lambda: app[CONFIG].value.sse.send_timeout_seconds)
    return await Service(app, runner, store).start()


async def shoot(page: Any, name: str, *, is_whole: bool = False) -> None:
    """Write what is seen, in few colours: a page of text has no more."""
    from PIL import Image

    taken = Image.open(BytesIO(await page.screenshot(full_page=is_whole)))
    PICTURES.mkdir(exist_ok=True)
    path = PICTURES / f"{name}.png"
    taken.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(PICTURES.parents[1])}: {path.stat().st_size // 1024} KB")


async def tab(browser: Any, service: Service, scheme: str, viewport: Any, scale: float = 1) -> Any:
    """A page of the browser, signed in where that is asked for."""
    context = await browser.new_context(
        color_scheme=scheme, viewport=viewport, device_scale_factor=scale
    )
    page = await context.new_page()
    await page.goto(service.url)
    if "sign-in" in page.url:
        await page.get_by_label("Admin key").fill(ADMIN)
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url(f"{service.url}/")
    return page


async def take_busy(browser: Any, directory: str) -> None:
    """A service in the middle of its day."""
    backend = await Backend().start()
    backend.script = stage.Trouble()
    service = await serve(
        directory,
        *stage.agents(backend.base_url),
        auth=AuthConfig(stage.KEYS),
        admin=AdminConfig(ADMIN_KEYS),
    )
    records = await stage.seed(service.store)
    lived = await stage.live_through_trouble(service)
    for number in range(7):
        model = ("llama-3.3-70b", "qwen3-coder", "small")[number % 3]
        await stage.ask(service, stage.CALLERS[number % 3], model=model)
        await asyncio.sleep(0.7)
    row = await service.store.find(records[-1].completion_id)
    assert row is not None
    running = service.held[-1].headers["x-completion-id"]
    screens = {
        "now": "/",
        "completions": "/page/completions",
        "completion": f"/page/completions/{lived}",
        "running": f"/page/completions/{running}",
        "conversation": f"/page/conversations/{row.conversation_id}",
        "health": "/page/health",
        "callers": "/page/callers",
    }
    for scheme, suffix, viewport in (
        ("light", "", stage.DESKTOP),
        ("dark", "-dark", stage.DESKTOP),
        ("light", "-phone", stage.PHONE),
    ):
        page = await tab(browser, service, scheme, viewport)
        for name, path in screens.items():
            await page.goto(service.url + path)
            await page.wait_for_timeout(1500)
            await shoot(page, name + suffix)
        await page.context.close()
    await service.stop()
    await backend.stop()


async def take_fleet(browser: Any, directory: str) -> None:
    """Three replicas of a fleet, seen from one of them; a fourth died a moment ago."""
    with redis_server(Path(directory) / "redis") as redis:
        agents = stage.agents("http://127.0.0.1:9/v1")
        services = [
            await serve(
                f"{directory}/{name}",
                *agents,
                fleet=FleetConfig(redis.url, name),
                auth=AuthConfig(stage.KEYS),
                admin=AdminConfig(ADMIN_KEYS),
            )
            for name in ("alder", "birch", "cedar")
        ]
        await _leave_something(redis.url)
        here, running = services[0], ""
        for number in range(8):
            service = services[number % 3]
            caller = stage.CALLERS[number % 3]
            running = (await stage.ask(service, caller)).headers["x-completion-id"]
            await asyncio.sleep(0.4)
        page = await tab(browser, here, "light", stage.DESKTOP)
        await _read_elsewhere(here, running, stage.CALLERS[1])
        for name, path in (("fleet-now", "/"), ("fleet", "/page/health")):
            await page.goto(here.url + path)
            await page.wait_for_timeout(1500)
            await shoot(page, name)
        await page.context.close()
        for service in services:
            await service.stop()


async def _leave_something(url: str) -> None:
    """What a replica leaves that died a moment ago."""
    engine = RedisEngine(RedisLink(url), "f17e" * 4)
    await engine.join("dogwood", 0.1)
    await engine.append([], [Run("chatcmpl-left", "research", "dogwood", engine.token)])
    await engine.close()


async def _read_elsewhere(service: Service, completion_id: str, caller: str) -> None:
    url = f"{service.url}/v1/chat/completions/{completion_id}?stream=true"
    headers = {"Authorization": f"Bearer sk-vb-{caller}-0123456789"}
    response = await service.http.get(url, headers=headers)
    assert 200 == response.status
    service.held.append(response)


async def take_first_run(browser: Any, directory: str) -> None:
    """The first minute: nothing is stored, and somebody asks."""
    demo = ScriptedAgentConfig(name="demo", kind="scripted")
    service = await serve(directory, demo)
    page = await tab(browser, service, "light", {"width": 1280, "height": 560})
    await page.click("#ask button")
    await page.wait_for_timeout(1600)
    await shoot(page, "first-run")
    await page.context.close()
    await service.stop()


async def main() -> int:
    """Take all of them. Exit status 2 without a browser."""
    path = stage.installed()
    if path is None:
        print("No Chromium is here: apt-get install chromium", file=sys.stderr)
        return 2
    async with stage.browser_of(path) as browser:
        with TemporaryDirectory(prefix="verbatim-pictures-") as directory:
            await take_first_run(browser, f"{directory}/first")
            await take_busy(browser, f"{directory}/busy")
            await take_fleet(browser, f"{directory}/fleet")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
