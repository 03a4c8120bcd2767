"""How often a stream is pinged: as configured, as the caller's key says, or oftener on request."""

import asyncio
import hashlib
from typing import Any

import pytest

from service.settings.access import ApiKeyConfig, AuthConfig
from service.settings.config import ScriptedAgentConfig, SseConfig
from tests.service.conftest import QUESTION, Service, ServiceMaker

KEYS = {"hasty": 4.0, "patient": 40.0, "usual": None}


def key_of(name: str) -> str:
    return f"sk-vb-{name:-<20}"


@pytest.fixture
async def keyed(make_service: ServiceMaker) -> Service:
    """A service that pings after 15 s, with three callers."""
    entries = [
        ApiKeyConfig(
            name, hashlib.sha256(key_of(name).encode()).hexdigest(), keep_alive_interval_seconds=own
        )
        for name, own in KEYS.items()
    ]
    return await make_service(
        ScriptedAgentConfig(name="demo", kind="scripted", first_token_delay_seconds=5.0),
        sse=SseConfig(keep_alive_interval_seconds=15.0),
        auth=AuthConfig(tuple(entries)),
    )


def ask(service: Service, headers: dict[str, str], *, stream: bool = True) -> Any:
    body = {"model": "demo", "stream": stream, "messages": QUESTION}
    return service.http.post(f"{service.url}/v1/chat/completions", json=body, headers=headers)


async def interval_of(service: Service, headers: dict[str, str], *, stream: bool = True) -> Any:
    """The interval of a stream that is asked for like this."""
    asking = asyncio.ensure_future(ask(service, headers, stream=stream))
    async with asyncio.timeout(5):
        while not service.relays:
            await asyncio.sleep(0.01)
        (relay,) = service.relays
        asking.cancel()
        while service.relays:
            await asyncio.sleep(0.01)
    return relay.session.policy.keep_alive_interval_seconds


@pytest.mark.parametrize(
    ("name", "asked", "interval"),
    [
        ("usual", None, 15.0),
        ("hasty", None, 4.0),
        ("patient", None, 40.0),
        ("usual", "5", 5.0),
        ("usual", " 2.5 ", 2.5),
        ("usual", "0.001", 1.0),
        ("usual", "0", 1.0),
        ("usual", "3600", 15.0),
        ("hasty", "5", 4.0),
        ("patient", "30", 30.0),
    ],
)
async def test_the_shortest_interval_that_was_asked_for_holds(
    keyed: Service, name: str, asked: str | None, interval: float
) -> None:
    """A key's own replaces the configured one, up or down; a header asks for a shorter one, of a
    second at least."""
    headers = {"Authorization": f"Bearer {key_of(name)}"}
    if asked is not None:
        headers["X-Keep-Alive-Interval"] = asked
    assert interval == await interval_of(keyed, headers)


async def test_a_header_works_without_keys(make_service: ServiceMaker) -> None:
    """A proxy may set it for its own route; a plain request has no pings to ask for."""
    service = await make_service(
        ScriptedAgentConfig(name="demo", kind="scripted", first_token_delay_seconds=5.0)
    )
    headers = {"X-Keep-Alive-Interval": "5"}
    assert 5.0 == await interval_of(service, headers)
    assert await interval_of(service, headers, stream=False) is None


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf", "1e3", "5s", "5.", "5, 5"])
@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_no_number_of_seconds_is_refused(
    make_service: ServiceMaker, text: str, stream: bool
) -> None:
    """With the header's name, and before anybody is asked."""
    service = await make_service()
    async with ask(service, {"X-Keep-Alive-Interval": text}, stream=stream) as response:
        error = (await response.json())["error"]
    assert (400, "invalid_request") == (response.status, error["code"])
    assert "X-Keep-Alive-Interval" == error["param"]
    assert [] == service.kept.records
