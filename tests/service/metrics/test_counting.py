"""What a service counts: through its own front door, one story after the other."""

import asyncio
from typing import Any

import aiohttp
import pytest

from service.metrics.lag import INTERVAL_SECONDS
from service.settings.access import AuthConfig, LimitsConfig
from service.settings.admin import AdminConfig, MetricsConfig
from service.settings.config import ScriptedAgentConfig, SseConfig
from statemachine import ClientGone
from tests.service.callers.test_admin import ADMIN_KEYS, OPS, PROXIED, bearer
from tests.service.callers.test_auth import ANNE, KEYS, status_with
from tests.service.conftest import QUESTION, ServiceMaker, agent_for
from tests.service.metrics.conftest import PATH, Scraped, parsed_openmetrics, scraped
from tests.service.readers.conftest import reading, until
from tests.service.stage.backend import Backend, Exchange, chunk, say
from tests.service.stage.process import config

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
SHORT = ScriptedAgentConfig(name="demo", kind="scripted", models=("*",), reply="Hello there.")


async def test_a_completion_is_counted_once_in_each_way(make_service: ServiceMaker) -> None:
    """A stream's end, pace, tokens, attempt and save; a plain one's apart."""
    service = await make_service(SHORT)
    await service.stream(model="demo")
    await service.stream(model="demo", stream=False)
    found = await scraped(service)
    labels = {"agent": "demo", "model": "demo"}
    for stream in ("true", "false"):
        ended = {**labels, "stream": stream, "state": "completed", "error": "none"}
        assert 1 == found.value("verbatim_completions_total", **ended)
        assert 1 == found.value("verbatim_completion_seconds_count", **labels, stream=stream)
        assert 1 == found.value("verbatim_first_token_seconds_count", **labels, stream=stream)
    assert 2 == found.value("verbatim_upstream_first_chunk_seconds_count", agent="demo")
    assert 2 == found.value("verbatim_added_seconds_count", stage="to_upstream")
    assert 1 == found.value("verbatim_added_seconds_count", stage="to_client")
    assert 2 == found.value("verbatim_output_token_seconds_count", **labels)
    assert 2 == found.value("verbatim_longest_gap_seconds_count", **labels)
    assert 4 == found.value("verbatim_tokens_total", **labels, kind="output", source="provider")
    assert 2 == found.value("verbatim_attempts_total", agent="demo", outcome="answered")
    assert 2 == found.value("verbatim_saves_total", outcome="saved")
    assert 2 == found.value("verbatim_save_seconds_count")
    assert 1 == found.value("verbatim_database_up")


async def test_both_formats_are_spoken(make_service: ServiceMaker) -> None:
    """OpenMetrics for who asks for it, else Prometheus's text; the same series in both."""
    service = await make_service(SHORT)
    await service.stream(model="demo")
    plain = await scraped(service)
    async with service.http.get(service.url + PATH, headers={"Accept": OPENMETRICS}) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        modern = list(parsed_openmetrics(await response.text()))
    async with service.http.get(service.url + PATH) as response:
        assert "text/plain; version=0.0.4; charset=utf-8" == response.headers["Content-Type"]
    series = {
        (sample.name, tuple(sorted(sample.labels.items())))
        for metric in modern
        for sample in metric.samples
    }
    assert plain.series <= series


async def test_a_backends_failure_is_counted_under_our_code(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """Retries, the end without a token, and nothing of the code that the backend made up."""

    async def refuse(exchange: Exchange) -> None:
        await exchange.json(503, {"error": {"message": "No.", "code": f"no-{id(exchange)}"}})

    backend.script = refuse
    service = await make_service(agent_for(backend, retries=1))
    await service.stream(model="backend")
    found = await scraped(service)
    assert 2 == found.value("verbatim_attempts_total", agent="backend", outcome="upstream_error")
    assert 1 == found.value("verbatim_no_first_token_total", reason="upstream_error")
    assert 1 == found.value("verbatim_completions_total", state="failed", error="upstream_error")
    assert 0 == found.value("verbatim_refused_total")
    assert "no-" not in found.text


async def test_hundreds_of_made_up_models_make_one_series(make_service: ServiceMaker) -> None:
    """Whatever clients call models, the number of series stays what it is."""
    service = await make_service(SHORT)
    await service.stream(model="made-up")
    await asyncio.sleep(2 * INTERVAL_SECONDS)  # the loop's lag is there from its first look on
    before = (await scraped(service)).series
    for wave in range(15):
        await asyncio.gather(*(service.stream(model=f"made-up-{wave}-{n}") for n in range(20)))
    after = await scraped(service)
    assert before == after.series
    assert {"other"} == after.labels("verbatim_completions_total", "model")
    assert 301 == after.value("verbatim_completions_total", model="other")


async def test_models_that_are_named_or_listed_are_labels(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """The configuration's names from the start, a backend's once its list has been fetched, which a
    scrape sees to."""

    async def answer(exchange: Exchange) -> None:
        if exchange.body is None:
            await exchange.json(200, {"data": [{"id": "listed"}]})
        else:
            await say("Hello")(exchange)

    backend.script = answer
    config = agent_for(backend, models=("exact", "*"), parameters={"model": "default"})
    service = await make_service(config)
    await scraped(service)
    await asyncio.sleep(0.2)
    for model in ("exact", "default", "backend", "listed", "unlisted"):
        await service.stream(model=model)
    found = await scraped(service)
    expected = {"exact", "default", "backend", "listed", "other"}
    assert expected == found.labels("verbatim_completions_total", "model")


async def test_what_runs_is_counted_while_it_runs(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """Phases of streams, and readers, as they are; nothing of them is left at the end."""
    go_on = asyncio.Event()

    async def hesitate(exchange: Exchange) -> None:
        if exchange.body is None:  # a scrape has models listed
            return await exchange.json(200, {"data": []})
        await exchange.start()
        if exchange.body["messages"][0]["content"] != "Wait.":
            await exchange.words("Hello")
        await go_on.wait()
        await exchange.words("world")
        await exchange.finish()

    backend.script = hesitate
    service = await make_service(agent_for(backend))
    silent = asyncio.create_task(
        service.stream(model="m", messages=[{"role": "user", "content": "Wait."}])
    )
    async with service.post() as first:
        await first.content.readany()
        async with reading(service, first.headers["x-completion-id"], starting_after=0) as later:
            await later.until(1)
            await until(lambda: len(service.relays) == 2)
            found = await scraped(service)
            assert 1 == found.value("verbatim_streams", phase="waiting")
            assert 1 == found.value("verbatim_streams", phase="answering")
            assert 2 == found.value("verbatim_readers", kind="first")
            assert 1 == found.value("verbatim_readers", kind="later")
            assert 1 == found.value("verbatim_resumes_total", kind="running")
            assert found.value("verbatim_journal_bytes") > 0
            go_on.set()
            await later.whole()
            await first.read()
    await silent
    await until(lambda: not service.relays)
    found = await scraped(service)
    assert 0 == found.value("verbatim_streams") == found.value("verbatim_readers")


@pytest.mark.parametrize(("policy", "phase"), [("cancel", "waiting"), ("finish", "answering")])
async def test_a_client_that_leaves_is_counted_by_phase_and_policy(
    backend: Backend, make_service: ServiceMaker, policy: str, phase: str
) -> None:
    """Whether it had read a word, and what its leaving means."""
    go_on = asyncio.Event()

    async def hesitate(exchange: Exchange) -> None:
        if exchange.body is None:  # a scrape has models listed
            return await exchange.json(200, {"data": []})
        await exchange.start()
        if phase == "answering":
            await exchange.words("Hello")
        await go_on.wait()
        await exchange.words("world")
        await exchange.finish()

    backend.script = hesitate
    service = await make_service(
        agent_for(backend),
        client_gone=ClientGone(policy),
        sse=SseConfig(keep_alive_interval_seconds=0.05),
    )
    async with service.post() as response:
        await response.content.readany()
        response.close()
    where = {"policy": policy, "phase": phase}
    await until(lambda: policy == "finish" or not service.relays)
    async with asyncio.timeout(5):
        while not (found := await scraped(service)).value("verbatim_clients_gone_total", **where):
            await asyncio.sleep(0.01)
    assert 1 == found.value("verbatim_clients_gone_total")
    assert float(policy == "finish") == found.value("verbatim_streams", phase="detached")
    if phase == "waiting":
        assert found.value("verbatim_keepalives_total") >= 1
        assert 1 == found.value("verbatim_no_first_token_total", reason="client_left")
    go_on.set()


async def test_requests_that_are_no_completion_are_counted(make_service: ServiceMaker) -> None:
    """Refusals by their code, and what became of keys for repeats."""
    limits = LimitsConfig(requests_per_minute=3)
    service = await make_service(SHORT, limits=limits)
    keyed = {"Idempotency-Key": "one"}
    url = f"{service.url}/v1/chat/completions"
    for text in ("Hi", "Hi", "Ho"):
        body = {"model": "demo", "messages": [{"role": "user", "content": text}]}
        async with service.http.post(url, json=body, headers=keyed) as response:
            await response.read()
    await service.stream(model="demo", messages=QUESTION)
    await status_with(service, {}, "/nowhere")
    found = await scraped(service)
    assert 1 == found.value("verbatim_idempotent_total", outcome="new")
    assert 1 == found.value("verbatim_idempotent_total", outcome="replayed")
    assert 1 == found.value("verbatim_idempotent_total", outcome="mismatch")
    assert 1 == found.value("verbatim_refused_total", reason="idempotency_mismatch")
    assert 1 == found.value("verbatim_refused_total", reason="rate_limited")
    assert 1 == found.value("verbatim_refused_total", reason="not_found")


async def test_cached_and_reasoning_tokens_are_told_apart(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """Each kind from where the provider says it, with where the figure is from."""
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 7},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }

    async def answer(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.words("Hello")
        await exchange.event(chunk({}, "stop"))
        await exchange.event({**chunk({}), "choices": [], "usage": usage})
        await exchange.done()

    backend.script = answer
    keys = AuthConfig(KEYS)
    service = await make_service(
        agent_for(backend), auth=keys, metrics=MetricsConfig(per_owner=True)
    )
    service.key = ANNE
    await service.stream()
    found = await scraped(service)
    counted = {
        kind: found.value("verbatim_tokens_total", kind=kind, source="provider", owner="anne")
        for kind in ("input", "output", "cached", "reasoning")
    }
    assert {"input": 9, "output": 5, "cached": 7, "reasoning": 3} == counted


async def test_the_endpoint_asks_for_a_key_where_it_must(make_service: ServiceMaker) -> None:
    """The rules of `tests/service/callers/test_admin.py`, at the real endpoint."""
    service = await make_service(SHORT, auth=AuthConfig(KEYS), admin=AdminConfig(ADMIN_KEYS))
    assert 200 == await status_with(service, {}, PATH)
    assert 403 == await status_with(service, {"Host": "verbatim.example"}, PATH)
    assert 401 == await status_with(service, PROXIED, PATH)
    assert 403 == await status_with(service, {**PROXIED, **bearer(ANNE)}, PATH)
    assert 200 == await status_with(service, {**PROXIED, **bearer(OPS)}, PATH)


async def test_nothing_is_counted_where_nobody_wants_it(make_service: ServiceMaker) -> None:
    """Without metrics there is no endpoint, and nobody watches."""
    service = await make_service(SHORT, metrics=MetricsConfig(enabled=False))
    assert 404 == await status_with(service, {}, PATH)


async def test_what_a_dead_process_left_is_counted_when_it_comes_back(
    spawn: Any, database_url: str
) -> None:
    """Its answers are brought back by the next one, which says so."""
    settings = config(database_url, reply="word " * 1000, tokens_per_second=5)
    first = spawn(settings)
    response = await asyncio.to_thread(first.ask)
    await asyncio.to_thread(response.read1)
    first.popen.kill()
    first.popen.wait()
    second = spawn(settings)
    await asyncio.to_thread(second.line, "recovered")
    async with aiohttp.ClientSession() as http:
        async with http.get(second.line("serving")["admin_url"] + PATH) as answer:
            found = Scraped(await answer.text())
    assert 1 == found.value("verbatim_recovered_total", state="failed")
    assert 1 == found.value("verbatim_recovered_total")
    assert 1 == found.value("verbatim_saves_total", outcome="saved")
    assert 0 == found.value("verbatim_completions_total")
