"""Spans of real processes: several workers, a collector that hangs while the service stops."""

import asyncio
import os
import sys
import time
from typing import Any

import pytest

from service.tracing.otlp import LONGEST_STOP_SECONDS
from service.tracing.requests import READING_ROUTE
from tests.service.process.conftest import asked, exchanges, reading, settings, told, workers_of
from tests.service.stage.backend import Backend
from tests.service.stage.process import config
from tests.service.stage.workers import doors
from tests.service.tracing.conftest import PATH, Collector, named, variables


async def test_each_worker_sends_its_own_spans(
    spawn: Any, database_url: str, backend: Backend, collector: Collector
) -> None:
    """The exporter begins in the worker. A resume that another worker serves is one span of who was
    asked, and one below it with the link to the first."""
    backend.script = told
    process = spawn(settings(database_url, backend), **variables(collector))
    async with doors(process, await workers_of(process), 1) as (ours, theirs):
        async with asked(ours[0]) as first:
            (exchange,) = await exchanges(backend, 1)
            await first.until(1)
            async with reading(theirs[0], first.completion_id) as second:
                await second.until(1)
                await exchange.finish()
                await asyncio.gather(first.whole(), second.whole())
    spans = await collector.count(5)
    asking = named(spans, f"POST {PATH}")
    hops = {span.parent_id: span for span in spans if span.name == f"GET {READING_ROUTE}"}
    outer = hops.pop("")
    (inner,) = hops.values()
    assert (outer.span_id, outer.trace_id) == (inner.parent_id, inner.trace_id)
    assert [(asking.trace_id, asking.span_id)] == inner.links
    assert 2 == len({span.resource["service.instance.id"] for span in spans})
    assert asking.resource == inner.resource != outer.resource
    assert 0 == await asyncio.to_thread(process.stop)


async def test_a_stop_waits_for_no_collector(
    spawn: Any, database_url: str, collector: Collector
) -> None:
    """With spans waiting, and a collector that takes the connection and says nothing, the process
    ends in order."""
    collector.hangs = True
    given = variables(collector, OTEL_EXPORTER_OTLP_TIMEOUT="60")
    process = spawn(config(database_url, reply="Hi"), **given)
    await asyncio.to_thread(lambda: process.ask().read())
    async with asyncio.timeout(20):
        while not collector.posts:
            await asyncio.sleep(0.02)
    began = time.monotonic()
    assert 0 == await asyncio.to_thread(process.stop)
    assert time.monotonic() - began < LONGEST_STOP_SECONDS + 3
    assert 3 == process.line("spans lost")["count"]


@pytest.mark.parametrize("is_on", [False, True])
async def test_nothing_is_imported_unless_it_is_on(is_on: bool, collector: Collector) -> None:
    """Without the variables none of OpenTelemetry is loaded, nor what of ours knows it."""
    program = (
        "import os, sys\n"
        "from service.app import build_app\n"
        "from service.settings.config import Config\n"
        "build_app(Config())\n"
        "print(any(name.startswith('opentelemetry') for name in sys.modules),"
        " 'service.tracing.otlp' in sys.modules)"
    )
    environ = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    if is_on:
        environ |= variables(collector)
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environ, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await running.communicate()
    assert f"{is_on} {is_on}" == said.decode().strip()
