"""Keep-alive comments: when, what bytes, and what they do to the 200."""

import asyncio
import time

from freezegun import freeze_time

from service.settings.config import ScriptedAgentConfig, SseConfig, Timeouts
from statemachine import SendPing, SessionPolicy, State, StreamSession, TimePassed
from tests.service.conftest import ServiceMaker, agent_for
from tests.service.stage.backend import Backend, Exchange
from tests.statemachine.conftest import asked

PING = b": keep-alive\n"


async def test_silence_brings_comments_on_event_boundaries(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """Each comment ends in one newline, before and between tokens, and the text around it is
    untouched."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await asyncio.sleep(0.5)
        await exchange.words("Hel")
        await asyncio.sleep(0.5)
        await exchange.words("lo")
        await exchange.finish()

    backend.script = script
    service = await make_service(agent_for(backend), sse=SseConfig(keep_alive_interval_seconds=0.2))
    streamed = await service.stream()
    before, _, after = streamed.body.partition(b"Hel")
    assert before.startswith(PING * 2 + b"data: ")
    assert 2 == before.count(PING)
    assert 2 == after.count(PING)
    assert PING + b"\n" not in streamed.body
    assert ("Hello", True) == (streamed.text, streamed.is_done)


async def test_the_first_ping_commits_the_200(backend: Backend, make_service: ServiceMaker) -> None:
    """Before the first ping a failure is an HTTP status; after it, an error event."""

    async def script(exchange: Exchange) -> None:
        await asyncio.sleep(0.3)
        await exchange.json(500, {"error": {"message": "It broke"}})

    backend.script = script
    for interval, status in ((0.1, 200), (5.0, 500)):
        service = await make_service(
            agent_for(backend), sse=SseConfig(keep_alive_interval_seconds=interval)
        )
        streamed = await service.stream()
        assert streamed.status == status
        assert "It broke" == streamed.error["message"]
        assert not streamed.is_done


async def test_lively_streams_get_no_pings(make_service: ServiceMaker) -> None:
    """Where tokens come faster than the interval, no comment is needed."""
    agent = ScriptedAgentConfig(
        name="demo", kind="scripted", reply="a b c d e f g h", tokens_per_second=20
    )
    service = await make_service(agent, sse=SseConfig(keep_alive_interval_seconds=0.2))
    streamed = await service.stream(model="demo")
    assert PING not in streamed.body
    assert "a b c d e f g h" == streamed.text


async def test_plain_requests_get_no_pings(backend: Backend, make_service: ServiceMaker) -> None:
    """A plain request waits in silence and gets its one object."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await asyncio.sleep(0.3)
        await exchange.words("Hi")
        await exchange.finish()

    backend.script = script
    service = await make_service(agent_for(backend), sse=SseConfig(keep_alive_interval_seconds=0.1))
    async with service.post(stream=False) as response:
        body = await response.read()
    assert body.startswith(b"{")


async def test_pings_dont_feed_the_first_token_deadline(
    backend: Backend, make_service: ServiceMaker
) -> None:
    """A silent model runs into its own deadline however many pings went out."""

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.client_closed.wait()

    backend.script = script
    service = await make_service(
        agent_for(backend, timeouts=Timeouts(first_token_seconds=0.5)),
        sse=SseConfig(keep_alive_interval_seconds=0.1),
    )
    streamed = await service.stream()
    assert streamed.body.startswith(PING * 3)
    assert "first_token_timeout" == streamed.error["code"]
    assert (await service.kept.one()).state is State.FAILED


def test_a_ping_is_due_after_exactly_an_interval_of_silence() -> None:
    """At 14.999 s of silence nothing is due, at 15 s a ping, and the next at 30 s."""
    with freeze_time("2026-01-01 12:00:00") as clock:
        session = StreamSession(
            asked(created_at=time.time()), SessionPolicy(keep_alive_interval_seconds=15.0)
        )
        clock.tick(14.999)
        assert session.due(time.time()) is None
        clock.tick(0.001)
        assert TimePassed() == session.due(time.time())
        assert SendPing() in session.handle(TimePassed(), time.time())
        clock.tick(14.999)
        assert session.due(time.time()) is None
        clock.tick(0.001)
        assert TimePassed() == session.due(time.time())
