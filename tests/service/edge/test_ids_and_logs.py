"""One trace id through a stream's whole life, and what the log says of it."""

import re
from typing import Any

import pytest

from service.completion_log import completion_fields
from service.settings.config import ServerConfig
from tests.service.conftest import QUESTION, Service, ServiceMaker, agent_for
from tests.service.stage.backend import Backend, Exchange

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


async def test_the_callers_trace_is_in_every_place(
    service: Service, backend: Backend, log_lines: list[dict[str, Any]]
) -> None:
    """The caller's trace goes upstream (as a span of ours), into every log line and the row, and
    comes back."""
    headers = {"traceparent": TRACEPARENT, "X-Request-Id": "mine-1"}
    body = {"model": "m", "messages": QUESTION}
    url = f"{service.url}/v1/chat/completions"
    async with service.http.post(url, json=body, headers=headers) as response:
        assert TRACE_ID == response.headers["x-trace-id"]
        assert "mine-1" == response.headers["x-request-id"]
        completion = await service.store.find((await response.json())["id"])
    assert completion is not None
    assert TRACE_ID == completion.trace_id
    version, trace_id, span_id, _ = backend.exchanges[0].headers["traceparent"].split("-")
    assert ("00", TRACE_ID) == (version, trace_id)
    assert span_id != "00f067aa0ba902b7"
    assert log_lines
    assert {TRACE_ID} == {line["trace_id"] for line in log_lines}
    assert {"mine-1"} == {line["request_id"] for line in log_lines}


async def test_ids_are_made_where_none_came(service: Service) -> None:
    """Every response has both ids, also errors, and no two requests share them."""
    seen = set()
    for path in ("/healthz", "/readyz", "/nowhere", "/v1/chat/completions"):
        async with service.http.get(service.url + path) as response:
            seen.add((response.headers["x-request-id"], response.headers["x-trace-id"]))
    assert 4 == len(seen)
    assert all(re.fullmatch("[0-9a-f]{32}", trace_id) for _, trace_id in seen)


async def test_each_completion_logs_one_line_without_its_text(
    service: Service, backend: Backend, log_lines: list[dict[str, Any]]
) -> None:
    """One line per completion with everything an operator asks, and no word of its text."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("secret ", "answer")
        await exchange.reset()

    backend.script = script
    await service.stream(messages=[{"role": "user", "content": "secret question"}])
    (line,) = (line for line in log_lines if line["event"] == "completion finished")
    record = await service.kept.one()
    assert set(completion_fields(record)) <= set(line)
    assert line["completion_id"] == record.completion_id
    assert (
        "failed",
        "upstream_incomplete",
        "warning",
    ) == (line["state"], line["error"], line["log_level"])
    assert (2, 4, "estimated") == (line["chunk_count"], line["token_count"], line["usage_source"])
    assert 0 < line["ttft_ms"] <= line["duration_ms"]
    assert "secret" not in str(log_lines)
    assert "backend-key" not in str(log_lines)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/chat/completions", b"{", 400, "invalid_request"),
        ("POST", "/v1/chat/completions", b"[]", 400, "invalid_request"),
        ("POST", "/v1/chat/completions", b"x" * 2000, 413, "body_too_large"),
        ("GET", "/v1/chat/nothing", b"", 404, "not_found"),
        ("PUT", "/v1/chat/completions", b"", 405, "method_not_allowed"),
    ],
)
async def test_bad_requests_are_answered_in_openais_shape(
    backend: Backend,
    make_service: ServiceMaker,
    method: str,
    path: str,
    body: bytes,
    status: int,
    code: str,
) -> None:
    """Whatever is wrong with a request, the answer is OpenAI's error body, and nothing is kept. A
    method that the path doesn't take is told which ones it takes."""
    service = await make_service(agent_for(backend), server=ServerConfig(max_body_bytes=1000))
    async with service.http.request(method, service.url + path, data=body) as response:
        assert response.status == status
        assert ("Allow" in response.headers) == (status == 405)
        error = (await response.json())["error"]
    assert {"message", "type", "param", "code"} == set(error)
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert [] == service.kept.records


async def test_a_stream_over_the_services_limit_is_refused(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """Past `max_concurrent_streams` a request is refused with 429 and `Retry-After`; those that
    run are not disturbed."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hi")
        await exchange.client_closed.wait()

    backend.script = script
    service = await make_service(agent_for(backend), server=ServerConfig(max_concurrent_streams=1))
    async with service.post() as response:
        await response.content.readany()
        refused = await service.stream()
        assert (429, "too_many_streams") == (refused.status, refused.error["code"])
        assert "1" == refused.headers["Retry-After"]
        assert 1 == len(service.relays)
