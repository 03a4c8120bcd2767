"""Moments between the first and the last: what is announced when, and how often."""

from typing import Any

from service.stream.moments import Attempt, Watcher
from statemachine import (
    AttemptStarted,
    ClientGone,
    ClientLeft,
    ClientReturned,
    SessionPolicy,
    SessionRequest,
    StreamSession,
    TimePassed,
    UpstreamFinished,
)
from tests.service.agents.conftest import scripted
from tests.service.stream.conftest import attempts_of
from tests.service.stream.neighbours import Stage, words


class Between(Watcher):
    """Notes what the other moments don't tell."""

    def __init__(self) -> None:
        self.moments: list[Any] = []

    def tried(self, request: SessionRequest, attempt: Attempt) -> None:
        self.moments.append(attempt)

    def sent_first_token(self, session: StreamSession, seconds: float, held_seconds: float) -> None:
        assert 0 <= held_seconds <= seconds
        self.moments.append("sent")

    def pinged(self) -> None:
        self.moments.append("pinged")

    def left_alone(self, session: StreamSession) -> None:
        self.moments.append(f"left while {session.state}")


async def test_the_first_token_is_announced_once_when_it_was_written() -> None:
    """Not those after it, and not before the writer had it."""
    watcher = Between()
    stage = Stage(watchers=(watcher,)).start()
    stage.upstream.say(AttemptStarted("demo"))
    await stage.settle()
    assert [] == watcher.moments
    stage.upstream.say(*words("a", "b"))
    await stage.settle()
    stage.upstream.say(*words("c"))
    await stage.settle()
    assert ["sent"] == watcher.moments
    stage.upstream.say(UpstreamFinished())
    await stage.end()
    assert ["sent"] == watcher.moments


async def test_what_nobody_is_sent_is_not_announced_as_sent() -> None:
    """The client had left before the first token came."""
    watcher = Between()
    stage = Stage(SessionPolicy(client_gone=ClientGone.FINISH), watchers=(watcher,)).start()
    await stage.settle()
    stage.relay.readers.lose_client()
    stage.upstream.say(*words("a"), UpstreamFinished())
    await stage.end()
    assert ["left while pending"] == watcher.moments


async def test_each_leaving_of_the_last_reader_is_announced() -> None:
    """Also a second one, after somebody came back; not one after the end."""
    watcher = Between()
    stage = Stage(SessionPolicy(client_gone=ClientGone.WAIT), watchers=(watcher,)).start()
    stage.upstream.say(*words("a"))
    await stage.settle()
    for event in (ClientLeft(), ClientReturned(), ClientLeft()):
        stage.relay.post(event)
    stage.upstream.say(UpstreamFinished())
    await stage.end()
    stage.relay.post(ClientLeft())
    assert ["sent", *["left while streaming"] * 2] == watcher.moments


async def test_each_ping_is_announced() -> None:
    """One for each that is written."""
    watcher = Between()
    policy = SessionPolicy(keep_alive_interval_seconds=0.001)
    stage = Stage(policy, watchers=(watcher,)).start()
    await stage.settle()
    while len(watcher.moments) < 2:
        stage.relay.post(TimePassed())
        await stage.settle()
    assert {"pinged"} == set(watcher.moments)
    stage.upstream.say(*words("a"), UpstreamFinished())
    await stage.end()


async def test_the_first_asking_is_told_apart_from_others() -> None:
    """Who is asked first tells how long we took; a fallback tells nothing of that."""
    watcher = Between()
    broken = scripted(name="broken", fail_after_tokens=0, fallbacks=("other",))
    attempts = attempts_of(broken, scripted(name="other"), watcher=watcher)
    await attempts.read()
    await attempts.read()
    await attempts.close()
    first, second = watcher.moments
    assert ("broken", "other") == (first.agent, second.agent)
    assert first.arrived_seconds is not None
    assert (0 <= first.arrived_seconds, None) == (True, second.arrived_seconds)
    assert second.first_chunk_seconds is not None
    assert second.asked_at >= first.asked_at + first.seconds > 0
    assert 0 <= second.first_chunk_seconds <= second.seconds
