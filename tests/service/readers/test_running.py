"""Readers of an answer that runs: from any position, several at once, to its true end."""

import asyncio
import json
from typing import Any

import pytest

from service.app import STREAMS
from service.settings.config import JournalConfig, SseConfig
from service.settings.readers import ReadersConfig
from statemachine import ClientGone, State
from tests.service.conftest import Service, ServiceMaker, agent_for
from tests.service.readers.conftest import Told, asked, reading, until
from tests.service.stage.backend import Backend


async def test_a_reader_gets_what_the_first_client_got(service: Service, told: Told) -> None:
    """From the start and from the middle, byte by byte, then live, then the same end."""
    told.say("Hello", " world", ", how")
    async with asked(service) as first:
        await first.until(3)
        async with (
            reading(service, first.completion_id) as second,
            reading(service, first.completion_id, starting_after=2) as third,
        ):
            await second.until(3)
            await third.until(1)
            told.say(" are", " you", "?")
            told.do("finish")
            await asyncio.gather(first.whole(), second.whole(), third.whole())
    assert 7 == len(first.chunks)
    assert first.events == second.events
    assert first.events[2:] == third.events
    assert b"data: [DONE]" == first.events[-1]
    assert first.completion_id == second.completion_id == third.completion_id


async def test_a_reader_that_has_had_everything_waits_for_more(
    service: Service, told: Told
) -> None:
    """Its position is the end of what has come."""
    told.say("a", "b")
    async with asked(service) as first:
        await first.until(2)
        async with reading(service, first.completion_id, starting_after=2) as second:
            assert 200 == second.response.status
            told.say("c")
            await second.until(1)
            told.do("finish")
            await asyncio.gather(first.whole(), second.whole())
    assert first.events[2:] == second.events


@pytest.mark.parametrize("end", ["cut", "error"])
async def test_every_reader_is_told_the_same_failure(
    service: Service, told: Told, end: str
) -> None:
    """As an event where something was sent."""
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        async with reading(service, first.completion_id) as second:
            await second.until(1)
            told.do(end)
            await asyncio.gather(first.whole(), second.whole())
    assert first.events == second.events
    assert "error" in json.loads(first.events[-1][6:])


async def test_a_failure_before_the_first_chunk_is_a_status_for_everybody(
    service: Service, told: Told
) -> None:
    """Nobody has had anything, so nobody is told by an event."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:

        async def ask_first() -> int:
            async with asked(service) as first:
                return first.response.status

        first = group.create_task(ask_first())
        await until(lambda: told.asked == 1)
        (relay,) = service.relays
        completion_id = relay.session.request.completion_id

        async def read() -> tuple[int, Any]:
            async with reading(service, completion_id) as second:
                return second.response.status, (await second.whole()).json()

        second = group.create_task(read())
        await until(lambda: relay.readers.count == 2)
        told.do("cut")
    status, body = second.result()
    assert first.result() == status == 502
    assert "upstream_incomplete" == body["error"]["code"]


async def test_a_stopped_answer_just_ends_for_every_reader(service: Service, told: Told) -> None:
    """Without `[DONE]`."""
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        async with reading(service, first.completion_id) as second:
            await second.until(1)
            url = f"{service.url}/v1/chat/completions/{first.completion_id}/cancel"
            async with service.http.post(url) as response:
                assert (await response.json())["cancelled"]
            await asyncio.gather(first.whole(), second.whole())
    assert 1 == len(first.events) == len(second.events)


async def test_usage_is_for_readers_that_ask_for_it(service: Service, told: Told) -> None:
    """In a chunk of its own, last, and as a null in the others, whatever the first client wanted."""
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        async with reading(service, first.completion_id, include_usage="true") as second:
            await second.until(1)
            told.say("b")
            told.do("finish")
            await asyncio.gather(first.whole(), second.whole())
    payloads = [json.loads(event[6:]) for event in second.events[:-1]]
    assert [None] * 3 == [payload["usage"] for payload in payloads[:-1]]
    assert [] == payloads[-1]["choices"]
    assert payloads[-1]["usage"]["completion_tokens"] > 0
    assert not any(b"usage" in event for event in first.events)


async def test_ids_are_for_readers_that_ask_for_them(service: Service, told: Told) -> None:
    """By a header, on a POST as on a GET; the id is the position after the event."""
    told.say("a", "b")
    async with asked(service, headers={"Last-Event-ID": ""}) as first:
        await first.until(2)
        async with (
            reading(service, first.completion_id, headers={"Last-Event-ID": "1"}) as second,
            reading(service, first.completion_id) as third,
        ):
            await asyncio.gather(second.until(1), third.until(2))
            told.say("c")
            told.do("finish")
            await asyncio.gather(first.whole(), second.whole(), third.whole())
    ids = [event.partition(b"\n")[0] for event in first.events]
    assert [b"id: 1", b"id: 2", b"id: 3", b"id: 4", b"id: 4"] == ids
    assert first.events[1:] == second.events
    assert [event.partition(b"\n")[2] for event in first.events] == third.events


@pytest.mark.parametrize(
    ("query", "headers", "param"),
    [
        ({"starting_after": "-1"}, {}, "starting_after"),
        ({"starting_after": "one"}, {}, "starting_after"),
        ({"include_usage": "maybe"}, {}, "include_usage"),
        ({}, {"Last-Event-ID": "x"}, "Last-Event-ID"),
        ({"starting_after": "1"}, {"Last-Event-ID": "2"}, "starting_after"),
    ],
)
async def test_positions_that_are_none_are_refused(
    service: Service, told: Told, query: dict[str, str], headers: dict[str, str], param: str
) -> None:
    """In OpenAI's shape, naming the parameter."""
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        async with reading(service, first.completion_id, **query, headers=headers) as second:
            assert 400 == second.response.status
            assert param == (await second.whole()).json()["error"]["param"]
        told.do("finish")
        await first.whole()


async def test_a_position_ahead_of_a_running_answer_is_refused(
    service: Service, told: Told
) -> None:
    """Never a silent gap, and never a repeat of what the client has had; nor on a new answer."""
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        async with reading(service, first.completion_id, starting_after=2) as second:
            assert 409 == second.response.status
            assert "position_ahead" == (await second.whole()).json()["error"]["code"]
            assert "false" == second.response.headers["x-should-retry"]
        told.do("finish")
        await first.whole()
    async with asked(service, headers={"Last-Event-ID": "3"}) as another:
        assert 409 == another.response.status
    assert 1 == told.asked


async def test_the_last_reader_keeps_the_answer_running(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """The first client may go; when the last one does, the model is stopped."""
    service = await make_service(agent_for(backend))
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        async with reading(service, first.completion_id) as second:
            await second.until(1)
            (relay,) = service.relays
            first.leave()
            await until(lambda: relay.readers.count == 1)
            told.say("b", "c")
            await second.until(3)
            assert State.STREAMING is relay.session.state
        record = await service.kept.one()
    assert State.CLIENT_GONE is record.state
    assert "abc" == record.choices[0].message["content"]
    assert record.client_left_at is not None
    await asyncio.wait_for(told.left.wait(), 5)


async def test_under_wait_whoever_comes_back_in_time_finds_it_running(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """With every word that came meanwhile."""
    service = await make_service(
        agent_for(backend), client_gone=ClientGone.WAIT, client_gone_wait_seconds=5.0
    )
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        (relay,) = service.relays
        first.leave()
        await until(lambda: not relay.session.attached)
        told.say("b", "c")
        await until(lambda: relay.session.transcript.tape.count == 3)
        async with reading(service, first.completion_id, starting_after=1) as second:
            await second.until(2)
            assert relay.session.attached
            told.do("finish")
            await second.whole()
    record = await service.kept.one()
    assert (State.COMPLETED, None) == (record.state, record.client_left_at)
    assert b"data: [DONE]" == second.events[-1]


async def test_under_wait_nobody_in_time_ends_it(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """Also where the model is silent and the client's request was a plain one without pings."""
    service = await make_service(
        agent_for(backend), client_gone=ClientGone.WAIT, client_gone_wait_seconds=0.3
    )
    told.say("a")
    async with asked(service, headers={"X-Client-Gone": "wait"}) as first:
        await first.until(1)
        first.leave()
    record = await service.kept.one()
    assert (State.CLIENT_GONE, "client_left") == (
        record.state,
        record.failure and record.failure.code,
    )
    await asyncio.wait_for(told.left.wait(), 5)


async def test_a_header_says_what_its_clients_leaving_means(service: Service, told: Told) -> None:
    """`finish` for this one, where the service cancels."""
    told.say("a")
    async with asked(service, headers={"X-Client-Gone": "finish"}) as first:
        await first.until(1)
        (relay,) = service.relays
        first.leave()
        await until(lambda: not relay.session.attached)
        told.say("b")
        told.do("finish")
    record = await service.kept.one()
    assert (State.COMPLETED, "ab") == (record.state, record.choices[0].message["content"])


async def test_readers_are_pinged(make_service: ServiceMaker, backend: Backend, told: Told) -> None:
    """Each at its own interval, before the first chunk and after."""
    sse = SseConfig(keep_alive_interval_seconds=0.2)
    service = await make_service(agent_for(backend), sse=sse)
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        async with reading(service, first.completion_id) as second:
            await second.until(1)
            await asyncio.sleep(0.7)
            told.do("finish")
            await asyncio.gather(first.whole(), second.whole())
    assert 2 <= second.seen.count(b": keep-alive\n") <= 4
    assert first.events == second.events


async def test_only_so_many_may_read_at_once(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """The first client is one of them."""
    service = await make_service(agent_for(backend), readers=ReadersConfig(max_per_completion=2))
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        async with reading(service, first.completion_id) as second:
            await second.until(1)
            async with reading(service, first.completion_id) as third:
                assert 429 == third.response.status
                assert "too_many_readers" == (await third.whole()).json()["error"]["code"]
        (relay,) = service.relays
        await until(lambda: relay.readers.count == 1)
        async with reading(service, first.completion_id) as fourth:
            assert 200 == fourth.response.status
            told.do("finish")
            await asyncio.gather(first.whole(), fourth.whole())


async def test_a_reader_that_takes_nothing_holds_nobody_up(
    make_service: ServiceMaker, backend: Backend, told: Told
) -> None:
    """The others read on, and it is cut off like any client."""
    sse = SseConfig(send_timeout_seconds=0.5)
    service = await make_service(agent_for(backend), sse=sse)
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        async with reading(service, first.completion_id) as stuck:
            await stuck.until(1)
            stuck.response.connection.transport.pause_reading()  # type: ignore[union-attr]
            (relay,) = service.relays
            for _ in range(100):
                told.say("x" * 100_000)
            await first.until(101)
            await until(lambda: relay.readers.count == 1)
            told.do("finish")
            await first.whole()
    record = await service.kept.one()
    assert State.COMPLETED is record.state


async def test_readers_are_shown_what_the_disk_has(
    make_service: ServiceMaker, backend: Backend, told: Told, tmp_path: Any
) -> None:
    """With `fsync: always` they wait for it as the first client does."""
    journal = JournalConfig(directory=str(tmp_path / "synced"), fsync="always")
    service = await make_service(agent_for(backend), journal=journal)
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        async with reading(service, first.completion_id) as second:
            told.say("b", "c")
            await second.until(3)
            told.do("finish")
            await asyncio.gather(first.whole(), second.whole())
    assert first.events == second.events


async def test_a_drain_tells_every_reader(service: Service, told: Told) -> None:
    """With the error event."""
    told.say("a")
    async with asked(service) as first:
        await first.until(1)
        async with reading(service, first.completion_id) as second:
            await second.until(1)
            await service.app[STREAMS].drain(0.1)
            await asyncio.gather(first.whole(), second.whole())
    assert first.events == second.events
    assert "draining" == json.loads(second.events[-1][6:])["error"]["code"]


async def test_a_running_answer_is_shown_as_far_as_it_has_come(
    service: Service, told: Told
) -> None:
    """As an object without an end, alone and in the list; hidden ones in no list."""
    told.say("Hello", " you")
    async with asked(service, metadata={"k": "v"}, store=True) as first:
        await first.until(2)
        url = f"{service.url}/v1/chat/completions"
        async with service.http.get(f"{url}/{first.completion_id}") as response:
            shown = await response.json()
        async with service.http.get(f"{url}?state=streaming&metadata[k]=v") as response:
            listed = await response.json()
        async with service.http.get(f"{url}?state=streaming&metadata[k]=other") as response:
            assert [] == (await response.json())["data"]
        async with service.http.get(f"{url}?state=pending") as response:
            assert [] == (await response.json())["data"]
        told.do("finish")
        await first.whole()
    assert "streaming" == shown["state"]
    assert "Hello you" == shown["choices"][0]["message"]["content"]
    assert shown["choices"][0]["finish_reason"] is None
    assert [shown] == listed["data"]


async def test_foreign_and_unknown_answers_are_not_there(service: Service, told: Told) -> None:
    """404, as ever."""
    async with reading(service, "chatcmpl-unknown") as response:
        assert 404 == response.response.status
