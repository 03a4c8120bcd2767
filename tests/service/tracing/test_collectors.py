"""Collectors that are away, hang, refuse or come back; sampling; what the variables switch."""

import asyncio
import sys
import time
from typing import Any

import pytest

from service.tracing import switch
from service.tracing.otlp import LONGEST_STOP_SECONDS
from tests.service.conftest import Service, agent_for
from tests.service.readers.conftest import until
from tests.service.stage.backend import Backend
from tests.service.tracing.conftest import (
    Collector,
    TracedMaker,
    asking,
    headers_for,
    named,
)

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"

Lines = list[dict[str, Any]]


def lines_of(lines: Lines, event: str) -> Lines:
    return [line for line in lines if line["event"] == event]


async def stopped(service: Service) -> float:
    """How many seconds a stop took."""
    began = time.monotonic()
    await service.stop()
    return time.monotonic() - began


async def test_a_collector_that_is_killed_costs_its_spans(
    make_traced: TracedMaker, backend: Backend, collector: Collector, log_lines: Lines
) -> None:
    """Answers go on, one line says so, one says how many were lost, and the stop doesn't wait."""
    short = {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.3"}
    service = await make_traced(agent_for(backend), otel=short)
    assert (await service.stream()).is_done
    await collector.count(3)
    await collector.stop()
    for _ in range(5):
        assert (await service.stream()).is_done
        await asyncio.sleep(0.05)
    await until(lambda: bool(lines_of(log_lines, "spans not sent")))
    assert await stopped(service) < LONGEST_STOP_SECONDS + 1
    assert 1 == len(lines_of(log_lines, "spans not sent"))
    (lost,) = lines_of(log_lines, "spans lost")
    assert 15 == lost["count"]


async def test_a_collector_that_comes_back_gets_spans_again(
    make_traced: TracedMaker, backend: Backend, collector: Collector, log_lines: Lines
) -> None:
    """One line says that it is away, one that it is there."""
    short = {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.3"}
    service = await make_traced(agent_for(backend), otel=short)
    await collector.stop()
    await service.stream()
    await until(lambda: bool(lines_of(log_lines, "spans not sent")))
    await collector.start()
    await service.stream()
    await until(lambda: bool(lines_of(log_lines, "spans sent again")))
    # The first one's last span may have been late enough to find it there again.
    await until(lambda: {"save", "chat any"} <= {span.name for span in collector.spans})
    assert 1 == len(lines_of(log_lines, "spans not sent"))


async def test_a_collector_that_hangs_holds_nothing_up(
    make_traced: TracedMaker, backend: Backend, collector: Collector, log_lines: Lines
) -> None:
    """Neither answers nor the stop, though its timeout is long."""
    collector.hangs = True
    service = await make_traced(agent_for(backend), otel={"OTEL_EXPORTER_OTLP_TIMEOUT": "30"})
    for _ in range(3):
        assert (await service.stream()).is_done
    await until(lambda: collector.posts > 0)
    assert (await service.stream()).is_done
    assert await stopped(service) < LONGEST_STOP_SECONDS + 1
    (lost,) = lines_of(log_lines, "spans lost")
    assert 12 == lost["count"]


async def test_a_collector_that_refuses_is_named_once(
    make_traced: TracedMaker, backend: Backend, collector: Collector, log_lines: Lines
) -> None:
    """With the status that it gave."""
    collector.status = 401
    service = await make_traced(agent_for(backend))
    for _ in range(3):
        await service.stream()
        await asyncio.sleep(0.06)
    await until(lambda: collector.posts > 1)
    (line,) = lines_of(log_lines, "spans not sent")
    assert "401" in line["reason"]


async def test_a_full_queue_loses_the_oldest_and_says_nothing_more(
    make_traced: TracedMaker, backend: Backend, collector: Collector, log_lines: Lines
) -> None:
    """Memory is bounded by OTEL_BSP_MAX_QUEUE_SIZE."""
    collector.hangs = True
    few = {"OTEL_BSP_MAX_QUEUE_SIZE": "4", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"}
    service = await make_traced(agent_for(backend), otel=few)
    for _ in range(5):
        assert (await service.stream()).is_done
    assert [] == lines_of(log_lines, "tracing")
    await service.stop()
    (lost,) = lines_of(log_lines, "spans lost")
    assert 15 == lost["count"]


async def test_the_callers_flag_is_obeyed_and_sent_on(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """A caller who samples nothing gets no span, and the backend hears so."""
    service = await make_traced(agent_for(backend))
    for flag in ("00", "01"):
        header = f"00-{TRACE_ID}-{PARENT_ID}-{flag}"
        async with asking(service, headers_for(header)) as response:
            await response.read()
            assert TRACE_ID == response.headers["x-trace-id"]
    await collector.count(3)
    told = [exchange.headers["traceparent"] for exchange in backend.exchanges]
    assert ["00", "01"] == [header[-2:] for header in told]
    assert PARENT_ID not in str(told)


@pytest.mark.parametrize(
    ("sampler", "argument", "header", "count"),
    [
        ("always_off", "", None, 0),
        ("parentbased_always_off", "", None, 0),
        ("parentbased_always_off", "", f"00-{TRACE_ID}-{PARENT_ID}-01", 3),
        ("always_on", "", f"00-{TRACE_ID}-{PARENT_ID}-00", 3),
        ("traceidratio", "0", None, 0),
        ("parentbased_traceidratio", "1.0", None, 3),
    ],
)
async def test_samplers_are_had_by_their_variables(
    make_traced: TracedMaker,
    backend: Backend,
    collector: Collector,
    sampler: str,
    argument: str,
    header: str | None,
    count: int,
) -> None:
    """All or nothing of a trace, and its flag goes to the backend."""
    chosen = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}
    service = await make_traced(agent_for(backend), otel=chosen)
    async with asking(service, headers_for(header)) as response:
        await response.read()
    await service.stop()  # which sends what there is
    await collector.count(count)
    assert ("01" if count else "00") == backend.exchanges[0].headers["traceparent"][-2:]


async def test_the_exporters_variables_are_obeyed(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """Headers, compression, resource, the longest text of an attribute."""
    given = {
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=us%20all",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test,service.instance.id=i-1",
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "5",
    }
    service = await make_traced(agent_for(backend), otel=given)
    await service.stream()
    spans = await collector.count(3)
    assert "us all" == collector.headers[0]["x-tenant"]
    assert "gzip" == collector.headers[0]["Content-Encoding"]
    assert ("verbatim", "test", "i-1") == (
        spans[0].resource["service.name"],
        spans[0].resource["deployment.environment"],
        spans[0].resource["service.instance.id"],
    )
    assert "compl" == named(spans, "POST").attributes["verbatim.state"]


@pytest.mark.parametrize(
    ("environ", "is_on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "zipkin"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
    ],
)
def test_the_standard_variables_switch_it(environ: dict[str, str], is_on: bool) -> None:
    """An endpoint, or the console; `none` and OTEL_SDK_DISABLED win."""
    assert is_on == switch.is_wanted(environ)


@pytest.mark.parametrize(
    ("otel", "event", "said"),
    [
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "2"}, "traces off", "max_export_batch_size"),
        ({"OTEL_TRACES_SAMPLER": "coin"}, "tracing", "coin"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, "tracing", "zip"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "nowhere"}, "spans not sent", "nowhere"),
    ],
)
async def test_variables_that_make_no_sense_are_named(
    make_traced: TracedMaker,
    backend: Backend,
    log_lines: Lines,
    otel: dict[str, str],
    event: str,
    said: str,
) -> None:
    """In one line, and the service serves."""
    service = await make_traced(agent_for(backend), otel=otel)
    assert (await service.stream()).is_done
    await until(lambda: bool(lines_of(log_lines, event)))
    (line,) = lines_of(log_lines, event)
    assert said in str(line)


async def test_spans_can_go_to_the_console(
    make_traced: TracedMaker, backend: Backend, collector: Collector, capsys: Any
) -> None:
    """As the SDK prints them, beside the collector."""
    service = await make_traced(agent_for(backend), otel={"OTEL_TRACES_EXPORTER": "console, otlp"})
    await service.stream()
    await collector.count(3)
    await service.stop()
    assert '"name": "chat any"' in capsys.readouterr().out


async def test_without_the_extra_the_service_says_what_to_install(
    make_service: Any, backend: Backend, log_lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And serves."""
    monkeypatch.delitem(sys.modules, "service.tracing.tracing", raising=False)
    monkeypatch.delitem(sys.modules, "service.tracing.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    environ = {"KEY": "k", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    service = await make_service(agent_for(backend), environ=environ)
    (line,) = lines_of(log_lines, "traces off")
    assert "'.[tracing]'" in line["remedy"]
    assert (await service.stream()).is_done


@pytest.mark.parametrize(
    ("protocol", "said"),
    [("grpc", "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"), ("http/json", None)],
)
async def test_a_protocol_that_cant_be_spoken_is_named(
    make_traced: TracedMaker,
    backend: Backend,
    log_lines: Lines,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    said: str | None,
) -> None:
    """One of a package that isn't installed, and one that there is none for."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    service = await make_traced(agent_for(backend), otel={"OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
    (line,) = lines_of(log_lines, "traces off")
    assert said == line.get("missing")
    assert protocol in line.get("reason", protocol)
    assert (await service.stream()).is_done
