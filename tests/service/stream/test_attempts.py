"""Which agent is asked, how often, and that nothing of a failed attempt is left behind."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from attrs import evolve

from service.agents.openai.reads import EventReader
from service.agents.protocol import Agent, AgentCall, AgentError, Sink
from service.settings.config import Timeouts
from service.stream.attempts import LONGEST_RETRY_WAIT_SECONDS, Attempts
from service.stream.moments import Attempt, Moments, Watcher, Watchers
from service.wire import encode_json, parse_request
from statemachine import (
    AttemptStarted,
    ChunkReceived,
    ClientGone,
    DeadlineExpired,
    Event,
    Failure,
    RepeatedChunks,
    SessionRequest,
    UpstreamFailed,
    UpstreamFinished,
)
from tests.statemachine.conftest import asked, chunk, finish_chunk, text_chunk

CALL = AgentCall(
    parse_request(b'{"model": "m", "messages": [{"role": "user", "content": "Hello?"}]}'),
    "chatcmpl-1",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
DONE = b"data: [DONE]\n\n"
ROLE = chunk({"role": "assistant", "content": ""})
HEARTBEAT: Any = {"choices": []}
HANG = "hang"
Step = bytes | Exception | str


def event(*payloads: Any) -> bytes:
    return b"".join(b"data: " + encode_json(payload) + b"\n\n" for payload in payloads)


def refusal(code: str = "upstream_error", **kinds: bool) -> AgentError:
    return AgentError(Failure(code, f"It said {code}."), **kinds)


def busy(retry_after_seconds: float | None = None) -> AgentError:
    """What an agent raises that may well answer next time."""
    failure = Failure(
        "upstream_error", "Busy.", status=503, retry_after_seconds=retry_after_seconds
    )
    return AgentError(failure, is_retryable=True)


BROKE = AgentError(Failure("upstream_incomplete", "It broke."), is_retryable=True)


class FakeAgent:
    """Plays its attempts one after the other.

    An attempt is a list of steps: bytes are one socket read, an exception is raised, `HANG` waits
    for ever. Steps before an `OPENED` belong to entering, where most refusals come from; an
    attempt without one opens at its first bytes.
    """

    client_gone: ClientGone | None = None
    fallbacks: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        *attempts: list[Step],
        retries: int = 0,
        first_token_seconds: float = 30.0,
        max_event_bytes: int = 1 << 20,
    ) -> None:
        self.name = name
        self.retries = retries
        self.timeouts = Timeouts(first_token_seconds=first_token_seconds, idle_seconds=7.0)
        self.max_event_bytes = max_event_bytes
        self.attempts = list(attempts)
        self.asked = 0
        self.asked_as_fallback: bool | None = None
        self.open_now = 0
        self.hangs = asyncio.Event()

    @asynccontextmanager
    async def open(self, call: AgentCall) -> AsyncIterator["FakeAnswer"]:
        self.asked_as_fallback = call.is_fallback
        assert CALL == evolve(call, is_fallback=False)
        assert 0 == self.open_now, "an attempt begins after the one before was closed"
        steps = self.attempts[self.asked]
        self.asked += 1
        self.open_now += 1
        try:
            rest = iter(steps)
            if OPENED in steps or not isinstance(steps[0], bytes):
                await self._enter(rest)
            body = self._body(rest)
            try:
                yield FakeAnswer(body, EventReader(self.max_event_bytes))
            finally:
                await body.aclose()
        finally:
            self.open_now -= 1

    async def _enter(self, steps: Iterator[Step]) -> None:
        for step in steps:
            if step == OPENED:
                return
            await self._play(step)

    async def _body(self, steps: Iterator[Step]) -> Any:
        for step in steps:
            if isinstance(step, bytes):
                yield step
            else:
                await self._play(step)

    async def _play(self, step: Step) -> None:
        if isinstance(step, Exception):
            raise step
        self.hangs.set()
        await asyncio.Event().wait()

    def serves(self, model: str) -> bool:
        return True

    async def models(self) -> list[dict[str, Any]]:
        return []

    async def close(self) -> None:
        pass


class FakeAnswer:
    """Reads the steps as the agent of OpenAI-compatible backends reads a body."""

    def __init__(self, body: AsyncIterator[bytes], reader: EventReader) -> None:
        self._body = body
        self._reader = reader

    async def read(self, sink: Sink | None = None) -> Sequence[Event]:
        while True:
            try:
                events = self._reader.read(await anext(self._body))
            except StopAsyncIteration:
                events = self._reader.close()
            except AgentError as error:
                events = self._reader.close(error.failure)
            if events:
                return events


OPENED = "opened"
ANSWER: list[Step] = [event(text_chunk("Hi")), event(finish_chunk()), DONE]


@pytest.fixture
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow each other at once; their number stays the agent's."""
    decide = Attempts._wait_before_retry

    def at_once(attempts: Attempts, error: AgentError) -> float | None:
        return None if decide(attempts, error) is None else 0.0

    monkeypatch.setattr(Attempts, "_wait_before_retry", at_once)


@pytest.fixture
def announced() -> list[Event]:
    return []


class Tries(Watcher):
    """Notes the attempts that were announced."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def tried(self, request: SessionRequest, attempt: Attempt) -> None:
        self.attempts.append(attempt)


def attempts_of(*agents: Agent, watcher: Watcher | None = None) -> Attempts:
    watchers = Watchers([watcher] if watcher else [])
    return Attempts(agents, CALL, Moments(asked(), watchers))


async def read_all(upstream: Attempts) -> list[Event]:
    """Every event up to the ending; then everything is closed."""
    events: list[Event] = []
    while not (
        events and isinstance(events[-1], (UpstreamFinished, UpstreamFailed, DeadlineExpired))
    ):
        new = await upstream.read()
        assert new
        events += new
    await upstream.close()
    return events


async def ask(*agents: FakeAgent, announced: list[Event] | None = None) -> list[Event]:
    """What the session is told; afterwards no agent has anything open."""
    events = await read_all(attempts_of(*agents))
    assert [agent.open_now for agent in agents] == [0] * len(agents)
    attempts = [event for event in events if isinstance(event, AttemptStarted)]
    if announced is not None:
        announced += attempts
    return [event for event in events if event not in attempts]


def received(*payloads: Any) -> list[Event]:
    return [ChunkReceived(payload) for payload in payloads]


WHOLE = [*received(text_chunk("Hi"), finish_chunk()), UpstreamFinished()]


# --- one attempt ----------------------------------------------------------------------------------


async def test_an_agent_that_answers_is_asked_once(announced: list[Event]) -> None:
    """Every event comes in order; the first attempt is no event, since a session begins with
    it."""
    agent = FakeAgent("a", ANSWER, retries=5)
    assert WHOLE == await ask(agent, announced=announced)
    assert 1 == agent.asked
    assert [] == announced


async def test_each_read_gives_the_events_of_one_socket_read() -> None:
    """Socket reads that complete no event are passed over."""
    agent = FakeAgent(
        "a",
        [
            event(text_chunk("a"), text_chunk("b")),
            b": comment\n\n",
            b"data:",
            event(text_chunk("c"))[5:],
            event(finish_chunk()) + DONE,
        ],
    )
    upstream = attempts_of(agent)
    assert await upstream.read() == received(text_chunk("a"), text_chunk("b"))
    (text,) = await upstream.read()
    assert isinstance(text, ChunkReceived)
    assert isinstance(text.run, RepeatedChunks)  # identical to "b" except for its text
    assert ("c",) == text.run.texts
    assert await upstream.read() == [*received(finish_chunk()), UpstreamFinished()]
    await upstream.close()


async def test_a_body_that_just_ends_is_reported_as_incomplete() -> None:
    """Only the session knows if its finish reasons make that a good end."""
    events = await ask(FakeAgent("a", [event(text_chunk("Hi"), finish_chunk())]))
    assert events[:-1] == received(text_chunk("Hi"), finish_chunk())
    assert isinstance(events[-1], UpstreamFailed)
    assert "upstream_incomplete" == events[-1].failure.code


@pytest.mark.parametrize(
    "payload",
    [
        text_chunk("a"),
        text_chunk(" "),
        chunk({"reasoning_content": "Hm"}),
        chunk({"refusal": "No"}),
        chunk({"tool_calls": [{"index": 0}]}),
        chunk({"invented": 0}),
        finish_chunk(),
        chunk({}, "length", index=3),
    ],
)
async def test_a_text_another_field_or_a_finish_reason_is_a_first_token(payload: Any) -> None:
    """Each of these ends the wait for the first token."""
    agent = FakeAgent("a", [event(payload), HANG], first_token_seconds=5)
    upstream = attempts_of(agent)
    assert await upstream.read() == received(payload)
    await upstream.close()


@pytest.mark.parametrize(
    "payload",
    [
        ROLE,
        chunk({"role": "assistant", "content": None}),
        chunk({"role": "assistant"}),
        chunk({"content": "", "tool_calls": [], "audio": {}}),
        chunk({}),
        {"choices": [{"index": 0, "delta": None}]},
        HEARTBEAT,
        {},
        {"choices": None, "usage": {"total_tokens": 1}},
        {"choices": [], "prompt_filter_results": [1]},
    ],
)
async def test_what_is_no_token_is_held_back_until_the_first_comes(payload: Any) -> None:
    """Roles, empty deltas and heartbeats are handed out together with the first token."""
    agent = FakeAgent("a", [event(payload), event(payload), event(text_chunk("Hi")), HANG])
    upstream = attempts_of(agent)
    assert await upstream.read() == received(payload, payload, text_chunk("Hi"))
    await upstream.close()


async def test_done_without_a_token_is_an_answer() -> None:
    """After an empty answer that ended well nobody else is asked."""
    agent, fallback = FakeAgent("a", [event(ROLE), DONE], retries=3), FakeAgent("b", ANSWER)
    assert await ask(agent, fallback) == [*received(ROLE), UpstreamFinished()]
    assert (1, 0) == (agent.asked, fallback.asked)


# --- retries --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_back_off")
@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_an_agent_is_asked_once_and_retries_times_more(
    retries: int, announced: list[Event]
) -> None:
    """Each retry is announced, and the last failure is the one reported."""
    attempts: list[list[Step]] = [
        [AgentError(Failure("upstream_error", f"No. {n}"), is_retryable=True)] for n in range(9)
    ]
    agent = FakeAgent("a", *attempts, retries=retries)
    events = await ask(agent, announced=announced)
    assert events == [UpstreamFailed(Failure("upstream_error", f"No. {retries}"))]
    assert agent.asked == retries + 1
    assert announced == [AttemptStarted("a", 7.0)] * retries


@pytest.mark.usefixtures("no_back_off")
@pytest.mark.parametrize(
    "failed",
    [
        [busy()],
        [event(ROLE), BROKE],
        [event(ROLE)],
        [b""],
        [event(ROLE, HEARTBEAT) + event(text_chunk("Hi"))[:-9]],
        [event(ROLE) + b"data: {oops}\n\n"],
        [b"<html>"],
        [b'{"id": "x"}'],
        [event({"a": "x" * 2000})],
    ],
)
async def test_a_retry_leaves_no_trace_of_the_attempt_before(failed: list[Step]) -> None:
    """An attempt that broke before its first token is forgotten, held chunks and all."""
    second = {**ROLE, "id": "second"}
    answer = [event(second), *ANSWER]
    agent = FakeAgent("a", failed, answer, retries=1, max_event_bytes=1000)
    assert await ask(agent) == [*received(second), *WHOLE]
    assert 2 == agent.asked


@pytest.mark.usefixtures("no_back_off")
@pytest.mark.parametrize(
    "failed",
    [
        [refusal()],
        [event(ROLE, {"error": {"message": "No.", "code": "no"}})],
        [b"event: error\ndata: No.\n\n"],
        [b'{"error": "No."}'],
    ],
)
async def test_what_will_not_pass_is_not_retried(failed: list[Step]) -> None:
    """A refusal, and an error in the upstream's own words, go to the fallback at once."""
    agent, fallback = FakeAgent("a", failed, ANSWER, retries=3), FakeAgent("b", ANSWER)
    assert WHOLE == await ask(agent, fallback)
    assert (1, 1) == (agent.asked, fallback.asked)


@pytest.mark.usefixtures("no_back_off")
@pytest.mark.parametrize(
    ("seconds", "asked"), [(0.0, 2), (LONGEST_RETRY_WAIT_SECONDS, 2), (8.1, 1)]
)
async def test_a_retry_after_of_more_than_8_seconds_ends_the_retries(
    seconds: float, asked: int
) -> None:
    """The client is told the time that the agent asked for."""
    agent = FakeAgent("a", [busy(seconds)], [busy(seconds)], retries=1)
    (ending,) = await ask(agent)
    assert isinstance(ending, UpstreamFailed)
    assert ending.failure.retry_after_seconds == seconds
    assert agent.asked == asked


async def test_a_retry_after_is_obeyed() -> None:
    """The wait is what the agent asked for, here longer than any first back-off (0.25 to 0.5 s)."""
    agent = FakeAgent("a", [busy(0.6)], ANSWER, retries=1)
    started = time.monotonic()
    assert WHOLE == await ask(agent)
    assert time.monotonic() - started >= 0.59


async def test_the_first_retry_waits_a_quarter_of_a_second_at_least() -> None:
    """This is the back-off's wait, for an agent that names none."""
    agent = FakeAgent("a", [busy()], ANSWER, retries=1)
    started = time.monotonic()
    assert WHOLE == await ask(agent)
    assert time.monotonic() - started >= 0.24


@pytest.mark.usefixtures("no_back_off")
@pytest.mark.parametrize(
    ("broken", "code"),
    [
        ([BROKE], "upstream_incomplete"),
        ([b""], "upstream_incomplete"),
        ([event({"error": "No."})], "upstream_error"),
        ([b"data: oops\n\n"], "upstream_malformed"),
        ([b"data: half an ev", BROKE], "upstream_incomplete"),
    ],
)
async def test_nothing_is_retried_after_the_first_token(broken: list[Step], code: str) -> None:
    """What was shown stands: the failure is reported, whatever else could be asked."""
    agent = FakeAgent("a", [event(text_chunk("Hi")), *broken], ANSWER, retries=3)
    fallback = FakeAgent("b", ANSWER)
    events = await ask(agent, fallback)
    assert events[:-1] == received(text_chunk("Hi"))
    assert isinstance(events[-1], UpstreamFailed)
    assert events[-1].failure.code == code
    assert (1, 0) == (agent.asked, fallback.asked)


async def test_an_event_right_before_a_break_is_kept() -> None:
    """A whole event counts without its blank line, and the failure is the connection's."""
    agent = FakeAgent("a", [event(text_chunk("Hi")), event(text_chunk("you"))[:-2], BROKE])
    events = await ask(agent)
    assert events == [*received(text_chunk("Hi"), text_chunk("you")), UpstreamFailed(BROKE.failure)]


async def test_a_break_right_after_done_is_a_good_end() -> None:
    """`[DONE]` counts with or without its blank line."""
    assert WHOLE == await ask(
        FakeAgent("a", [event(text_chunk("Hi"), finish_chunk()), DONE[:-2], BROKE])
    )


# --- fallbacks ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_back_off")
async def test_fallbacks_are_asked_in_order_each_with_its_retries(announced: list[Event]) -> None:
    """The next agent is asked when the retries of the one before are used up."""
    first = FakeAgent("a", [busy()], [busy()], retries=1)
    second = FakeAgent("b", [refusal()], retries=2)
    third = FakeAgent("c", [busy()], [busy()], ANSWER, retries=2)
    fourth = FakeAgent("d", ANSWER)
    assert WHOLE == await ask(first, second, third, fourth, announced=announced)
    assert announced == [AttemptStarted(name, 7.0) for name in ("a", "b", "c", "c", "c")]
    assert 0 == fourth.asked
    assert [False, True, True] == [agent.asked_as_fallback for agent in (first, second, third)]


@pytest.mark.usefixtures("no_back_off")
async def test_every_attempt_is_announced_with_how_it_went() -> None:
    """Watchers learn of each attempt once: whose it was, which of that agent's, and why it
    failed."""
    first = FakeAgent("a", [busy()], [busy()], retries=1)
    second = FakeAgent("b", ANSWER)
    watcher = Tries()
    await read_all(attempts_of(first, second, watcher=watcher))
    found = [(it.agent, it.number, it.failure) for it in watcher.attempts]
    assert [("a", 1, busy().failure), ("a", 2, busy().failure), ("b", 1, None)] == found
    assert all(it.seconds >= 0 for it in watcher.attempts)


@pytest.mark.usefixtures("no_back_off")
async def test_the_last_agents_failure_is_the_one_reported() -> None:
    """What the agents before it failed with isn't shown."""
    agents = [FakeAgent("a", [refusal("upstream_unreachable")]), FakeAgent("b", [refusal()])]
    assert await ask(*agents) == [UpstreamFailed(refusal().failure)]


@pytest.mark.usefixtures("no_back_off")
@pytest.mark.parametrize("is_retryable", [True, False])
async def test_final_refusals_go_nowhere_else(is_retryable: bool) -> None:
    """A request that is itself at fault isn't tried on other agents."""
    error = refusal(is_final=True, is_retryable=is_retryable)
    agent, fallback = FakeAgent("a", [error]), FakeAgent("b", ANSWER)
    assert await ask(agent, fallback) == [UpstreamFailed(error.failure)]
    assert 0 == fallback.asked


# --- the first token's deadline -------------------------------------------------------------------

SHORT = 0.05


@pytest.mark.parametrize(
    "silent", [[HANG], [OPENED, HANG], [event(ROLE), HANG], [b"data: {", HANG]]
)
async def test_a_first_token_timeout_goes_to_the_fallback(silent: list[Step]) -> None:
    """An agent without a token in time, in whatever phase, isn't asked again; the next one is."""
    agent = FakeAgent("a", silent, ANSWER, retries=3, first_token_seconds=SHORT)
    fallback = FakeAgent("b", ANSWER)
    assert WHOLE == await ask(agent, fallback)
    assert (1, 1) == (agent.asked, fallback.asked)


async def test_the_last_agents_first_token_timeout_is_reported() -> None:
    """The message names the agent and the figure."""
    (ending,) = await ask(FakeAgent("slow", [HANG], first_token_seconds=SHORT))
    message = "The agent 'slow' said nothing within 0.05 s."
    expected = DeadlineExpired(Failure("first_token_timeout", message, type="timeout_error"))
    assert expected == ending


async def test_heartbeats_do_not_feed_the_first_token_deadline() -> None:
    """An upstream that only ever shows that it is alive is too slow all the same."""

    class Heartbeats(FakeAgent):
        async def _body(self, steps: Iterator[Step]) -> Any:
            while True:
                yield event(HEARTBEAT) + b": alive\n\n"
                await asyncio.sleep(0.005)

    (ending,) = await ask(Heartbeats("a", [b""], first_token_seconds=SHORT))
    assert isinstance(ending, DeadlineExpired)
    assert "first_token_timeout" == ending.failure.code


async def test_after_its_first_token_an_agent_may_pause_longer() -> None:
    """Silence after the first token is the session's to judge."""

    class Slow(FakeAgent):
        async def _body(self, steps: Iterator[Step]) -> Any:
            yield event(text_chunk("Hi"))
            await asyncio.sleep(2 * SHORT)
            yield event(finish_chunk()) + DONE

    assert WHOLE == await ask(Slow("a", [b""], first_token_seconds=SHORT))


@pytest.mark.usefixtures("no_back_off")
async def test_a_connect_timeout_is_retried_and_then_a_deadline() -> None:
    """Every failure whose code names a timeout ends the session as a deadline does."""
    error = refusal("connect_timeout", is_retryable=True)
    agent = FakeAgent("a", [error], [error], retries=1)
    assert await ask(agent) == [DeadlineExpired(error.failure)]
    assert 2 == agent.asked


# --- closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        [HANG],
        [OPENED, HANG],
        [event(ROLE), HANG],
        [event(text_chunk("Hi")), HANG],
        [event(text_chunk("Hi")) + b"data: ", HANG],
    ],
)
async def test_closing_after_a_cancelled_read_leaves_nothing_open(steps: list[Step]) -> None:
    """This holds whatever the read was waiting for, and nobody else is asked."""
    agent = FakeAgent("a", steps, retries=3)
    fallback = FakeAgent("b", ANSWER)
    upstream = attempts_of(agent, fallback)
    reading = asyncio.create_task(read_all(upstream))
    await agent.hangs.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await upstream.close()
    assert 0 == agent.open_now
    assert (1, 0) == (agent.asked, fallback.asked)


async def test_a_cancelled_wait_between_attempts_ends_the_asking() -> None:
    """Neither the agent nor its fallback is asked again."""
    agent, fallback = FakeAgent("a", [busy(5.0)], ANSWER, retries=1), FakeAgent("b", ANSWER)
    upstream = attempts_of(agent, fallback)
    reading = asyncio.create_task(upstream.read())
    while not agent.asked or agent.open_now:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert not reading.done()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await upstream.close()
    assert (1, 0) == (agent.asked, fallback.asked)


async def test_closing_ends_an_answer_that_still_goes_on() -> None:
    """`close` does so at once, and twice is as good as once."""
    agent = FakeAgent("a", [event(text_chunk("Hi")), HANG])
    upstream = attempts_of(agent)
    await upstream.read()
    assert 1 == agent.open_now
    await upstream.close()
    assert 0 == agent.open_now
    await upstream.close()


async def test_closing_what_was_never_read_closes_nothing() -> None:
    """Before the first read nobody was asked."""
    agent = FakeAgent("a", ANSWER)
    await attempts_of(agent).close()
    assert 0 == agent.asked


async def test_a_bug_in_an_agent_is_not_hidden() -> None:
    """An exception that no agent should raise comes out of `read`, and nothing stays open."""
    broken: list[list[Step]] = [[ZeroDivisionError()], [event(ROLE), ZeroDivisionError()]]
    for steps in broken:
        agent, fallback = FakeAgent("a", steps, ANSWER, retries=3), FakeAgent("b", ANSWER)
        upstream = attempts_of(agent, fallback)
        with pytest.raises(ZeroDivisionError):
            await upstream.read()
        await upstream.close()
        assert 0 == agent.open_now
        assert (1, 0) == (agent.asked, fallback.asked)
