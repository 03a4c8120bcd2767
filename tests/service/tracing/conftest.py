"""A collector that takes OTLP over HTTP, and services that send to it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from attrs import define
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.service.conftest import Service, ServiceMaker

SERVER, CLIENT, INTERNAL = 2, 3, 1
UNSET, ERROR = 0, 2
PATH = "/v1/chat/completions"
PATIENCE_SECONDS = 20.0


@define
class Seen:
    """A span as the collector got it."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    status: int
    attributes: dict[str, Any]
    events: list[str]
    links: list[tuple[str, str]]
    started_ns: int
    ended_ns: int
    resource: dict[str, Any]


class Collector:
    """A collector. It answers as `status` says; while it `hangs`, it doesn't."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.spans: list[Seen] = []
        self.status = 200
        self.hangs = False
        self.posts = 0
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def start(self) -> "Collector":
        app = web.Application(client_max_size=1 << 26)
        app.add_routes([web.post("/v1/traces", self._take)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"
        return self

    async def stop(self) -> None:
        """Be away; its connections are cut."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.posts += 1
        if self.hangs:
            await asyncio.sleep(60)
        if self.status == 200:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self.spans.extend(seen_in(body))
        data = ExportTraceServiceResponse().SerializeToString()
        return web.Response(status=self.status, body=data, content_type="application/x-protobuf")

    async def wait(self, is_there: Callable[[list[Seen]], bool]) -> list[Seen]:
        """All spans, once these are there."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not is_there(self.spans):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError([(span.name, span.attributes) for span in self.spans]) from None
        return self.spans

    async def count(self, count: int) -> list[Seen]:
        """All spans, once there are so many; and no more come with them."""
        spans = await self.wait(lambda spans: len(spans) >= count)
        await asyncio.sleep(0.1)
        assert count == len(spans), [span.name for span in spans]
        return spans


def seen_in(body: bytes) -> list[Seen]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        seen(span, attributes_of(group.resource))
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def seen(span: trace_pb2.Span, resource: dict[str, Any]) -> Seen:
    return Seen(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.kind,
        span.status.code,
        attributes_of(span),
        [event.name for event in span.events],
        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        resource,
    )


def attributes_of(message: Any) -> dict[str, Any]:
    return {each.key: value_of(each.value) for each in message.attributes}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(each) for each in value.array_value.values]
    return getattr(value, kind)


def named(spans: list[Seen], name: str) -> Seen:
    """The one span of this name, or whose name begins so."""
    (found,) = (span for span in spans if span.name.startswith(name))
    return found


def variables(collector: Collector, **more: str) -> dict[str, str]:
    """What a service is started with that sends its spans at once."""
    fixed = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "20"}
    return {**fixed, **more}


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """A collector that works until a test has it do otherwise."""
    running = await Collector().start()
    yield running
    await running.stop()


TracedMaker = Callable[..., Awaitable[Service]]


@pytest.fixture
def make_traced(
    make_service: ServiceMaker, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> TracedMaker:
    """Makes services whose spans go to the collector; `otel` sets further variables."""

    async def make(*agents: Any, otel: dict[str, str] | None = None, **fields: Any) -> Service:
        for name, value in variables(collector, **(otel or {})).items():
            monkeypatch.setenv(name, value)
        return await make_service(*agents, environ={**os.environ, "KEY": "backend-key"}, **fields)

    return make


def headers_for(traceparent: str | None = None, **more: str) -> dict[str, str]:
    given = {} if traceparent is None else {"traceparent": traceparent}
    return {"Content-Type": "application/json", **given, **more}


def asking(service: Service, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    """A request for a completion."""
    question = [{"role": "user", "content": "Say hello."}]
    body = {"model": "any", "stream": True, "messages": question, **fields}
    return service.http.post(
        service.url + PATH, data=json.dumps(body).encode(), headers=headers or headers_for()
    )
