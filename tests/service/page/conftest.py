"""A visitor of the page, as a browser would be, and services to visit."""

import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any

import aiohttp
import pytest

from service.settings.access import ApiKeyConfig, AuthConfig
from service.settings.admin import AdminConfig, AdminKeyConfig
from service.settings.config import ScriptedAgentConfig
from tests.service.conftest import Service, ServiceMaker

ADMIN, CALLER = "sk-vb-admin-0123456789abcdef", "sk-vb-caller-0123456789abcdef"


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


ADMIN_KEYS = (AdminKeyConfig("ops", hashed(ADMIN)),)
CALLER_KEYS = (ApiKeyConfig("chat", hashed(CALLER), requests_per_minute=2),)
FAST = ScriptedAgentConfig(name="demo", kind="scripted", reply="Hi.")
SLOW = ScriptedAgentConfig(
    name="slow", kind="scripted", reply="word " * 150, tokens_per_second=50.0
)


class Visitor:
    """A browser without script: it keeps cookies, and knows a page's form token."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.form_token = ""
        self.http = aiohttp.ClientSession(
            cookie_jar=aiohttp.CookieJar(unsafe=True),  # of a bare address, too
            timeout=aiohttp.ClientTimeout(total=20),
        )

    async def get(self, path: str, **headers: str) -> "Seen":
        """What a page shows; redirects are not followed."""
        async with self.http.get(
            self.url + path, headers=named(headers), allow_redirects=False
        ) as response:
            seen = Seen(response.status, response.headers, await response.text())
        if found := re.search(r'name="form_token" value="([0-9a-f]+)"', seen.text):
            self.form_token = found[1]
        return seen

    async def post(self, path: str, headers: dict[str, str] | None = None, **form: str) -> "Seen":
        """Send a form with the last page's token, as that page's browser would."""
        headers = {"Origin": self.url} if headers is None else headers
        data = {"form_token": self.form_token, **form}
        async with self.http.post(
            self.url + path, data=data, headers=headers, allow_redirects=False
        ) as response:
            return Seen(response.status, response.headers, await response.text())

    async def sign_in(self, key: str = ADMIN) -> "Seen":
        """Sign in by the form."""
        await self.get("/page/sign-in")
        return await self.post("/page/sign-in", key=key)

    async def __aenter__(self) -> "Visitor":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.http.close()


class Seen:
    """A response as it was seen."""

    def __init__(self, status: int, headers: Any, text: str) -> None:
        self.status = status
        self.headers = headers
        self.text = text

    @property
    def words(self) -> str:
        """The text without tags, white space made one."""
        return " ".join(re.sub(r"<[^>]*>", " ", self.text).split())


def named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def keyed(**fields: Any) -> dict[str, Any]:
    """The configuration of a service with keys for callers and for operators."""
    return {"auth": AuthConfig(CALLER_KEYS), "admin": AdminConfig(ADMIN_KEYS, **fields)}


VisitorMaker = Callable[[Service], Awaitable[Visitor]]


@pytest.fixture
async def visit() -> AsyncIterator[VisitorMaker]:
    """Makes visitors of services."""
    visitors: list[Visitor] = []

    async def make(service: Service) -> Visitor:
        visitors.append(Visitor(service.url))
        return visitors[-1]

    yield make
    for visitor in visitors:
        await visitor.http.close()


@pytest.fixture
async def open_service(make_service: ServiceMaker) -> Service:
    """One without any keys, on this machine, with an agent that takes its time."""
    return await make_service(FAST, SLOW)
