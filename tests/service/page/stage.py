"""A service with something to look at, and a real browser to look with.

Two hundred stored completions of three callers, some of them failed; streams that run while one looks;
one whose backend was tried twice, fell silent and lost its reader for a while.
"""

import asyncio
import random
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from db.store import Store
from service.settings.access import ApiKeyConfig
from service.settings.config import OpenAIAgentConfig, ScriptedAgentConfig
from statemachine import Choice, Failure, SessionRecord, State
from tests.db.records import assistant, make_record, user
from tests.service.conftest import Service
from tests.service.page.conftest import hashed
from tests.service.stage.backend import Exchange

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = {"width": 1280, "height": 820}, {"width": 390, "height": 844}
CALLERS = ("open-webui", "support-bot", "research")
KEYS = tuple(
    ApiKeyConfig(name, hashed(f"sk-vb-{name}-0123456789"), requests_per_minute=rate)
    for name, rate in zip(CALLERS, (600, 120, None), strict=True)
)
_MODELS = ("llama-3.3-70b", "qwen3-coder", "small")
_TALK = (
    ("Which of our invoices are overdue by more than 30 days?", "Three are: 4411, 4423 and 4440."),
    (
        "Write a haiku about a lighthouse.",
        "Salt wind and slow light; / the ships say nothing at all / and find their way home.",
    ),
    ("Translate 'steady as she goes' into German.", "Sinngemäß: „Kurs halten“."),
    (
        "Why does my query sort in memory?",
        "Its order isn't that of the index; put the sort column last in it.",
    ),
)
_FAILURES = (
    Failure("first_token_timeout", "The model's backend sent no token within 60 s."),
    Failure("upstream_incomplete", "The connection to the model's backend broke."),
    Failure("upstream_error", "Rate limit reached.", upstream_code="rate_limit_exceeded"),
)
_LONG = (
    "A lighthouse does one thing. It says where the rocks are, at the same pace, to whoever looks, and "
    "keeps no list of who looked. The keeper trims the lamp at dusk and reads the glass at dawn. "
) * 12


def agents(backend_url: str) -> tuple[Any, ...]:
    """Those of the stage: one that answers well, one whose backend does what it is told."""
    local = ScriptedAgentConfig(
        name="local", kind="scripted", models=_MODELS, reply=_LONG * 8, tokens_per_second=21.0
    )
    remote = OpenAIAgentConfig(
        name="remote",
        kind="openai",
        base_url=backend_url,
        api_key_env=None,
        models=("gpt-*",),
        retries=1,
    )
    return local, remote


async def seed(store: Store, count: int = 200) -> list[SessionRecord]:
    """Store what was asked in the last hours; the newest is last."""
    chance, now = random.Random(7), time.time()
    records = []
    for number in range(count):
        at = now - (count - number) * 97.0 - chance.random() * 50
        question, answer = chance.choice(_TALK)
        failure = _FAILURES[number % 3] if chance.random() < 0.06 else None
        records.append(_record(chance, number, at, (question, answer), failure))
    talk = [user("Plan a weekend in Lisbon."), assistant("Gladly. Sea or city?")]
    for turn, answer in (("Sea.", "Then Cascais."), ("Sea.", "Then Costa da Caparica, by ferry.")):
        fields = {"created_at": now - 400 + len(records), "owner": "open-webui"}
        records.append(make_record(*talk, user(turn), answer=answer, request=fields))
    await store.save(records)
    return records


def _record(
    chance: random.Random, number: int, at: float, talk: tuple[str, str], failure: Failure | None
) -> SessionRecord:
    question, answer = talk
    tokens = chance.randint(20, 900)
    ttft, seconds = 80 + chance.random() * 900, tokens / (18 + chance.random() * 30)
    model = chance.choice(_MODELS)
    request = {
        "completion_id": f"chatcmpl-{chance.getrandbits(96):024x}",
        "created_at": at,
        "owner": chance.choice(CALLERS),
        "model": model,
        "trace_id": f"{chance.getrandbits(128):032x}",
        "request_id": f"req_{chance.getrandbits(96):024x}",
        "conversation_key": f"chat-{number % 60}",
    }
    said = answer if failure is None else answer[: len(answer) // 2]
    return make_record(
        user(question),
        request=request,
        choices=(Choice(0, assistant(said), None if failure else "stop"),),
        agent="local",
        state=State.FAILED if failure else State.COMPLETED,
        failure=failure,
        whole=failure is None,
        token_count=tokens,
        chunk_count=tokens + 2,
        ttft_ms=ttft,
        duration_ms=ttft + seconds * 1000,
        finished_at=at + ttft / 1000 + seconds,
        upstream_id=f"up-{number}",
        upstream_model=model,
    )


class Trouble:
    """A backend's script: it fails once, then answers with a pause in the middle."""

    def __init__(self, pause_seconds: float = 3.2) -> None:
        self._pause_seconds = pause_seconds
        self._asked = 0

    async def __call__(self, exchange: Exchange) -> None:
        self._asked += 1
        if self._asked == 1:
            await asyncio.sleep(0.4)
            await exchange.json(503, {"error": {"message": "overloaded"}})
            return
        await exchange.start()
        await asyncio.sleep(0.6)
        for number, word in enumerate(_LONG.split()[:60]):
            await exchange.words(f"{word} ")
            await asyncio.sleep(self._pause_seconds if number == 25 else 0.05)
        await exchange.finish()


async def ask(
    service: Service, caller: str, *, headers: dict[str, str] | None = None, **fields: Any
) -> aiohttp.ClientResponse:
    """A stream of this caller's, once its response has begun."""
    question = [{"role": "user", "content": "Tell me about lighthouses."}]
    body = {"model": "llama-3.3-70b", "stream": True, "messages": question, **fields}
    given = {"Authorization": f"Bearer sk-vb-{caller}-0123456789", **(headers or {})}
    response = await service.http.post(
        f"{service.url}/v1/chat/completions", json=body, headers=given
    )
    assert 200 == response.status
    service.held.append(response)
    return response


async def live_through_trouble(service: Service) -> str:
    """Have one answer live through all that the picture of a life can show; its id."""
    stream = await ask(service, "research", headers={"X-Client-Gone": "wait"}, model="gpt-x")
    name = stream.headers["x-completion-id"]
    await asyncio.sleep(0.8)
    stream.close()
    await asyncio.sleep(1.6)
    headers = {"Authorization": "Bearer sk-vb-research-0123456789"}
    url = f"{service.url}/v1/chat/completions/{name}?stream=true"
    async with service.http.get(url, headers=headers) as again:
        await again.read()
    return name


def installed() -> str | None:
    """Where a browser is, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@asynccontextmanager
async def browser_of(path: str) -> AsyncIterator[Any]:
    """A running browser. Raises ImportError without Playwright."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        # Chromium's sandbox doesn't work for root, which containers often are.
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()
