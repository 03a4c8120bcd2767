"""The spans of a completion: which there are, whose children, with which ids and attributes."""

from typing import Any

import pytest

from service.settings.config import ServerConfig
from tests.service.conftest import Service, agent_for
from tests.service.stage.backend import Backend, Exchange, chunk
from tests.service.tracing.conftest import (
    CLIENT,
    ERROR,
    INTERNAL,
    PATH,
    SERVER,
    UNSET,
    Collector,
    TracedMaker,
    asking,
    headers_for,
    named,
)

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-01"
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}


async def with_usage(exchange: Exchange) -> None:
    """A whole answer that counts its tokens."""
    await exchange.start()
    await exchange.words("Hello", " world", "!")
    await exchange.event(chunk({}, "stop", usage=USAGE))
    await exchange.done()


async def test_an_answer_makes_three_spans_of_one_trace(
    make_traced: TracedMaker,
    backend: Backend,
    collector: Collector,
    log_lines: list[dict[str, Any]],
) -> None:
    """The request's, the attempt's with its first token, and the save's below the request's; their
    trace is that of header, log and row, and the backend was told of the attempt's span."""
    backend.script = with_usage
    service = await make_traced(agent_for(backend))
    async with asking(service, headers_for(SAMPLED)) as response:
        await response.read()
        assert TRACE_ID == response.headers["x-trace-id"]
        completion_id = response.headers["x-completion-id"]
    spans = await collector.count(3)
    server, client, save = named(spans, f"POST {PATH}"), named(spans, "chat"), named(spans, "save")
    assert (SERVER, CLIENT, INTERNAL) == (server.kind, client.kind, save.kind)
    assert (PARENT_ID, server.span_id, server.span_id) == (
        server.parent_id,
        client.parent_id,
        save.parent_id,
    )
    assert {TRACE_ID} == {span.trace_id for span in spans}
    assert f"00-{TRACE_ID}-{client.span_id}-01" == backend.exchanges[0].headers["traceparent"]
    (line,) = (line for line in log_lines if line["event"] == "completion finished")
    assert TRACE_ID == line["trace_id"] == (await service.kept.one()).request.trace_id
    assert {UNSET} == {span.status for span in spans}
    assert (["first_token"], [], []) == (client.events, server.events, save.events)
    assert server.started_ns <= client.started_ns <= client.ended_ns <= save.ended_ns
    assert save.ended_ns <= server.ended_ns
    assert completion_id.endswith(server.span_id)


async def test_spans_say_what_the_conventions_ask_for(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """HTTP's of the request, GenAI's of the attempt, who we are; the older names unless asked."""
    backend.script = with_usage
    service = await make_traced(agent_for(backend), otel={"OTEL_SERVICE_NAME": "chat"})
    async with asking(service, temperature=0.5, max_tokens=20, user="x") as response:
        await response.read()
        request_id = response.headers["x-request-id"]
        completion_id = response.headers["x-completion-id"]
        agent = response.request_info.headers["User-Agent"]
    spans = await collector.count(3)
    host, port = service.url.removeprefix("http://").split(":")
    assert {
        "http.request.method": "POST",
        "http.route": PATH,
        "http.response.status_code": 200,
        "url.path": PATH,
        "url.scheme": "http",
        "server.address": host,
        "server.port": int(port),
        "user_agent.original": agent,
        "verbatim.completion_id": completion_id,
        "verbatim.request_id": request_id,
        "verbatim.state": "completed",
    } == named(spans, "POST").attributes
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "any",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 20,
        "gen_ai.response.id": "backend-1",
        "gen_ai.response.model": "backend-model",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 3,
        "server.address": "127.0.0.1",
        "server.port": int(backend.base_url.split(":")[2].partition("/")[0]),
        "verbatim.agent": "backend",
        "verbatim.attempt": 1,
        "verbatim.usage_source": "provider",
    } == named(spans, "chat any").attributes
    assert {} == named(spans, "save").attributes
    assert "chat" == spans[0].resource["service.name"]


async def test_newer_names_are_had_by_the_standard_opt_in(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """`OTEL_SEMCONV_STABILITY_OPT_IN` changes the provider's name, and adds what came later."""
    opted = {"OTEL_SEMCONV_STABILITY_OPT_IN": "http, gen_ai_latest_experimental"}
    service = await make_traced(agent_for(backend), otel=opted)
    await service.stream()
    attributes = named(await collector.count(3), "chat").attributes
    assert "openai" == attributes["gen_ai.provider.name"]
    assert "gen_ai.system" not in attributes
    assert True is attributes["gen_ai.request.stream"]
    assert 0 < attributes["gen_ai.response.time_to_first_chunk"] < 20


async def test_a_plain_request_has_the_same_spans(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """Whether the client streams makes no difference."""
    service = await make_traced(agent_for(backend))
    async with service.post(stream=False) as response:
        assert 200 == response.status
    spans = await collector.count(3)
    assert {"POST /v1/chat/completions", "chat any", "save"} == {span.name for span in spans}
    assert "completed" == named(spans, "POST").attributes["verbatim.state"]


async def test_retries_and_fallbacks_have_a_span_each(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """Each failed attempt's with our own code, and each with the id that its backend was sent."""

    async def script(exchange: Exchange) -> None:
        if len(backend.exchanges) < 3:
            error = {"message": "No.", "code": f"made_up_{len(backend.exchanges)}"}
            await exchange.json(503, {"error": error})
        else:
            await with_usage(exchange)

    backend.script = script
    first = agent_for(backend, retries=1, fallbacks=("other",))
    second = agent_for(backend, name="other", models=("never",), parameters={"model": "m2"})
    service = await make_traced(first, second)
    assert (await service.stream()).is_done
    spans = await collector.count(5)
    attempts = sorted(
        (span for span in spans if span.kind == CLIENT), key=lambda span: span.started_ns
    )
    told = [exchange.headers["traceparent"].split("-")[2] for exchange in backend.exchanges]
    assert told == [span.span_id for span in attempts]
    assert {named(spans, "POST").span_id} == {span.parent_id for span in attempts}
    assert [("backend", 1), ("backend", 2), ("other", 1)] == [
        (span.attributes["verbatim.agent"], span.attributes["verbatim.attempt"])
        for span in attempts
    ]
    assert ["upstream_error", "upstream_error", None] == [
        span.attributes.get("error.type") for span in attempts
    ]
    assert [ERROR, ERROR, UNSET] == [span.status for span in attempts]
    assert ["chat any", "chat any", "chat m2"] == [span.name for span in attempts]
    assert [[], [], ["first_token"]] == [span.events for span in attempts]
    assert UNSET == named(spans, "POST").status


async def test_a_broken_answer_is_an_error_of_both(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """What failed after its 200 is no success for anybody who looks at spans."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hello")
        await exchange.reset()

    backend.script = script
    service = await make_traced(agent_for(backend))
    await service.stream()
    spans = await collector.count(3)
    server, client = named(spans, "POST"), named(spans, "chat")
    assert (ERROR, ERROR, UNSET) == (server.status, client.status, named(spans, "save").status)
    assert "failed" == server.attributes["verbatim.state"]
    assert "upstream_incomplete" == server.attributes["error.type"]
    assert "upstream_incomplete" == client.attributes["error.type"]
    assert ["first_token"] == client.events
    assert "estimated" == client.attributes["verbatim.usage_source"]


@pytest.mark.parametrize(("told", "is_error"), [(500, True), (400, False)])
async def test_a_refusal_has_its_status(
    make_traced: TracedMaker,
    backend: Backend,
    collector: Collector,
    told: int,
    is_error: bool,
) -> None:
    """The conventions call a server's span an error from 500 on; a client's span is one anyway."""

    async def script(exchange: Exchange) -> None:
        await exchange.json(told, {"error": {"message": "No."}})

    backend.script = script
    service = await make_traced(agent_for(backend))
    refused = await service.stream()
    spans = await collector.count(3)
    server, client = named(spans, "POST"), named(spans, "chat")
    assert refused.status == server.attributes["http.response.status_code"]
    assert is_error == (refused.status >= 500) == (ERROR == server.status)
    assert ERROR == client.status
    assert "failed" == server.attributes["verbatim.state"]
    assert "upstream_error" == server.attributes["error.type"] == client.attributes["error.type"]


async def test_who_is_refused_before_has_one_span(
    make_traced: TracedMaker, collector: Collector, backend: Backend
) -> None:
    """A bad request or a full service began no completion; the code tells which."""
    service = await make_traced(agent_for(backend), server=ServerConfig(max_concurrent_streams=1))
    async with service.post(b"{") as response:
        assert 400 == response.status
    (span,) = await collector.count(1)
    assert (400, "invalid_request", UNSET) == (
        span.attributes["http.response.status_code"],
        span.attributes["error.type"],
        span.status,
    )
    assert "verbatim.state" not in span.attributes


async def test_other_calls_have_no_span(make_traced: TracedMaker, collector: Collector) -> None:
    """Probes and lists come all day, and say nothing of an answer."""
    service = await make_traced()
    for path in ("/healthz", "/readyz", "/v1/models", PATH, f"{PATH}/chatcmpl-1", "/nowhere"):
        async with service.http.get(service.url + path) as response:
            await response.read()
    await service.stream()
    assert {"POST /v1/chat/completions", "chat any", "save"} == {
        span.name for span in await collector.count(3)
    }


async def test_no_text_is_in_any_span(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """Neither question nor answer, reasoning, tools, errors' sentences nor keys: the whole export is
    searched."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.event(chunk({"reasoning": "SECRET-reasoning"}))
        await exchange.words("SECRET-answer")
        if len(backend.exchanges) == 2:
            await exchange.event({"error": {"message": "SECRET-error", "code": "SECRET-code"}})
            await exchange.cut()
        else:
            await exchange.finish()

    backend.script = script
    service = await make_traced(agent_for(backend))
    said: dict[str, Any] = {
        "messages": [{"role": "user", "content": "SECRET-question"}],
        "tools": [{"type": "function", "function": {"name": "SECRET-tool"}}],
        "metadata": {"note": "SECRET-note"},
        "stop": ["SECRET-stop"],
        "max_tokens": "SECRET-number",
    }
    whole, broken = await service.stream(**said), await service.stream(**said)
    assert "SECRET-answer" in whole.text and "SECRET-answer" in broken.text
    async with asking(service, headers_for(Authorization="Bearer SECRET-key"), **said) as response:
        await response.read()
    await collector.count(9)
    everything = b"".join(collector.bodies)
    assert b"verbatim.state" in everything
    assert b"SECRET" not in everything
    assert b"backend-key" not in everything


async def test_odd_models_and_ids_make_no_trouble(
    make_traced: TracedMaker, backend: Backend, collector: Collector
) -> None:
    """Half a character and a name that is too long: spans carry what they can."""
    service = await make_traced(agent_for(backend))
    await service.stream(model="half\ud800")
    await service.stream(model="long" * 100)
    spans = await collector.count(6)
    names = sorted(span.name for span in spans if span.kind == CLIENT)
    assert ["chat half?", "chat " + "long" * 64] == names


@pytest.fixture
async def plain(make_service: Any, backend: Backend) -> Service:
    """A service that traces nothing."""
    made: Service = await make_service(agent_for(backend))
    return made


async def test_without_tracing_the_backend_is_told_of_the_request(
    plain: Service, backend: Backend
) -> None:
    """As ever: each attempt gets the same span's id."""

    async def script(exchange: Exchange) -> None:
        await exchange.json(503, {"error": {"message": "No."}})

    backend.script = script
    service = plain
    await service.stream()
    async with asking(service, headers_for(SAMPLED)) as response:
        await response.read()
    told = backend.exchanges[-1].headers["traceparent"].split("-")
    assert (TRACE_ID, "01") == (told[1], told[3])
    assert PARENT_ID != told[2]
