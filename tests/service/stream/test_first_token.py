"""What ends the wait for the first token, and what becomes of an agent without one in time."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from service.agents.openai.mending import ChunkMender
from statemachine import (
    DeadlineExpired,
    Failure,
)
from tests.service.stream.conftest import (
    ANSWER,
    DONE,
    HANG,
    HEARTBEAT,
    OPENED,
    ROLE,
    WHOLE,
    FakeAgent,
    Step,
    ask,
    attempts_of,
    event,
    received,
    refusal,
)
from tests.statemachine.conftest import chunk, finish_chunk, text_chunk

# --- what counts ----------------------------------------------------------------------------------


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
    mend = ChunkMender().mend
    assert await upstream.read() == received(mend(payload), mend(payload), text_chunk("Hi"))
    await upstream.close()


# --- the deadline ---------------------------------------------------------------------------------


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
    message = "The model said nothing within 0.05 s."
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
