"""Pages of other sites: refused while callers need no key, whatever they ask for."""

import json

import pytest

from service.settings.access import AuthConfig
from service.settings.config import ServerConfig
from tests.service.callers.test_auth import ANNE, api_key
from tests.service.conftest import QUESTION, Service, ServiceMaker
from tests.service.edge.test_connections import connect

PAGE = "https://chat.example"
OWN_NAMES = [
    "host.docker.internal:8000",
    "Host.Containers.Internal",
    "localhost",
    "localhost:8000",
    "LocalHost:8000",
    "localhost.",
    "localhost.:8000",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.1.2.3:8000",
    "[::1]",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]:80",
    "[::ffff:127.0.0.1]",
    "localhost:",
]
OTHER_NAMES = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "evil-localhost",
    "sub.localhost",
    "127.0.0.1.nip.io",
    "127.0.0.1@evil.example",
    "localhost@evil.example",
    "evil.example:80@localhost",
    "0.0.0.0:8000",
    "[::]",
    "10.0.0.1",
    "[fe80::1]",
    "::1",
    "localhost..",
    "localhost:x",
    "localhost:80:80",
    "xn--lcalhost-9za",
    "",
]


async def asked(
    service: Service, headers: str, line: str = "GET /v1/models", version: str = "1.1"
) -> tuple[int, str | None]:
    """The status, and the error's code if there is one."""
    async with connect(service) as client:
        client.send(f"{line} HTTP/{version}\r\n{headers}\r\n")
        status, answered, body = await client.answer()
    assert "access-control-allow-origin" not in answered or "Origin" in headers
    return status, json.loads(body)["error"]["code"] if status >= 400 else None


@pytest.mark.parametrize("name", OWN_NAMES)
async def test_this_machines_own_names_pass(make_service: ServiceMaker, name: str) -> None:
    """Every spelling of loopback is the service's own name, on whatever port."""
    service = await make_service()
    assert (200, None) == await asked(service, f"Host: {name}\r\n")


@pytest.mark.parametrize("name", OTHER_NAMES)
async def test_any_other_name_is_refused(make_service: ServiceMaker, name: str) -> None:
    """A name that was made to lead here is refused, however near it comes to one of ours."""
    service = await make_service()
    assert (403, "host_not_allowed") == await asked(service, f"Host: {name}\r\n")


@pytest.mark.parametrize(
    "line",
    [
        "GET /v1/chat/completions",
        "POST /v1/chat/completions",
        "POST /v1/chat/completions/x/cancel",
        "POST /v1/chat/completions/x",
        "DELETE /v1/chat/completions/x",
        "GET /v1/conversations",
        "HEAD /v1/models",
        "OPTIONS /v1/models",
        "PUT /nowhere",
    ],
)
@pytest.mark.parametrize(
    "headers", ["Host: evil.example\r\n", "Host: localhost\r\nOrigin: https://evil.example\r\n"]
)
async def test_nothing_is_done_and_nothing_is_shown(
    make_service: ServiceMaker, line: str, headers: str
) -> None:
    """Every method and every path refuses alike."""
    service = await make_service()
    async with connect(service) as client:
        client.send(f"{line} HTTP/1.1\r\n{headers}Content-Length: 0\r\n\r\n")
        head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 ")


async def test_names_may_be_configured(make_service: ServiceMaker) -> None:
    """Names that are listed pass, on any port and in any spelling; others don't."""
    names = ("Chat.Example", "10.0.0.1", "[fe80::1]")
    service = await make_service(server=ServerConfig(allowed_hosts=names))
    for name in (
        "chat.example:8000",
        "CHAT.example.",
        "10.0.0.1:8000",
        "[FE80::1]",
    ):
        assert (200, None) == await asked(service, f"Host: {name}\r\n")
    for name in ("example", "x.chat.example", "x.host.docker.internal", "10.0.0.2"):
        assert (403, "host_not_allowed") == await asked(service, f"Host: {name}\r\n")


async def test_a_star_allows_every_name(make_service: ServiceMaker) -> None:
    """`*` is for those who know that no browser is near; pages of other origins stay refused."""
    service = await make_service(server=ServerConfig(allowed_hosts=("*",)))
    assert (200, None) == await asked(service, "Host: evil.example\r\n")
    foreign = f"Host: evil.example\r\nOrigin: {PAGE}\r\n"
    assert (403, "origin_not_allowed") == await asked(service, foreign)


async def test_no_name_is_no_browsers(make_service: ServiceMaker) -> None:
    """HTTP/1.0 may leave it out, which no browser does."""
    service = await make_service()
    assert (200, None) == await asked(service, "", version="1.0")


async def test_an_absolute_address_names_too(make_service: ServiceMaker) -> None:
    """Where the request's line names a host, that counts, and `Host` as well."""
    service = await make_service()
    own, other = "GET http://localhost:8000/v1/models", "GET http://evil.example/v1/models"
    assert (200, None) == await asked(service, "Host: localhost\r\n", own)
    assert (403, "host_not_allowed") == await asked(service, "Host: localhost\r\n", other)
    assert (403, "host_not_allowed") == await asked(service, "Host: evil.example\r\n", own)


@pytest.mark.parametrize("header", ["X-Forwarded-Host", "Forwarded", "X-Original-Host"])
async def test_what_a_proxy_would_say_counts_for_nothing(
    make_service: ServiceMaker, header: str
) -> None:
    """Whoever can send a `Host` can send these."""
    service = await make_service()
    other = f"Host: evil.example\r\n{header}: localhost\r\n"
    assert (403, "host_not_allowed") == await asked(service, other)


@pytest.mark.parametrize(
    ("headers", "is_allowed"),
    [
        ("", True),
        ("Origin: http://localhost:8000\r\n", True),
        ("Origin: http://LOCALHOST:8000\r\n", True),
        ("Origin: http://localhost\r\n", False),
        ("Origin: http://localhost:3000\r\n", False),
        ("Origin: http://127.0.0.1:8000\r\n", False),
        ("Origin: null\r\n", False),
        ("Origin: \r\n", False),
        ("Origin: https://evil.example\r\n", False),
        ("Origin: file://localhost:8000\r\n", False),
        ("Origin: chrome-extension://abc\r\n", False),
        ("Sec-Fetch-Site: none\r\n", True),
        ("Sec-Fetch-Site: same-origin\r\n", True),
        ("Sec-Fetch-Site: same-site\r\n", False),
        ("Sec-Fetch-Site: cross-site\r\n", False),
        ("Sec-Fetch-Site: Cross-Site\r\n", False),
        ("Origin: http://localhost:8000\r\nSec-Fetch-Site: same-origin\r\n", True),
        (f"Origin: {PAGE}\r\nSec-Fetch-Site: cross-site\r\n", False),
        ("Referer: https://evil.example/\r\n", True),
    ],
)
async def test_only_our_own_origin_passes(
    make_service: ServiceMaker, headers: str, is_allowed: bool
) -> None:
    """Scheme, host and port make an origin; another port is another origin. What no browser sends
    passes."""
    service = await make_service()
    expected = (200, None) if is_allowed else (403, "origin_not_allowed")
    assert expected == await asked(service, f"Host: localhost:8000\r\n{headers}")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_body_that_any_page_can_send_is_refused_for_its_origin(
    make_service: ServiceMaker, kind: str
) -> None:
    """A page can post these without asking first, and so can `curl -d`, which has no origin."""
    service = await make_service()
    body = json.dumps({"model": "m", "messages": QUESTION})
    line = "POST /v1/chat/completions"
    head = f"Host: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    foreign = f"{head}Origin: {PAGE}\r\n\r\n{body}"
    async with connect(service) as client:
        client.send(f"{line} HTTP/1.1\r\n{foreign}")
        assert 403 == (await client.answer())[0]
    assert [] == service.kept.records
    async with connect(service) as client:
        client.send(f"{line} HTTP/1.1\r\n{head}\r\n{body}")
        assert 200 == (await client.answer())[0]


async def test_listed_origins_pass(make_service: ServiceMaker) -> None:
    """A page that may call may do it however its browser marks the request."""
    service = await make_service(server=ServerConfig(cors_origins=(PAGE,)))
    marked = "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n"
    assert (200, None) == await asked(service, f"{marked}Origin: {PAGE}\r\n")
    assert (403, "origin_not_allowed") == await asked(service, marked)
    assert (403, "origin_not_allowed") == await asked(service, f"{marked}Origin: {PAGE}:1\r\n")


async def test_a_star_allows_every_origin(make_service: ServiceMaker) -> None:
    """`*` means any page, by whatever name it comes; the name of the service is still its own."""
    service = await make_service(server=ServerConfig(cors_origins=("*",)))
    marked = "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n"
    for headers in (marked, f"{marked}Origin: {PAGE}\r\n", "Host: localhost\r\nOrigin: null\r\n"):
        assert (200, None) == await asked(service, headers)
    assert (403, "host_not_allowed") == await asked(service, "Host: evil.example\r\n")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json"])
async def test_probes_are_open_to_all(make_service: ServiceMaker, path: str) -> None:
    """Orchestrators call by whatever address they have, and learn nothing about anybody."""
    service = await make_service()
    foreign = f"Host: 10.1.2.3:8000\r\nOrigin: {PAGE}\r\nSec-Fetch-Site: cross-site\r\n"
    assert 200 == (await asked(service, foreign, f"GET {path}"))[0]


async def test_with_keys_the_key_decides(make_service: ServiceMaker) -> None:
    """No page of another site has a key, and those who have one may come by any name."""
    service = await make_service(auth=AuthConfig((api_key("anne", ANNE),)))
    foreign = f"Host: evil.example\r\nOrigin: {PAGE}\r\nSec-Fetch-Site: cross-site\r\n"
    assert (401, "invalid_api_key") == await asked(service, foreign)
    keyed = f"{foreign}Authorization: Bearer {ANNE}\r\n"
    assert (200, None) == await asked(service, keyed)
