"""Who may look at the service: which key opens what, and where none is needed."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from service.app import ADMINS
from service.callers.admin import Admins, guard_operators, may_scrape, own_names_alone
from service.callers.auth import Keyring
from service.edge.addresses import Addresses, of_operators
from service.edge.errors import errors_middleware, refusing
from service.settings.access import AuthConfig
from service.settings.admin import AdminConfig, AdminKeyConfig
from tests.service.callers.test_auth import ANNE, KEYS, status_with
from tests.service.conftest import ServiceMaker
from tests.service.settings.test_reload import reload

OPS, OLD_OPS = "sk-vb-admin-ops-0123456789", "sk-vb-admin-old-0123456789"
ADMIN_KEYS = (
    AdminKeyConfig(
        "ops",
        hashlib.sha256(OPS.encode()).hexdigest(),
        hashlib.sha256(OLD_OPS.encode()).hexdigest(),
    ),
)
NO_ADMINS: tuple[AdminKeyConfig, ...] = ()
ABROAD = {"Host": "verbatim.example"}
PROXIED = {"X-Forwarded-For": "203.0.113.7"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Gate:
    """Two paths of operators behind the checks that the service has, and nothing else."""

    def __init__(self) -> None:
        self.addresses = Addresses()
        self.port = 0
        self._http = aiohttp.ClientSession()

    async def start(
        self, admins: tuple[AdminKeyConfig, ...], *, callers: bool, is_local: bool
    ) -> web.AppRunner:
        keyring = Keyring(KEYS if callers else (), is_required=not is_local)
        who = Admins(admins, keyring, is_local=is_local)
        own_names = own_names_alone(["known.example"])
        check_scrape = may_scrape(who, self.addresses, own_names)

        async def page(request: web.Request) -> web.Response:
            return web.Response(text=who.identify(request))

        async def metrics(request: web.Request) -> web.Response:
            check_scrape(request)
            return web.Response()

        app = web.Application(
            middlewares=[errors_middleware, refusing(guard_operators(who, own_names))]
        )
        app.add_routes([web.get("/page", page), web.get("/metrics", metrics)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        return runner

    async def ask(self, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status, and the error's code or the text."""
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self._http.get(url, headers=headers) as response:
            if response.status == 200:
                return 200, await response.text()
            return response.status, (await response.json())["error"]["code"]

    async def close(self) -> None:
        await self._http.close()


GateMaker = Callable[..., Awaitable[Gate]]


@pytest.fixture
async def make_gate() -> AsyncIterator[GateMaker]:
    """Makes gates; they are shut when the test ends."""
    made: list[tuple[Gate, web.AppRunner]] = []

    async def make(
        admins: tuple[AdminKeyConfig, ...] = (), *, callers: bool = False, is_local: bool = True
    ) -> Gate:
        gate = Gate()
        made.append((gate, await gate.start(admins, callers=callers, is_local=is_local)))
        return gate

    yield make
    for gate, runner in made:
        await gate.close()
        await runner.cleanup()


@pytest.mark.parametrize(
    ("path", "is_theirs"),
    [
        ("/", True),
        ("/metrics", True),
        ("/page", True),
        ("/page/completions/chatcmpl-1", True),
        ("/v1/chat/completions", False),
        ("/v1/metrics", False),
        ("/v1//metrics", False),
        ("/healthz", False),
        ("/pages", False),
        ("/metricsx", False),
        ("//metrics", False),
        ("*", False),
        ("", False),
    ],
)
def test_paths_are_operators_or_the_apis(path: str, is_theirs: bool) -> None:
    """The first segment tells whose a path is; what is neither's counts as the API's."""
    assert is_theirs is of_operators(path)


# admins' keys, callers' keys, on loopback; what is sent → what the page says, what /metrics says
MATRIX: list[tuple[tuple[Any, bool, bool], dict[str, str], Any, Any]] = [
    ((NO_ADMINS, False, True), {}, (200, "anonymous"), 200),
    ((NO_ADMINS, False, True), bearer("whatever-key-it-is"), (200, "anonymous"), 200),
    ((NO_ADMINS, False, True), ABROAD, (403, "host_not_allowed"), 403),
    ((NO_ADMINS, False, True), {"Host": "known.example"}, (200, "anonymous"), 200),
    ((NO_ADMINS, False, True), {"Origin": "https://a.example"}, (403, "origin_not_allowed"), 403),
    ((NO_ADMINS, False, True), PROXIED, (401, "invalid_api_key"), 401),
    ((NO_ADMINS, True, True), {}, (401, "invalid_api_key"), 200),
    ((NO_ADMINS, True, True), ABROAD, (401, "invalid_api_key"), 403),
    ((NO_ADMINS, True, True), bearer(ANNE), (403, "admin_key_required"), 200),
    ((NO_ADMINS, True, True), {**bearer(ANNE), **PROXIED}, (403, "admin_key_required"), 403),
    ((ADMIN_KEYS, False, True), {}, (401, "invalid_api_key"), 200),
    ((ADMIN_KEYS, False, True), bearer(OPS), (200, "ops"), 200),
    ((ADMIN_KEYS, True, True), {**bearer(OPS), **ABROAD, **PROXIED}, (200, "ops"), 200),
    ((NO_ADMINS, True, False), {}, (401, "invalid_api_key"), 401),
    ((NO_ADMINS, False, False), {}, (401, "invalid_api_key"), 401),
    ((ADMIN_KEYS, True, False), {}, (401, "invalid_api_key"), 401),
    ((ADMIN_KEYS, True, False), bearer(ANNE), (403, "admin_key_required"), 403),
    ((ADMIN_KEYS, True, False), bearer(OPS), (200, "ops"), 200),
    ((ADMIN_KEYS, True, False), bearer(OLD_OPS), (200, "ops"), 200),
    ((ADMIN_KEYS, True, False), bearer(OPS[:-1]), (401, "invalid_api_key"), 401),
    ((ADMIN_KEYS, True, False), bearer(ADMIN_KEYS[0].sha256), (401, "invalid_api_key"), 401),
]


@pytest.mark.parametrize(("where", "headers", "page", "metrics"), MATRIX)
async def test_what_opens_what(
    make_gate: GateMaker, where: Any, headers: dict[str, str], page: Any, metrics: int
) -> None:
    """Each kind of service, and what it says to whom."""
    admins, callers, is_local = where
    gate = await make_gate(admins, callers=callers, is_local=is_local)
    assert page == await gate.ask("/page", headers)
    assert metrics == (await gate.ask("/metrics", headers))[0]


async def test_metrics_need_no_key_at_an_address_of_their_own(make_gate: GateMaker) -> None:
    """Who reaches operators' own address may scrape, by whatever name; the page takes a key there."""
    gate = await make_gate(ADMIN_KEYS, callers=True, is_local=False)
    assert 401 == (await gate.ask("/metrics", ABROAD))[0]
    gate.addresses.operators_port = gate.port
    assert 200 == (await gate.ask("/metrics", ABROAD))[0]
    assert 401 == (await gate.ask("/page", {}))[0]


async def test_an_admin_key_is_no_callers_key(make_service: ServiceMaker) -> None:
    """Who may look can ask nothing."""
    service = await make_service(auth=AuthConfig(KEYS), admin=AdminConfig(ADMIN_KEYS))
    assert (401, 200) == (
        await status_with(service, bearer(OPS)),
        await status_with(service, bearer(ANNE)),
    )


async def test_admin_keys_change_while_the_service_runs(make_service: ServiceMaker) -> None:
    """A reload brings keys, and takes them away."""
    service = await make_service()
    admins = service.app[ADMINS]
    assert (True, None) == (admins.is_open, admins.name_of_key(OPS))
    assert await reload(service, admin=AdminConfig(ADMIN_KEYS))
    assert (False, "ops") == (admins.is_open, admins.name_of_key(OPS))
