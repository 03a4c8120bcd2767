"""Who is asked again, when, and that nothing of a failed attempt is left behind."""

import time

import pytest

from service.agents.protocol import AgentError
from service.stream.attempts import LONGEST_RETRY_WAIT_SECONDS, Attempts
from statemachine import (
    AttemptStarted,
    Event,
    Failure,
    UpstreamFailed,
)
from tests.service.stream.conftest import (
    ANSWER,
    BROKE,
    DONE,
    HEARTBEAT,
    ROLE,
    WHOLE,
    FakeAgent,
    Step,
    Tries,
    ask,
    attempts_of,
    busy,
    event,
    read_all,
    received,
    refusal,
)
from tests.statemachine.conftest import finish_chunk, text_chunk

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


async def test_each_agents_back_off_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fallback isn't made to wait longer by the retries of the agent before it."""
    waits: list[float | None] = []
    decide = Attempts._wait_before_retry

    def at_once(attempts: Attempts, error: AgentError) -> float | None:
        waits.append(decide(attempts, error))
        return None if waits[-1] is None else 0.0

    monkeypatch.setattr(Attempts, "_wait_before_retry", at_once)
    monkeypatch.setattr("random.random", lambda: 0.0)
    first = FakeAgent("a", [busy()], [busy()], [busy()], retries=2)
    second = FakeAgent("b", [busy()], [busy()], ANSWER, retries=2)
    assert WHOLE == await ask(first, second)
    assert [0.25, 0.5, None, 0.25, 0.5] == waits


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
