"""Who may look, and which forms count."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.settings.access import AuthConfig
from service.settings.admin import AdminConfig
from service.settings.config import ServerConfig
from tests.service.conftest import Service, ServiceMaker
from tests.service.page.conftest import (
    ADMIN,
    ADMIN_KEYS,
    CALLER,
    CALLER_KEYS,
    Visitor,
    VisitorMaker,
    keyed,
)
from tests.service.settings.test_reload import reload

PATHS = (
    "/",
    "/page/completions",
    "/page/completions/a",
    "/page/conversations/a",
    "/page/health",
    "/page/callers",
    "/page/find",
    "/page/failures",
    "/page/letters/a",
)


@pytest.fixture
async def visitor(make_service: ServiceMaker, visit: VisitorMaker) -> Visitor:
    """Of a service with keys; not signed in."""
    return await visit(await make_service(**keyed()))


async def test_where_nobody_may_look_there_is_no_page(
    make_service: ServiceMaker, visit: VisitorMaker
) -> None:
    """Callers have keys and operators none: nothing is there, and nothing can be signed in to."""
    visitor = await visit(await make_service(auth=AuthConfig(CALLER_KEYS)))
    for path in (*PATHS, "/page/sign-in", "/page/static/page.css", "/page/now"):
        seen = await visitor.get(path)
        assert (404, "application/json") == (seen.status, seen.headers["Content-Type"])


async def test_what_came_through_a_proxy_is_not_this_machine(
    open_service: Service, visit: VisitorMaker
) -> None:
    """Without keys nobody else may look."""
    visitor = await visit(open_service)
    assert 404 == (await visitor.get("/", X_Forwarded_For="203.0.113.7")).status
    assert 404 == (await visitor.get("/page/sign-in", X_Forwarded_For="203.0.113.7")).status


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
    ],
)
async def test_a_page_of_another_site_sees_nothing(
    open_service: Service, visit: VisitorMaker, headers: dict[str, str]
) -> None:
    """By DNS rebinding or from its own origin: 403, on the page as on the API."""
    visitor = await visit(open_service)
    for path in ("/", "/page/now", "/page/completions", "/v1/models"):
        assert 403 == (await visitor.get(path, **headers)).status


async def test_a_link_in_another_site_leads_here(
    open_service: Service, visit: VisitorMaker
) -> None:
    """Into a tab of its own, which that site's page can't look into; not into a frame, not by a script, not
    to a name that isn't this machine's, and not to the API."""
    visitor = await visit(open_service)
    link = {
        "Sec_Fetch_Site": "cross-site",
        "Sec_Fetch_Mode": "navigate",
        "Sec_Fetch_Dest": "document",
    }
    assert 200 == (await visitor.get("/", **link)).status
    for path, changed in (
        ("/", {"Sec_Fetch_Dest": "iframe"}),
        ("/", {"Sec_Fetch_Mode": "no-cors"}),
        ("/", {"Host": "evil.example"}),
        ("/v1/models", {}),
    ):
        assert 403 == (await visitor.get(path, **{**link, **changed})).status


async def test_every_screen_wants_a_sign_in(visitor: Visitor) -> None:
    """A browser is led to the form; its events are refused."""
    for path in PATHS:
        seen = await visitor.get(path)
        assert (303, "/page/sign-in") == (seen.status, seen.headers["Location"])
    assert 401 == (await visitor.get("/page/now", Accept="text/event-stream")).status
    assert 401 == (await visitor.post("/page/completions/a/cancel")).status


@pytest.mark.parametrize("key", ["", "wrong-key-0123456789", CALLER])
async def test_no_other_key_signs_in(visitor: Visitor, key: str, log_lines: Any) -> None:
    """Not a caller's either; the log says so, without the key."""
    seen = await visitor.sign_in(key)
    assert 403 == seen.status
    assert "Set-Cookie" not in seen.headers
    assert 303 == (await visitor.get("/")).status
    assert "127.0.0.1" == said(log_lines, "sign-in refused")["address"]
    assert not key or key not in str(log_lines)


async def test_a_key_signs_in(visitor: Visitor, log_lines: Any) -> None:
    """The cookie is out of scripts' and other sites' reach; the log says who came."""
    seen = await visitor.sign_in()
    assert (303, "/") == (seen.status, seen.headers["Location"])
    cookie = seen.headers["Set-Cookie"]
    for part in ("verbatim_session=", "HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"):
        assert part in cookie
    assert "Secure" not in cookie
    for path in ("/", "/page/completions", "/page/health", "/page/callers"):
        assert 200 == (await visitor.get(path)).status
    assert "ops" == said(log_lines, "signed in")["admin"]
    assert ADMIN not in str(log_lines)


async def test_behind_https_the_cookie_is_for_https_alone(visitor: Visitor) -> None:
    """As the proxy in front says."""
    await visitor.get("/page/sign-in")
    headers = {"Origin": visitor.url.replace("http", "https"), "X-Forwarded-Proto": "https"}
    seen = await visitor.post("/page/sign-in", headers, key=ADMIN)
    assert 303 == seen.status
    assert "Secure" in seen.headers["Set-Cookie"]


async def test_signing_out_ends_the_session(visitor: Visitor) -> None:
    """Also for whoever has kept the cookie."""
    token = (await visitor.sign_in()).headers["Set-Cookie"].partition(";")[0]
    await visitor.get("/")
    assert 303 == (await visitor.post("/page/sign-out")).status
    assert 303 == (await visitor.get("/", Cookie=token)).status


async def test_a_session_ends_by_itself(make_service: ServiceMaker, visit: VisitorMaker) -> None:
    """After `admin.session_seconds`."""
    visitor = await visit(await make_service(**keyed(session_seconds=1.0)))
    token = (await visitor.sign_in()).headers["Set-Cookie"].partition(";")[0]
    async with asyncio.timeout(10):
        while (await visitor.get("/", Cookie=token)).status != 303:
            await asyncio.sleep(0.1)


async def test_a_key_that_goes_ends_its_sessions(
    make_service: ServiceMaker, visit: VisitorMaker
) -> None:
    """As soon as the configuration is read again, also of one who looks on."""
    service = await make_service(**keyed())
    visitor = await visit(service)
    await visitor.sign_in()
    assert 200 == (await visitor.get("/")).status
    events = await visitor.http.get(visitor.url + "/page/now")
    await reload(service, admin=AdminConfig())
    async with asyncio.timeout(10):
        await events.content.read()
    assert 404 == (await visitor.get("/")).status


async def test_forms_of_other_sites_do_not_count(visitor: Visitor) -> None:
    """By origin, by what the browser says of the site, by the token."""
    await visitor.sign_in()
    await visitor.get("/")
    path, token = "/page/completions/a/cancel", visitor.form_token
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        assert 403 == (await visitor.post(path, headers)).status
    for wrong in ("", "0" * 64, token[:-1]):
        assert 403 == (await visitor.post(path, form_token=wrong)).status
    assert 409 == (await visitor.post(path)).status  # ours; it doesn't run


async def test_a_token_of_one_session_is_none_of_another(visitor: Visitor) -> None:
    """Nor is the one of the form by which one signs in."""
    await visitor.get("/page/sign-in")
    before = visitor.form_token
    await visitor.sign_in()
    assert 403 == (await visitor.post("/page/completions/a/cancel", form_token=before)).status
    await visitor.get("/")
    first = visitor.form_token
    visitor.http.cookie_jar.clear()
    await visitor.sign_in()
    assert 403 == (await visitor.post("/page/completions/a/cancel", form_token=first)).status


async def test_a_body_that_is_no_form_is_refused(open_service: Service) -> None:
    """JSON, which a script could send, and a form of any size."""
    url = f"{open_service.url}/page/completions/a/cancel"
    async with open_service.http.post(url, json={"form_token": "a"}) as response:
        assert 400 == response.status
    async with open_service.http.post(url, data={"form_token": "a" * 100_000}) as response:
        assert 413 == response.status

    async def without_its_length() -> AsyncIterator[bytes]:
        yield b"form_token="
        yield b"a" * 100_000

    form = {"Content-Type": "application/x-www-form-urlencoded"}
    async with open_service.http.post(url, data=without_its_length(), headers=form) as response:
        assert 413 == response.status
    for kind, body in (("utf-8", b"form_token=%ff"), ("utf-8", b"\xff="), ("nonsense", b"a=b")):
        form = {"Content-Type": f"application/x-www-form-urlencoded; charset={kind}"}
        async with open_service.http.post(url, data=body, headers=form) as response:
            assert response.status in (400, 403)


async def test_guessing_is_slowed(visitor: Visitor) -> None:
    """After ten wrong keys a minute from one address the next isn't even looked at."""
    for _ in range(10):
        assert 403 == (await visitor.sign_in("wrong-key-0123456789")).status
    seen = await visitor.sign_in()
    assert 429 == seen.status
    assert int(seen.headers["Retry-After"]) >= 1


async def test_an_admin_key_itself_will_do(visitor: Visitor) -> None:
    """For programs that look: as a bearer, without a session."""
    assert 200 == (await visitor.get("/page/health", Authorization=f"Bearer {ADMIN}")).status
    seen = await visitor.get("/page/health", Authorization=f"Bearer {CALLER}")
    assert 303 == seen.status


async def test_other_machines_need_a_key(make_service: ServiceMaker, visit: VisitorMaker) -> None:
    """On an address that they reach there is nothing without one."""
    server = ServerConfig(host="0.0.0.0")
    nobody = await visit(await make_service(server=server))
    assert 404 == (await nobody.get("/")).status
    someone = await visit(await make_service(server=server, admin=AdminConfig(ADMIN_KEYS)))
    assert 303 == (await someone.get("/")).status


def said(lines: list[dict[str, Any]], event: str) -> dict[str, Any]:
    return next(line for line in lines if line["event"] == event)
