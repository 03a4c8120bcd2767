"""Admission: who is refused, what that costs, and what callers are told of their budgets."""

import asyncio
import re
import time
from typing import Any

import aiohttp
import openai
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from service.app import ADMISSION
from service.callers.charging import tokens_of
from service.callers.limits import Account, Budget, Ticket, duration, own_limits
from service.edge.errors import ApiError
from service.settings.access import ApiKeyConfig, AuthConfig, LimitsConfig
from service.settings.config import ServerConfig
from statemachine import ClientGone, SessionRecord
from tests.service.callers.test_auth import ANNE, BOB, api_key, sdk
from tests.service.conftest import QUESTION, Service, ServiceMaker, agent_for
from tests.service.edge.test_connections import POST, connect
from tests.service.endpoints.test_cancel import cancel, first_id
from tests.service.stage.backend import Backend, Exchange, chunk
from tests.service.stream.test_client_gone import talk_until_closed

USAGE = {"prompt_tokens": 30, "completion_tokens": 70, "total_tokens": 100}


async def say_with_usage(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.words("Hello ", "world!")
    await exchange.event(chunk({}, "stop", usage=USAGE))
    await exchange.done()


async def end_at_once(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.end()


async def refused(service: Service) -> tuple[str, dict[str, str]]:
    """Ask, be refused: the code, and the headers in small letters."""
    streamed = await service.stream()
    assert 429 == streamed.status
    return streamed.error["code"], {key.lower(): value for key, value in streamed.headers.items()}


# --- budgets --------------------------------------------------------------------------------------


def test_a_full_budget_may_be_used_at_once() -> None:
    """As many as the minute has are there at the start, and then none."""
    budget = Budget(3)
    for left in (2, 1, 0):
        assert 0 == budget.wait_seconds(100.0)
        budget.take(1, 100.0)
        assert budget.left(100.0) == left
    assert budget.wait_seconds(100.0) == pytest.approx(20)


def test_a_budget_refills_evenly() -> None:
    """Each comes back after its share of the minute; the last after the whole."""
    budget = Budget(3)
    budget.take(3, 0.0)
    assert [0, 1, 1, 2, 3, 3] == [budget.left(now) for now in (19.9, 20.0, 39.9, 40.0, 60.0, 1e9)]
    assert 45 == budget.full_in_seconds(15.0)


def test_an_overdrawn_budget_refills_its_debt_first() -> None:
    """What was used beyond the budget has to come back first."""
    budget = Budget(60)
    budget.take(90, 0.0)
    assert (0, 31) == (budget.left(0.0), budget.wait_seconds(0.0))
    assert (1, 0) == (budget.left(31.0), budget.wait_seconds(31.0))


@given(
    st.integers(1, 10**6),
    st.lists(st.floats(0, 5), min_size=1, max_size=200),
)
def test_a_minute_has_no_more_than_a_burst_and_a_refill(limit: int, pauses: list[float]) -> None:
    """However requests come, those admitted within a time are at most a full budget and what came
    back meanwhile; and who waits as long as told is admitted."""
    budget, now, admitted = Budget(limit), 0.0, 0
    for pause in pauses:
        now += pause
        wait = budget.wait_seconds(now)
        if wait:
            assert 0 == budget.left(now)
            assert 0 == budget.wait_seconds(now + wait)
        else:
            assert budget.left(now) >= 1
            budget.take(1, now)
            admitted += 1
    assert admitted <= limit + now * limit / 60 + 1


@pytest.mark.parametrize(
    ("before", "after", "left"), [(10, 20, 14), (20, 10, 4), (10, 4, 0), (10, None, None)]
)
def test_a_resized_budget_keeps_what_is_used(
    before: int, after: int | None, left: int | None
) -> None:
    """What is used stays used when the size changes."""
    budget = Budget(before)
    budget.take(6, 0.0)
    budget.resize(after, 0.0)
    assert budget.per_minute == after
    if left is None:
        assert 0 == budget.wait_seconds(0.0)
    else:
        assert budget.left(0.0) == left


def test_a_limit_that_comes_later_begins_full() -> None:
    """What was used while nobody counted doesn't count."""
    budget = Budget(None)
    budget.take(10**6, 0.0)
    budget.resize(5, 0.0)
    assert 5 == budget.left(0.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.012, "12ms"),
        (0.9995, "1s"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.999, "59.999s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (3661.5, "1h1m1.5s"),
    ],
)
def test_durations_look_like_openais_and_are_rounded_up(seconds: float, text: str) -> None:
    """Time spans look like OpenAI's, and are never told too short."""
    assert duration(seconds) == text


def test_a_ticket_counts_once() -> None:
    """However often it is closed, one place becomes free and one answer is charged."""
    account = Account(LimitsConfig(tokens_per_minute=100))
    ticket = Ticket(account, lambda: 0.0)
    assert 1 == account.streams
    for tokens in (30, 50, 0):
        ticket.close(tokens)
    assert (0, 70) == (account.streams, account.tokens.left(0.0))


def test_tools_calls_have_a_budget_of_their_own() -> None:
    """Past it a ticket says how long there will be none, takes nothing, and other budgets are as before; an
    entry's own figure wins."""
    own = ApiKeyConfig(name="a", sha256="0" * 64, tool_calls_per_minute=2)
    now = [0.0]
    account = Account(own_limits(own, LimitsConfig(tool_calls_per_minute=100)))
    ticket = Ticket(account, lambda: now[0])
    assert [0, 0] == [ticket.take_tool_call() for _ in range(2)]
    assert [30, 30] == [ticket.take_tool_call() for _ in range(2)]
    assert not account.is_limited
    now[0] = 30.0
    assert [0, 30] == [ticket.take_tool_call() for _ in range(2)]
    account.resize(LimitsConfig(), now[0])
    assert 0 == ticket.take_tool_call()


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, 0),
        ({}, 0),
        (USAGE, 100),
        ({"prompt_tokens": 3, "completion_tokens": 4}, 7),
        ({"total_tokens": "many", "prompt_tokens": 3, "completion_tokens": None}, 3),
        ({"total_tokens": -5, "completion_tokens": 4}, 4),
        ({"total_tokens": True}, 0),
        ({"total_tokens": 10**400}, 10**9),
        ({"total_tokens": 1e400}, 0),
    ],
)
async def test_odd_usage_never_fails_a_charge(service: Service, usage: Any, tokens: int) -> None:
    """Whatever a backend calls usage, charging it can't fail: the answer is being saved."""
    await service.stream()
    record: SessionRecord = evolve(await service.kept.one(), usage=usage)
    assert tokens_of(record) == tokens


# --- requests a minute ----------------------------------------------------------------------------


async def test_requests_past_the_budget_are_refused(
    make_service: ServiceMaker, backend: Backend
) -> None:
    """Past the budget the SDK raises RateLimitError, with when to come again and what is left."""
    service = await make_service(agent_for(backend), limits=LimitsConfig(requests_per_minute=2))
    async with sdk(service, "any") as client:
        ask = client.chat.completions.with_raw_response.create
        for left, stream in (("1", True), ("0", False)):
            response = await ask(model="m", messages=QUESTION, stream=stream)
            assert "2" == response.headers["x-ratelimit-limit-requests"]
            assert response.headers["x-ratelimit-remaining-requests"] == left
            assert "x-ratelimit-limit-tokens" not in response.headers
            await response.http_response.aread()
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(model="m", messages=QUESTION)
    headers = caught.value.response.headers
    assert ("rate_limited", "rate_limit_error") == (caught.value.code, caught.value.type)
    assert 28 <= int(headers["retry-after"]) <= 30
    assert "0" == headers["x-ratelimit-remaining-requests"]
    assert re.fullmatch(r"59\.\d+s|1m0s", headers["x-ratelimit-reset-requests"])
    assert "2 requests a minute" in caught.value.message
    assert 2 == len(backend.exchanges)


async def test_the_sdks_retry_is_admitted(make_service: ServiceMaker, backend: Backend) -> None:
    """The SDK's own retry waits as long as it is told, and is admitted then."""
    service = await make_service(agent_for(backend), limits=LimitsConfig(requests_per_minute=60))
    account = await used_up(service, 60)
    async with sdk(service, "any", max_retries=1) as client:
        since = time.monotonic()
        answer = await client.chat.completions.create(model="m", messages=QUESTION)
    assert "Hello world!" == answer.choices[0].message.content
    assert 0.9 < time.monotonic() - since < 5
    assert account.requests.left(time.monotonic()) <= 4


async def used_up(service: Service, requests: int) -> Account:
    """The account of the one caller, with so many requests used."""
    async with connect(service) as client:
        client.send(POST + "Content-Length: 1\r\n\r\n{")
        await client.answer()
    (account,) = service.app[ADMISSION]._accounts.values()
    account.requests.take(requests - 1, time.monotonic())
    return account


async def test_refused_requests_cost_nothing(make_service: ServiceMaker, backend: Backend) -> None:
    """Asking again and again while the budget is used up doesn't keep it used up."""
    service = await make_service(agent_for(backend), limits=LimitsConfig(requests_per_minute=1))
    await service.stream()
    waits = [int((await refused(service))[1]["retry-after"]) for _ in range(20)]
    assert max(waits) <= 60
    (account,) = service.app[ADMISSION]._accounts.values()
    assert account.requests.full_in_seconds(time.monotonic()) <= 60
    assert 0 == account.streams


async def test_an_admitted_bad_request_counts(make_service: ServiceMaker) -> None:
    """A request that was admitted counts, whatever turns out to be wrong with it."""
    service = await make_service(limits=LimitsConfig(requests_per_minute=1))
    assert 400 == (await service.stream(b"{oops")).status
    assert "rate_limited" == (await refused(service))[0]


async def test_a_caller_over_its_limit_is_refused_before_the_body_is_read(
    make_service: ServiceMaker,
) -> None:
    """Over its limit, a caller is told so while the body is still on its way."""
    service = await make_service(limits=LimitsConfig(requests_per_minute=1))
    await service.stream(b"{oops")
    async with connect(service) as client:
        client.send(POST + "Content-Length: 1000\r\n\r\n")
        status, headers, _ = await client.answer()
    assert (429, "0") == (status, headers["x-ratelimit-remaining-requests"])


async def test_other_calls_are_not_limited(make_service: ServiceMaker) -> None:
    """Only completions count: who is over the limit can still stop one and look at models."""
    service = await make_service(limits=LimitsConfig(requests_per_minute=1))
    await service.stream(b"{oops")
    async with service.http.get(f"{service.url}/v1/models") as response:
        assert 200 == response.status
        assert "x-ratelimit-limit-requests" not in response.headers
    assert 404 == (await cancel(service, "chatcmpl-none"))[0]


# --- tokens a minute ------------------------------------------------------------------------------


async def test_tokens_are_charged_when_the_answer_ends(
    make_service: ServiceMaker, backend: Backend
) -> None:
    """Prompt and answer are charged when the answer ends; an overdrawn budget refuses the next,
    until it has come back."""
    backend.script = say_with_usage
    service = await make_service(agent_for(backend), limits=LimitsConfig(tokens_per_minute=150))
    for left in ("150", "50"):
        streamed = await service.stream()
        assert streamed.is_done
        assert "150" == streamed.headers["x-ratelimit-limit-tokens"]
        assert int(streamed.headers["x-ratelimit-remaining-tokens"]) - int(left) in range(3)
    code, headers = await refused(service)
    assert "rate_limited" == code
    assert "0" == headers["x-ratelimit-remaining-tokens"]
    assert re.fullmatch(r"1m1\d\.?\d*s|1m20s", headers["x-ratelimit-reset-tokens"])
    assert 15 <= int(headers["retry-after"]) <= 21  # 50 too many of 150 a minute, and one more


async def test_uncounted_answers_are_charged_by_estimate(
    make_service: ServiceMaker, backend: Backend
) -> None:
    """An answer that nobody counted is charged by its estimate, also one that broke off."""
    backend.script = talk_until_closed
    service = await make_service(agent_for(backend), limits=LimitsConfig(tokens_per_minute=1))
    async with service.post() as response:
        await cancel(service, await first_id(response))
        await response.read()
    record = await service.kept.one()
    assert record.usage is not None
    assert record.usage["estimated"] is True
    assert tokens_of(record) > 1
    assert "rate_limited" == (await refused(service))[0]


async def test_a_failure_before_the_first_token_costs_no_tokens(
    make_service: ServiceMaker, backend: Backend
) -> None:
    """A backend that fails before its first token leaves the budget as it was."""
    backend.script = end_at_once
    service = await make_service(agent_for(backend), limits=LimitsConfig(tokens_per_minute=1))
    for _ in range(3):
        assert 502 == (await service.stream()).status


# --- streams at once ------------------------------------------------------------------------------


@pytest.fixture
async def narrow(backend: Backend, make_service: ServiceMaker) -> Service:
    """A service where each caller may have one stream at once, and Bob two."""
    return await make_service(
        agent_for(backend),
        limits=LimitsConfig(max_concurrent_streams=1),
        auth=AuthConfig((api_key("anne", ANNE), api_key("bob", BOB, max_concurrent_streams=2))),
    )


async def opened(service: Service) -> aiohttp.ClientResponse:
    response = await service.post()
    assert 200 == response.status, await response.text()
    return response


async def test_each_caller_has_its_own_streams_at_once(narrow: Service, backend: Backend) -> None:
    """Each caller has places of its own, and some have more; the next is told when to come."""
    backend.script = talk_until_closed
    streams = []
    for key, places in ((ANNE, 1), (BOB, 2)):
        narrow.key = key
        streams += [await opened(narrow) for _ in range(places)]
        code, headers = await refused(narrow)
        assert ("too_many_streams", "1") == (code, headers["retry-after"])
    for response in streams:
        response.close()


async def test_a_place_is_free_once_the_end_was_seen(narrow: Service) -> None:
    """Who has seen an answer's end has its place back at once."""
    narrow.key = ANNE
    for _ in range(20):
        streamed = await narrow.stream()
        assert (200, True) == (streamed.status, streamed.is_done)


async def settled(service: Service) -> None:
    """Wait until no stream runs and every place is free."""
    async with asyncio.timeout(5):
        while service.relays or any(a.streams for a in service.app[ADMISSION]._accounts.values()):
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_gives_its_place_back(narrow: Service, backend: Backend) -> None:
    """Leaving in the middle of an answer, or of sending the question, makes room."""
    backend.script = talk_until_closed
    narrow.key = ANNE
    (await opened(narrow)).close()
    await settled(narrow)
    async with connect(narrow) as client:
        client.send(POST + f"Authorization: Bearer {ANNE}\r\nContent-Length: 1000\r\n\r\n{{")
        account = narrow.app[ADMISSION]._accounts["anne"]
        async with asyncio.timeout(5):
            while not account.streams:
                await asyncio.sleep(0.01)
        assert "too_many_streams" == (await refused(narrow))[0]
    await settled(narrow)
    (await opened(narrow)).close()
    await settled(narrow)


async def test_an_answer_that_dies_gives_its_place_back(narrow: Service, backend: Backend) -> None:
    """Even a stream that ends without a record, which can only be a bug, holds no place for good."""
    backend.script = talk_until_closed
    narrow.key = ANNE
    response = await opened(narrow)
    (relay,) = narrow.relays
    assert relay.task is not None
    relay.task.cancel()
    await settled(narrow)
    response.close()


async def test_an_answer_that_goes_on_keeps_its_place(
    make_service: ServiceMaker, backend: Backend
) -> None:
    """Under `finish` the model works on after the client has left, and that counts."""
    backend.script = talk_until_closed
    limits = LimitsConfig(max_concurrent_streams=1)
    service = await make_service(agent_for(backend), limits=limits, client_gone=ClientGone.FINISH)
    async with service.post() as response:
        completion_id = await first_id(response)
        response.close()
    async with asyncio.timeout(5):
        while service.relays[0].session.attached:
            await asyncio.sleep(0.01)
    assert "too_many_streams" == (await refused(service))[0]
    await cancel(service, completion_id)
    (await opened(service)).close()


@pytest.mark.parametrize(
    "body", [b"{oops", b'{"model": "m", "messages": []}'], ids=["no JSON", "no messages"]
)
async def test_a_bad_request_gives_its_place_back(narrow: Service, body: bytes) -> None:
    """What is refused after all holds no place."""
    narrow.key = ANNE
    for _ in range(3):
        assert 400 == (await narrow.stream(body)).status
    assert (await narrow.stream()).is_done


async def test_a_full_service_refuses_without_charging(
    make_service: ServiceMaker, backend: Backend
) -> None:
    """The service's own limit refuses without using anything of the caller's up."""
    backend.script = talk_until_closed
    service = await make_service(
        agent_for(backend),
        server=ServerConfig(max_concurrent_streams=1),
        limits=LimitsConfig(requests_per_minute=10),
    )
    first = await opened(service)
    for _ in range(20):
        assert "too_many_streams" == (await refused(service))[0]
    (account,) = service.app[ADMISSION]._accounts.values()
    assert 9 == account.requests.left(time.monotonic())
    first.close()


# --- changing limits ------------------------------------------------------------------------------


async def test_replaced_limits_hold_for_the_next_request(narrow: Service, backend: Backend) -> None:
    """New limits hold for the next request; what runs goes on, and is counted still."""
    backend.script = talk_until_closed
    narrow.key = ANNE
    first = await opened(narrow)
    anne = api_key("anne", ANNE, max_concurrent_streams=2)
    narrow.app[ADMISSION].replace(LimitsConfig(requests_per_minute=10), [anne])
    second = await opened(narrow)
    code, headers = await refused(narrow)
    assert ("too_many_streams", "9") == (code, headers["x-ratelimit-remaining-requests"])
    narrow.app[ADMISSION].replace(LimitsConfig(max_concurrent_streams=1), [])
    assert "too_many_streams" == (await refused(narrow))[0]
    narrow.app[ADMISSION].replace(LimitsConfig(), [])
    third = await opened(narrow)
    for response in (first, second, third):
        response.close()


async def test_no_limits_by_default(service: Service) -> None:
    """Unless limits are set, nobody is counted and no header speaks of them."""
    streamed = await service.stream()
    assert not [name for name in streamed.headers if "ratelimit" in name.lower()]


def test_a_refusal_costs_microseconds() -> None:
    """Refusing touches nothing but memory: thousands take no time to speak of."""
    account = Account(LimitsConfig(requests_per_minute=1))
    account.requests.take(1, 0.0)
    since = time.perf_counter()
    for _ in range(1000):
        with pytest.raises(ApiError):
            account.check(0.0)
    assert time.perf_counter() - since < 1


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (LimitsConfig(1, None), "Your one request a minute is used up; "),
        (LimitsConfig(2, None), "Your 2 requests a minute are used up; "),
        (LimitsConfig(None, 1), "Your one token a minute is used up; "),
        (LimitsConfig(None, 2), "Your 2 tokens a minute are used up; "),
        (LimitsConfig(max_concurrent_streams=1), "The one stream that you may have at once is "),
        (LimitsConfig(max_concurrent_streams=2), "All 2 streams that you may have at once are "),
    ],
)
def test_a_refusal_is_good_english(limits: LimitsConfig, said: str) -> None:
    """One of a thing is not several."""
    account = Account(limits)
    account.requests.take(2, 0.0)
    account.tokens.take(2, 0.0)
    account.streams = 2
    with pytest.raises(ApiError) as caught:
        account.check(0.0)
    assert caught.value.failure.message.startswith(said)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (1, "The one stream of this service is taken; please try again."),
        (2, "All 2 streams of this service are taken; please try again."),
    ],
)
async def test_so_is_that_of_the_service(
    backend: Backend, make_service: ServiceMaker, limit: int, said: str
) -> None:
    """The same holds for the places of all callers together."""
    backend.script = talk_until_closed
    server = ServerConfig(max_concurrent_streams=limit)
    service = await make_service(agent_for(backend), server=server)
    streams = [await opened(service) for _ in range(limit)]
    assert said == (await service.stream()).error["message"]
    for response in streams:
        response.close()
