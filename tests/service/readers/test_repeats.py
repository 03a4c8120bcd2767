"""Asking twice with an `Idempotency-Key`: one answer, one call of the model."""

import asyncio
from typing import Any

import pytest

from db.claims import Claim, ClaimsUnavailable, SqliteClaims
from service.settings.access import AuthConfig, LimitsConfig
from service.settings.readers import IdempotencyConfig
from statemachine import State
from tests.service.callers.test_auth import api_key
from tests.service.conftest import Service, ServiceMaker, agent_for
from tests.service.readers.conftest import Told, asked, until
from tests.service.stage.backend import Backend

KEY = {"Idempotency-Key": "k-1"}


async def test_a_repeat_of_a_running_answer_reads_along(service: Service, told: Told) -> None:
    """From the first chunk, to the same end, under the same id."""
    told.say("Hello", " world")
    async with asked(service, headers=KEY) as first:
        await first.until(2)
        async with asked(service, headers=KEY) as second:
            await second.until(2)
            told.say("!")
            told.do("finish")
            await asyncio.gather(first.whole(), second.whole())
    assert first.events == second.events
    assert first.completion_id == second.completion_id
    assert "Idempotency-Replayed" not in first.response.headers
    assert "true" == second.response.headers["Idempotency-Replayed"]
    assert 1 == told.asked


@pytest.mark.parametrize("is_over", [False, True])
async def test_a_plain_repeat_gets_the_object(service: Service, told: Told, is_over: bool) -> None:
    """It waits for the end, or there is one; and the other way round."""
    told.say("Hello", " world")
    if is_over:
        told.do("finish")
    async with asked(service, headers=KEY) as first:
        await (first.whole() if is_over else first.until(2))
        if is_over:
            await until(lambda: service.kept.records and not service.relays)

        async def repeat() -> Any:
            async with asked(service, headers=KEY, stream=False) as second:
                return second.completion_id, (await second.whole()).json()

        second = asyncio.create_task(repeat())
        if not is_over:
            (relay,) = service.relays
            await until(lambda: relay.readers.count == 2)
            told.do("finish")
            await first.whole()
        completion_id, body = await second
    assert first.completion_id == completion_id == body["id"]
    assert "Hello world" == body["choices"][0]["message"]["content"]
    assert ("stop", "chat.completion") == (body["choices"][0]["finish_reason"], body["object"])
    assert 1 == told.asked


async def test_a_repeat_of_a_plain_request_may_stream(service: Service, told: Told) -> None:
    """The form isn't part of what was asked."""
    told.say("Hello")
    told.do("finish")
    async with asked(service, headers=KEY, stream=False) as first:
        plain = (await first.whole()).json()
    async with asked(service, headers=KEY, stream_options={"include_usage": True}) as second:
        await second.whole()
    assert 3 == len(second.chunks)
    assert plain["id"] == second.completion_id
    assert 1 == told.asked


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeat_of_a_broken_answer_gets_its_error(
    service: Service, told: Told, stream: bool, is_stored: bool
) -> None:
    """And what there is of it; never half an object passed off as whole."""
    told.say("Hello", " wor")
    told.do("cut")
    async with asked(service, headers=KEY) as first:
        await first.whole()
    if is_stored:
        await until(lambda: service.kept.records and not service.relays)
    async with asked(service, headers=KEY, stream=stream) as second:
        await second.whole()
    assert first.completion_id == second.completion_id
    assert 1 == told.asked
    if stream:
        assert first.events == second.events
        return
    assert 502 == second.response.status
    assert "false" == second.response.headers["x-should-retry"]
    body = second.json()
    assert "upstream_incomplete" == body["error"]["code"]
    assert "Hello wor" == body["completion"]["choices"][0]["message"]["content"]
    assert "failed" == body["completion"]["state"]


@pytest.mark.parametrize("is_stored", [False, True])
async def test_what_ended_before_its_first_token_frees_the_key(
    service: Service, told: Told, is_stored: bool
) -> None:
    """The SDKs' repeats of a 5xx are real ones."""
    told.do("cut")
    async with asked(service, headers=KEY) as first:
        assert 502 == first.response.status
    if is_stored:
        await until(lambda: service.kept.records and not service.relays)
    told.say("Hello")
    told.do("finish")
    async with asked(service, headers=KEY) as second:
        await second.whole()
    assert first.completion_id != second.completion_id
    assert "Idempotency-Replayed" not in second.response.headers
    assert 2 == told.asked
    async with asked(service, headers=KEY) as third:
        assert second.events == (await third.whole()).events
    assert 2 == told.asked


@pytest.mark.parametrize("is_over", [False, True])
async def test_another_body_is_a_mismatch(service: Service, told: Told, is_over: bool) -> None:
    """Whether the first runs or has ended."""
    told.say("Hello")
    if is_over:
        told.do("finish")
    async with asked(service, headers=KEY) as first:
        await (first.whole() if is_over else first.until(1))
        async with asked(service, headers=KEY, temperature=0.5) as second:
            assert 422 == second.response.status
            error = (await second.whole()).json()["error"]
            assert ("idempotency_mismatch", "Idempotency-Key") == (error["code"], error["param"])
        if not is_over:
            told.do("finish")
            await first.whole()
    assert 1 == told.asked


async def test_another_body_may_have_an_answer_of_its_own(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """`on_mismatch: run`, as Open WebUI's tool rounds need it; its repeats find it."""
    service = await make_service(
        agent_for(backend), idempotency=IdempotencyConfig(on_mismatch="run")
    )
    seen: list[Any] = []
    for temperature in (0.1, 0.2, 0.1, 0.2):
        if len(seen) < 2:
            told.say(f"{temperature}")
            told.do("finish")
        async with asked(service, headers=KEY, temperature=temperature) as response:
            seen.append((await response.whole()).events)
    assert 2 == told.asked
    assert seen[:2] == seen[2:]
    assert seen[0] != seen[1]


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
async def test_a_key_that_is_none_is_refused(service: Service, told: Told, key: str) -> None:
    """In OpenAI's shape, naming the header."""
    async with asked(service, headers={"Idempotency-Key": key}) as response:
        assert 400 == response.response.status
        assert "Idempotency-Key" == (await response.whole()).json()["error"]["param"]
    assert 0 == told.asked


async def test_twenty_at_once_ask_the_model_once(service: Service, told: Told) -> None:
    """Exactly one of them is the first."""
    told.say("Hello")
    told.do("finish")

    async def ask() -> Any:
        async with asked(service, headers=KEY) as response:
            await response.whole()
            return response.completion_id, response.events, response.response.headers

    answers = await asyncio.gather(*[ask() for _ in range(20)])
    assert 1 == told.asked
    assert 1 == len({completion_id for completion_id, _, _ in answers})
    assert 1 == len({tuple(events) for _, events, _ in answers})
    assert 19 == sum("Idempotency-Replayed" in headers for _, _, headers in answers)


async def test_keys_belong_to_their_owners(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """The same key of somebody else is another one."""
    keys = ("sk-ann-0123456789", "sk-bob-0123456789")
    auth = AuthConfig(api_keys=(api_key("ann", keys[0]), api_key("bob", keys[1])))
    service = await make_service(agent_for(backend), auth=auth)
    ids = []
    for service.key in keys:
        told.say("Hello")
        told.do("finish")
        async with asked(service, headers=KEY) as response:
            ids.append((await response.whole()).completion_id)
    assert 2 == told.asked == len(set(ids))


async def test_a_client_with_a_key_is_waited_for(service: Service, told: Told) -> None:
    """It has said that it will ask again."""
    told.say("Hello")
    async with asked(service, headers=KEY) as first:
        await first.until(1)
        (relay,) = service.relays
        first.leave()
    await until(lambda: not relay.session.attached)
    told.say(" world")
    async with asked(service, headers=KEY) as second:
        await second.until(2)
        told.do("finish")
        await second.whole()
    record = await service.kept.one()
    assert State.COMPLETED is record.state
    assert 1 == told.asked


async def test_a_repeat_by_last_event_id_resumes(service: Service, told: Told) -> None:
    """What `fetch-event-source` and its like do by themselves."""
    told.say("Hello", " world")
    async with asked(service, headers={**KEY, "Last-Event-ID": ""}) as first:
        await first.until(2)
        first.leave()
    async with asked(service, headers={**KEY, "Last-Event-ID": "1"}) as second:
        await second.until(1)
        told.do("finish")
        await second.whole()
    assert b"id: 2" == second.events[0].partition(b"\n")[0]
    assert first.events[1:2] == second.events[:1]


async def test_a_repeat_needs_no_stream_and_no_tokens(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """Its first request's stream is the only one that its caller may have. It counts as a request."""
    limits = LimitsConfig(max_concurrent_streams=1, requests_per_minute=3)
    service = await make_service(agent_for(backend), limits=limits)
    told.say("Hello")
    async with asked(service, headers=KEY) as first:
        await first.until(1)
        async with asked(service, headers=KEY) as second:
            await second.until(1)
            async with asked(service, headers={"Idempotency-Key": "other"}) as third:
                assert 429 == third.response.status
                assert "too_many_streams" == (await third.whole()).json()["error"]["code"]
            async with asked(service, headers=KEY) as fourth:
                assert 429 == fourth.response.status
                assert "rate_limited" == (await fourth.whole()).json()["error"]["code"]
            told.do("finish")
            await asyncio.gather(first.whole(), second.whole())


async def test_a_refused_request_frees_its_key(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """No model was asked."""
    service = await make_service(agent_for(backend, models=("known",)))
    async with asked(service, headers=KEY, model="unknown") as first:
        assert 404 == first.response.status
        assert "x-completion-id" in first.response.headers
    told.say("Hello")
    told.do("finish")
    async with asked(service, headers=KEY, model="known") as second:
        assert 200 == second.response.status
        await second.whole()


async def test_a_hidden_answer_is_repeated_to_whoever_has_the_key(
    service: Service, told: Told
) -> None:
    """`store: false` hides it from lists and ids, not from its own request."""
    told.say("Hello")
    told.do("finish")
    async with asked(service, headers=KEY, store=False) as first:
        await first.whole()
    await until(lambda: service.kept.records and not service.relays)
    async with asked(service, headers=KEY, store=False) as second:
        assert first.events == (await second.whole()).events
    assert 1 == told.asked


async def test_a_deleted_answer_frees_the_key(service: Service, told: Told) -> None:
    """There is nothing to repeat."""
    told.say("Hello")
    told.do("finish")
    async with asked(service, headers=KEY) as first:
        await first.whole()
    await until(lambda: service.kept.records and not service.relays)
    url = f"{service.url}/v1/chat/completions/{first.completion_id}"
    async with service.http.delete(url) as response:
        assert 200 == response.status
    told.say("Again")
    told.do("finish")
    async with asked(service, headers=KEY) as second:
        await second.whole()
    assert 2 == told.asked


async def test_every_answer_names_its_completion(service: Service, told: Told) -> None:
    """Errors after admission included."""
    async with asked(service, messages="none") as refused:
        assert 400 == refused.response.status
        assert refused.completion_id.startswith("chatcmpl-")
    told.say("Hello")
    told.do("finish")
    async with asked(service, stream=False) as plain:
        assert plain.completion_id == (await plain.whole()).json()["id"]


async def test_no_repeat_overtakes_the_first_request(
    service: Service, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes when the key is claimed, and the model isn't asked yet, waits for it."""
    take, gate, taken = SqliteClaims.take, asyncio.Event(), list[str]()

    async def slowly(self: SqliteClaims, claim: Claim, **options: Any) -> Claim:
        held = await take(self, claim, **options)
        taken.append(claim.completion_id)
        if len(taken) == 1:
            await gate.wait()
        return held

    monkeypatch.setattr(SqliteClaims, "take", slowly)
    told.say("Hello")
    told.do("finish")

    async def ask() -> str:
        async with asked(service, headers=KEY) as response:
            await response.whole()
            return response.completion_id

    first = asyncio.create_task(ask())
    await until(lambda: len(taken) == 1)
    second = asyncio.create_task(ask())
    await until(lambda: len(taken) == 2)
    await asyncio.sleep(0.2)
    gate.set()
    assert taken[0] == await first == await second
    assert 1 == told.asked


async def test_a_claim_whose_request_went_away_is_free(
    service: Service, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client left before the model was asked."""
    take, taken = SqliteClaims.take, list[str]()

    async def for_nobody(self: SqliteClaims, claim: Claim, **options: Any) -> Claim:
        held = await take(self, claim, **options)
        taken.append(claim.completion_id)
        if len(taken) == 1:
            await asyncio.Event().wait()
        return held

    monkeypatch.setattr(SqliteClaims, "take", for_nobody)

    async def ask() -> Any:
        async with asked(service, headers=KEY) as response:
            return (await response.whole()).completion_id

    first = asyncio.create_task(ask())
    await until(lambda: taken)
    first.cancel()
    await asyncio.wait([first])
    told.say("Hello")
    told.do("finish")
    assert taken[0] != await ask()
    assert 1 == told.asked


async def test_claims_that_cannot_be_kept_are_said(
    service: Service, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No model is asked whose answer could be asked for twice."""

    async def unable(self: SqliteClaims, claim: Claim, **options: Any) -> Claim:
        raise ClaimsUnavailable("The disk is full: /secret/path")

    monkeypatch.setattr(SqliteClaims, "take", unable)
    async with asked(service, headers=KEY) as response:
        assert 503 == response.response.status
        error = (await response.whole()).json()["error"]
    assert "journal_full" == error["code"]
    assert "/secret/path" not in error["message"]
    assert 0 == told.asked
