"""A backend that is down: who is asked, who is told what, and that nothing is kept of it."""

import asyncio
import json
from typing import Any

import pytest

from service.settings.config import CircuitConfig, ScriptedAgentConfig
from statemachine import State
from tests.service.conftest import Service, ServiceMaker, agent_for
from tests.service.stage.backend import Backend, Exchange, chunk, say

QUICK = CircuitConfig(failures=3, pause_seconds=0.2, longest_pause_seconds=0.5)
LONG = CircuitConfig(failures=3, pause_seconds=60.0, longest_pause_seconds=60.0)


async def loading(exchange: Exchange) -> None:
    await exchange.json(503, {"error": {"message": "Loading model", "code": 503}})


async def unreachable(exchange: Exchange) -> None:
    await exchange.reset()


async def state(service: Service) -> Any:
    async with service.http.get(f"{service.url}/readyz") as response:
        assert 200 == response.status
        return (await response.json())["agents"]


@pytest.mark.parametrize("script", [loading, unreachable])
async def test_a_backend_that_is_down_isnt_asked_for_every_request(
    backend: Backend, make_service: ServiceMaker, log_lines: Any, script: Any
) -> None:
    """A client that asks again at once, for ever, costs neither calls nor rows."""
    backend.script = script
    service = await make_service(agent_for(backend, circuit=LONG))
    for _ in range(3):
        assert (await service.stream()).error["code"] in ("503", "upstream_unreachable")
    for _ in range(50):
        streamed = await service.stream(stream=False)
        assert (503, "upstream_unavailable") == (streamed.status, streamed.error["code"])
        assert 0 < int(streamed.headers["Retry-After"]) <= 61
        assert "true" == streamed.headers["x-should-retry"]
    assert (3, 3) == (len(backend.exchanges), len(service.kept.records))
    assert 1 == len([line for line in log_lines if line["event"] == "circuit opened"])
    (shown,) = await state(service)
    expected = ("open", 0) if script is unreachable else ("closed", 1)
    assert expected == (shown["circuit"], shown["models_paused"])


async def test_many_at_once_make_one_trial_and_its_answer_is_everybodys(
    backend: Backend, make_service: ServiceMaker, log_lines: Any
) -> None:
    """After the pause one request goes; once it is answered all do."""
    backend.script = loading
    service = await make_service(agent_for(backend, circuit=QUICK, retries=2))
    await service.stream()
    assert 3 == len(backend.exchanges)
    go_on = asyncio.Event()

    async def slowly(exchange: Exchange) -> None:
        await go_on.wait()
        await say("Hi")(exchange)

    backend.script = slowly
    await asyncio.sleep(0.5)
    asking = [asyncio.create_task(service.stream()) for _ in range(20)]
    done, (trial,) = await _all_but_one(asking)
    assert {503} == {task.result().status for task in done}
    async with asyncio.timeout(5):
        while len(backend.exchanges) < 4:
            await asyncio.sleep(0.01)
    assert 4 == len(backend.exchanges)
    go_on.set()
    assert "Hi" == (await trial).text
    assert "Hi" == (await service.stream()).text
    assert 3 == len(service.kept.records)
    assert 1 == len([line for line in log_lines if line["event"] == "circuit closed"])


async def _all_but_one(tasks: list[Any]) -> tuple[set[Any], set[Any]]:
    """Wait until one task is left."""
    async with asyncio.timeout(10):
        while True:
            done = {task for task in tasks if task.done()}
            if len(done) >= len(tasks) - 1:
                return done, set(tasks) - done
            await asyncio.sleep(0.01)


async def test_a_trial_isnt_repeated_and_a_client_that_leaves_it_passes_its_turn_on(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """Its failure is known after one call."""
    backend.script = loading
    service = await make_service(agent_for(backend, circuit=QUICK, retries=2))
    await service.stream()
    await asyncio.sleep(0.5)
    await service.stream()
    assert 4 == len(backend.exchanges)

    async def silent(exchange: Exchange) -> None:
        await exchange.client_closed.wait()

    backend.script = silent
    await asyncio.sleep(0.6)
    asking = asyncio.create_task(service.stream())
    while len(backend.exchanges) < 5:
        await asyncio.sleep(0.01)
    assert 503 == (await service.stream()).status
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    backend.script = say("Hi")
    async with asyncio.timeout(5):
        while (streamed := await service.stream()).status != 200:
            await asyncio.sleep(0.01)
    assert "Hi" == streamed.text


async def test_fallbacks_are_asked_at_once(backend: Backend, make_service: ServiceMaker) -> None:
    """The row names the one that answered, and it is asked as a fallback."""
    other = await Backend().start()
    other.script = say("Hi there.")
    backend.script = loading
    service = await make_service(
        agent_for(backend, circuit=LONG, retries=2, fallbacks=("other",)),
        agent_for(other, name="other", models=(), parameters={"model": "its-own"}),
    )
    for _ in range(3):
        assert "Hi there." == (await service.stream()).text
    assert (3, 3) == (len(backend.exchanges), len(other.exchanges))
    assert {"its-own"} == {exchange.body["model"] for exchange in other.exchanges}
    assert {"other"} == {record.agent for record in service.kept.records}
    await other.stop()


async def test_one_models_trouble_is_no_others(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """A caller who keeps asking for a model that is down shuts nobody out."""

    async def script(exchange: Exchange) -> None:
        await (loading if exchange.body["model"] == "down" else say("Hi"))(exchange)

    backend.script = script
    service = await make_service(agent_for(backend, circuit=LONG))
    for _ in range(20):
        assert 503 == (await service.stream(model="down")).status
        assert "Hi" == (await service.stream(model="up")).text
    # Each answer for another model shows that the backend is there, not that this model is.
    assert 23 == len(backend.exchanges)


async def test_a_reload_keeps_the_state_of_agents_that_stay_the_same(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """One that changed is asked anew."""
    from service.app import DIRECTORY

    backend.script = loading
    config = agent_for(backend, circuit=LONG)
    service = await make_service(config)
    for _ in range(3):
        await service.stream()
    service.app[DIRECTORY].replace([config])
    assert "upstream_unavailable" == (await service.stream()).error["code"]
    service.app[DIRECTORY].replace([agent_for(backend, circuit=LONG, preamble="Hm.")])
    assert "503" == (await service.stream()).error["code"]


@pytest.mark.parametrize("number", [400, 401, 404, 429, 500])
async def test_other_statuses_spare_nobody(
    backend: Backend, make_service: ServiceMaker, number: int
) -> None:
    """They are one request's, or one caller's."""

    async def script(exchange: Exchange) -> None:
        await exchange.json(number, {"error": {"message": "No."}})

    backend.script = script
    service = await make_service(agent_for(backend, circuit=LONG))
    assert {number} == {(await service.stream()).status for _ in range(10)}
    assert 10 == len(backend.exchanges)


# --- who asks again ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retries", "number", "advice"),
    [(0, 503, None), (1, 503, "false"), (1, 429, "false"), (1, 400, None), (1, 401, None)],
)
async def test_what_was_retried_in_vain_isnt_to_be_asked_again(
    backend: Backend, make_service: ServiceMaker, retries: int, number: int, advice: str | None
) -> None:
    """Clients' retries multiply ours; without ours they may have their own."""

    async def script(exchange: Exchange) -> None:
        await exchange.json(number, {"error": {"message": "No."}})

    backend.script = script
    service = await make_service(agent_for(backend, retries=retries, circuit=None))
    streamed = await service.stream()
    assert (number, advice) == (streamed.status, streamed.headers.get("x-should-retry"))


async def test_a_long_retry_after_is_left_to_the_client(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """Nothing was retried, so the client may, once it is time."""

    async def script(exchange: Exchange) -> None:
        await exchange.json(429, {"error": {"message": "No."}}, Retry_After="60")

    backend.script = script
    service = await make_service(agent_for(backend, retries=2))
    streamed = await service.stream()
    assert ("60", None) == (streamed.headers["Retry-After"], streamed.headers.get("x-should-retry"))
    assert 1 == len(backend.exchanges)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("code", "status", "tries"),
    [(400, 400, 1), (402, 402, 1), ("429", 429, 2), (503, 503, 2), ("no_such", 502, 1)],
)
async def test_an_error_under_a_200_counts_like_the_status_it_names(
    backend: Backend,
    make_service: ServiceMaker,
    stream: bool,
    code: Any,
    status: int,
    tries: int,
) -> None:
    """Before the first token, with that status's rules for retries and fallbacks."""

    async def script(exchange: Exchange) -> None:
        await exchange.start(Retry_After="0")
        await exchange.event(chunk({"role": "assistant", "content": ""}))
        await exchange.event({"error": {"message": "No.", "code": code, "metadata": {"a": [1]}}})

    backend.script = script
    service = await make_service(
        agent_for(backend, retries=1, fallbacks=("demo",)),
        ScriptedAgentConfig(name="demo", kind="scripted", reply="Hi.", tokens_per_second=1000),
    )
    streamed = await service.stream(stream=stream)
    assert tries == len(backend.exchanges)
    if status == 400:
        assert (status, str(code)) == (streamed.status, streamed.error["code"])
        assert {"a": [1]} == streamed.error["metadata"]
        record = await service.kept.one()
        assert State.FAILED is record.state
        completion = await service.store.find(record.completion_id)
        assert completion is not None and completion.error is not None
        assert {"a": [1]} == completion.error["metadata"]
    else:
        assert 200 == streamed.status


@pytest.mark.parametrize("number", [202, 204, 302, 304])
async def test_a_failure_never_leaves_as_a_success(
    backend: Backend, make_service: ServiceMaker, number: int
) -> None:
    """SDKs take every 2xx for an answer."""

    async def script(exchange: Exchange) -> None:
        await exchange.raw(
            b"HTTP/1.1 %d X\r\nLocation: http://h/\r\nContent-Length: 0\r\n\r\n" % number
        )

    backend.script = script
    service = await make_service(agent_for(backend, retries=2))
    streamed = await service.stream()
    assert 502 == streamed.status
    assert streamed.error["code"].startswith("upstream_")
    assert 1 == len(backend.exchanges)


async def test_a_whole_completion_reaches_either_kind_of_client(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """As a stream for who asked for one, in one piece for who didn't."""

    async def script(exchange: Exchange) -> None:
        message = {"role": "assistant", "content": "Hello."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": "b", "object": "chat.completion", "created": 5, "model": "m"}
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        await exchange.json(200, {**body, "choices": [choice], "usage": usage})

    backend.script = script
    service = await make_service(agent_for(backend))
    streamed = await service.stream()
    assert ("Hello.", True) == (streamed.text, streamed.is_done)
    assert "stop" == streamed.chunks[-1]["choices"][0]["finish_reason"]
    plain = json.loads((await service.stream(stream=False)).body)
    assert "Hello." == plain["choices"][0]["message"]["content"]
    assert 3 == plain["usage"]["total_tokens"]
    assert [State.COMPLETED] * 2 == [record.state for record in service.kept.records]
