"""Readers of an answer that is over: the same bytes from any position, for as long as it is stored."""

import asyncio
import json
from typing import Any

import pytest
from attrs import evolve

from db.store import StoreUnavailable
from service.app import STREAMS
from service.settings.access import AuthConfig
from service.settings.readers import ReadersConfig
from tests.service.callers.test_auth import api_key
from tests.service.conftest import Kept, Service, ServiceMaker, agent_for
from tests.service.readers.conftest import Read, Told, asked, reading, until
from tests.service.stage.backend import Backend


async def ended(service: Service, told: Told, end: str = "finish", **fields: Any) -> Read:
    """What the first client got of an answer that is over and committed."""
    told.say("Hello", " world", "!")
    told.do(end)
    async with asked(service, **fields) as first:
        await first.whole()
    await until(lambda: any(r.completion_id == first.completion_id for r in service.kept.records))
    await until(lambda: not service.relays)
    return first


@pytest.mark.parametrize("end", ["finish", "cut", "error"])
async def test_any_position_of_an_ended_answer_is_sent_again(
    service: Service, told: Told, end: str
) -> None:
    """With its true end, whatever that was."""
    first = await ended(service, told, end)
    count = len(first.chunks)
    for position in range(count + 1):
        async with reading(service, first.completion_id, starting_after=position) as again:
            await again.whole()
        assert first.events[position:] == again.events
    async with reading(service, first.completion_id, starting_after=count + 1) as again:
        assert 400 == again.response.status


async def test_a_stopped_answer_just_ends_later_too(service: Service, told: Told) -> None:
    """As its first client saw it."""
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        url = f"{service.url}/v1/chat/completions/{first.completion_id}/cancel"
        async with service.http.post(url) as response:
            assert 200 == response.status
        await first.whole()
    async with reading(service, first.completion_id) as again:
        assert first.events == (await again.whole()).events


async def test_usage_and_its_position(service: Service, told: Told) -> None:
    """Whoever asked for usage has one chunk more, and may have had it already."""
    first = await ended(service, told, stream_options={"include_usage": True})
    count = len(first.chunks)
    for position in range(count + 1):
        async with reading(
            service, first.completion_id, starting_after=position, include_usage="true"
        ) as again:
            assert first.events[position:] == (await again.whole()).events
    async with reading(service, first.completion_id, starting_after=count) as again:
        assert 400 == again.response.status


async def test_ids_of_a_stored_answer(service: Service, told: Told) -> None:
    """Counted from the position that the header names."""
    first = await ended(service, told, headers={"Last-Event-ID": "0"})
    async with reading(service, first.completion_id, headers={"Last-Event-ID": "2"}) as again:
        assert first.events[2:] == (await again.whole()).events


async def test_a_refused_answer_is_a_status_later_too(service: Service, told: Told) -> None:
    """Nothing of it was ever sent."""
    told.do("cut")
    async with asked(service) as first:
        assert 502 == first.response.status
    await until(lambda: not service.relays)
    async with reading(service, first.completion_id) as again:
        assert 502 == again.response.status
        assert "upstream_incomplete" == (await again.whole()).json()["error"]["code"]
        assert "false" == again.response.headers["x-should-retry"]


async def test_a_plain_answer_can_be_read_as_a_stream(service: Service, told: Told) -> None:
    """In the chunks that it came in."""
    told.say("Hello", " world")
    told.do("finish")
    async with asked(service, stream=False) as first:
        plain = (await first.whole()).json()
    async with reading(service, first.completion_id) as again:
        await again.whole()
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in again.chunks]
    assert [{"content": "Hello"}, {"content": " world"}, {}] == deltas
    assert plain["id"] == again.completion_id


class WithoutTapes(Kept):
    """A store whose rows are those of before there were tapes."""

    async def save(self, records: Any) -> None:
        await super().save([evolve(record, tape=None) for record in records])


async def test_of_an_answer_without_a_tape_only_the_whole_is_left(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """From the start; any other position is gone, and said to be."""
    service = await make_service(agent_for(backend), store=WithoutTapes())
    first = await ended(service, told)
    async with reading(service, first.completion_id) as again:
        await again.whole()
    (chunk,) = [json.loads(event[6:]) for event in again.chunks]
    assert "Hello world!" == chunk["choices"][0]["delta"]["content"]
    assert "stop" == chunk["choices"][0]["finish_reason"]
    assert first.completion_id == chunk["id"]
    assert b"data: [DONE]" == again.events[-1]
    async with reading(service, first.completion_id, starting_after=1) as again:
        assert 410 == again.response.status
        assert "position_expired" == (await again.whole()).json()["error"]["code"]


async def test_a_hidden_answer_can_be_read_for_a_while(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """`store: false`: while it runs, and for `readers.hidden_seconds`; never as an object after."""
    service = await make_service(agent_for(backend), readers=ReadersConfig(hidden_seconds=0.5))
    first = await ended(service, told, store=False)
    async with reading(service, first.completion_id) as again:
        assert first.events == (await again.whole()).events
    async with service.http.get(
        f"{service.url}/v1/chat/completions/{first.completion_id}"
    ) as response:
        assert 404 == response.status
    await asyncio.sleep(0.6)
    async with reading(service, first.completion_id) as again:
        assert 404 == again.response.status


class Away(Kept):
    """A store that can't be reached until a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = True

    async def save(self, records: Any) -> None:
        if self.is_away:
            raise StoreUnavailable("It is away")
        await super().save(records)

    async def replayable(self, *args: Any, **options: Any) -> Any:
        if self.is_away:
            raise StoreUnavailable("It is away")
        return await super().replayable(*args, **options)


async def test_an_answer_can_be_read_before_it_is_committed(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """The database being away takes no reader's answer away."""
    store = Away()
    service = await make_service(agent_for(backend), store=store)
    told.say("Hello", " world")
    told.do("finish")
    async with asked(service) as first:
        await first.whole()
    await until(lambda: not service.relays)
    async with reading(service, first.completion_id, starting_after=1) as again:
        assert first.events[1:] == (await again.whole()).events
    async with reading(service, "chatcmpl-other") as other:
        assert 503 == other.response.status
    shown = await retrieved(service, first.completion_id)
    assert ("completed", "Hello world") == (
        shown["state"],
        shown["choices"][0]["message"]["content"],
    )
    store.is_away = False
    await until(lambda: store.records)
    await until(lambda: not service.app[STREAMS].unsaved.is_known("anonymous", first.completion_id))
    assert shown == await retrieved(service, first.completion_id)
    async with reading(service, first.completion_id, starting_after=1) as again:
        assert first.events[1:] == (await again.whole()).events


async def retrieved(service: Service, completion_id: str) -> Any:
    async with service.http.get(f"{service.url}/v1/chat/completions/{completion_id}") as response:
        return await response.json()


async def test_other_owners_answers_are_not_there(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """Neither while they run nor after."""
    config = AuthConfig(
        api_keys=(api_key("ann", "sk-ann-0123456789"), api_key("bob", "sk-bob-0123456789"))
    )
    service = await make_service(agent_for(backend), auth=config)
    service.key = "sk-ann-0123456789"
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        async with reading(service, first.completion_id, key="sk-bob-0123456789") as foreign:
            assert 404 == foreign.response.status
        told.do("finish")
        await first.whole()
    await until(lambda: not service.relays)
    for key, status in (("sk-bob-0123456789", 404), ("sk-ann-0123456789", 200)):
        async with reading(service, first.completion_id, key=key) as later:
            assert status == later.response.status


async def test_a_stored_answer_is_in_memory_once_and_has_so_many_readers(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """However slowly they read it; when one has gone there is room again."""
    service = await make_service(agent_for(backend), readers=ReadersConfig(max_per_completion=2))
    told.say(*["x" * 100_000] * 100)
    told.do("finish")
    async with asked(service, stream=False) as first:
        await first.whole()
    await until(lambda: service.kept.records and not service.relays)
    async with (
        reading(service, first.completion_id) as one,
        reading(service, first.completion_id, starting_after=1) as two,
    ):
        assert (200, 200) == (one.response.status, two.response.status)
        async with reading(service, first.completion_id) as three:
            assert 429 == three.response.status
            assert "too_many_readers" == (await three.whole()).json()["error"]["code"]
        assert 101 == len((await one.whole()).chunks)
        async with reading(service, first.completion_id) as four:
            assert 200 == four.response.status
