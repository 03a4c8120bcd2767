"""CORS: which browsers' pages may call, and which of our answers they may read."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from service.edge.cors import cors
from service.edge.errors import errors_middleware, invalid_request
from service.telemetry import add_id_headers, telemetry_middleware

PAGE = "https://chat.example"
OTHER = "https://evil.example"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}

Client = TestClient[web.Request, web.Application]
MakeClient = Callable[..., Awaitable[Client]]


@pytest.fixture
def make_client(aiohttp_client: Any) -> MakeClient:
    """A client of a small service, put together as `service.app` does it."""

    async def make(*origins: str) -> Client:
        answer_preflight, mark_origin = cors(origins)
        app = web.Application(
            middlewares=[telemetry_middleware, answer_preflight, errors_middleware]
        )
        app.on_response_prepare.extend((add_id_headers, mark_origin))
        app.add_routes(
            [
                web.get("/plain", plain),
                web.get("/stream", stream),
                web.get("/bug", bug),
                web.post("/refused", refused),
            ]
        )
        client: Client = await aiohttp_client(app)
        return client

    return make


async def plain(_request: web.Request) -> web.Response:
    return web.json_response({})


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"data")
    return response


async def bug(_request: web.Request) -> web.Response:
    raise ZeroDivisionError


async def refused(_request: web.Request) -> web.Response:
    raise invalid_request("No.")


def allowed_headers(response: Any) -> dict[str, str]:
    """The CORS headers of a response."""
    return {
        name.lower(): value
        for name, value in response.headers.items()
        if name.lower().startswith("access-control-")
    }


OURS = ("idempotency-key", "last-event-id", "x-client-gone", "x-keep-alive-interval")
MARKS = {
    "access-control-allow-origin": PAGE,
    "access-control-expose-headers": (
        "x-request-id, x-trace-id, x-completion-id, idempotency-replayed, "
        "retry-after, x-should-retry, "
        "x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
        "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
    ),
}


async def test_cors_is_off_by_default(make_client: MakeClient) -> None:
    """Without listed origins no page may read anything, and preflights are answered as any
    method that doesn't exist."""
    client = await make_client()
    response = await client.get("/plain", headers={"Origin": PAGE})
    assert 200 == response.status
    assert {} == allowed_headers(response)
    assert "Vary" not in response.headers
    preflight = await client.options("/plain", headers=PREFLIGHT)
    assert 405 == preflight.status
    assert {} == allowed_headers(preflight)


async def test_a_listed_page_can_read_the_answer(make_client: MakeClient) -> None:
    """A listed page may read the answer and the headers with the ids, without cookies."""
    client = await make_client("https://first.example", PAGE)
    response = await client.get("/plain", headers={"Origin": PAGE})
    assert 200 == response.status
    assert MARKS == allowed_headers(response)
    assert "Origin" == response.headers["Vary"]
    exposed = MARKS["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "x-trace-id"} <= {name.lower() for name in response.headers}
    assert {"x-request-id", "x-trace-id"} <= set(exposed)


@pytest.mark.parametrize(
    "origin", [OTHER, "null", "http://chat.example", f"{PAGE}:8443", PAGE.upper(), ""]
)
async def test_an_unlisted_page_gets_no_headers(make_client: MakeClient, origin: str) -> None:
    """Scheme, host and port all count; a page that isn't listed gets no headers."""
    client = await make_client(PAGE)
    response = await client.get("/plain", headers={"Origin": origin})
    assert 200 == response.status
    assert {} == allowed_headers(response)
    assert "Origin" == response.headers["Vary"]
    preflight = await client.options("/plain", headers={**PREFLIGHT, "Origin": origin})
    assert 405 == preflight.status
    assert {} == allowed_headers(preflight)


async def test_clients_that_are_no_browsers_are_answered_as_ever(make_client: MakeClient) -> None:
    """Callers that are no browsers are answered as ever; caches are told that browsers differ."""
    client = await make_client(PAGE)
    response = await client.get("/plain")
    assert 200 == response.status
    assert {} == allowed_headers(response)
    assert "Origin" == response.headers["Vary"]


async def test_a_star_allows_every_page_by_its_own_name(make_client: MakeClient) -> None:
    """`*` allows every page, by its own name."""
    client = await make_client("*")
    for origin in (PAGE, OTHER, "null"):
        response = await client.get("/plain", headers={"Origin": origin})
        expected = {**MARKS, "access-control-allow-origin": origin}
        assert expected == allowed_headers(response)
        assert "Origin" == response.headers["Vary"]


async def test_a_preflight_needs_no_key(make_client: MakeClient) -> None:
    """A preflight needs no key, allows the methods we have and the headers it asks for."""
    client = await make_client(PAGE)
    wanted = "authorization,content-type,x-stainless-lang," + ",".join(OURS)
    headers = {**PREFLIGHT, "Access-Control-Request-Headers": wanted}
    response = await client.options("/refused", headers=headers)
    assert 204 == response.status
    assert b"" == await response.read()
    assert allowed_headers(response) == {
        **MARKS,
        "access-control-allow-methods": "GET, POST, DELETE, OPTIONS",
        "access-control-allow-headers": wanted,
        "access-control-max-age": "600",
    }
    assert "Origin" == response.headers["Vary"]


async def test_a_preflight_without_headers_is_allowed_none(make_client: MakeClient) -> None:
    """A preflight that asks for no headers is allowed none by name."""
    client = await make_client(PAGE)
    response = await client.options("/nowhere", headers=PREFLIGHT)
    assert 204 == response.status
    assert "access-control-allow-headers" not in allowed_headers(response)


async def test_options_without_a_method_is_a_request_like_others(make_client: MakeClient) -> None:
    """An OPTIONS request without a wanted method is a request like others, readable by the page."""
    client = await make_client(PAGE)
    response = await client.options("/plain", headers={"Origin": PAGE})
    assert 405 == response.status
    assert MARKS == allowed_headers(response)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("DELETE", "/plain", 405),
        ("POST", "/refused", 400),
        ("GET", "/bug", 500),
        ("GET", "/stream", 200),
    ],
)
async def test_errors_and_streams_can_be_read_by_a_page(
    make_client: MakeClient, method: str, path: str, status: int
) -> None:
    """Errors of every kind and streams carry the headers too, so a page can show what it got."""
    client = await make_client(PAGE)
    response = await client.request(method, path, headers={"Origin": PAGE})
    assert response.status == status
    assert MARKS == allowed_headers(response)
    if status >= 400:
        assert {"error"} == set(await response.json())
