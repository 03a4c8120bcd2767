"""The built-in agent: what it says, how it counts, and how it fails on request."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.agents.scripted import INTRODUCTION, split_tokens
from statemachine import (
    Event,
    Failure,
    UpstreamFailed,
    UpstreamFinished,
)
from tests.service.agents.conftest import (
    call,
    collect,
    folded,
    scripted,
)

texts = st.text(
    st.sampled_from("ab \n\t\u00a0\u3000é🙂\ud800") | st.characters(exclude_categories=())
)


@given(texts)
def test_tokens_joined_are_the_text(text: str) -> None:
    """Splitting loses nothing: no space, no line end, no half a character."""
    tokens = split_tokens(text)
    assert "".join(tokens) == text
    assert "" not in tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("word", ["word"]),
        ("two words", ["two", " words"]),
        ("  a \n b\t", ["  a", " \n b", "\t"]),
        (" ", [" "]),
    ],
)
def test_a_token_is_a_word_with_the_space_before_it(text: str, tokens: list[str]) -> None:
    """Models' own tokens look like this too: the space comes with the word behind it."""
    assert split_tokens(text) == tokens


async def test_an_answer_is_the_reply_word_by_word_a_reason_and_usage() -> None:
    """The reads are the role, one for each word, and three for the end."""
    reads = await collect(scripted(reply="Say  it\nagain. 🙂\ud83d"))
    transcript, ending = folded(reads)
    (choice,) = transcript.choices()
    assert {"role": "assistant", "content": "Say  it\nagain. 🙂\ud83d"} == choice.message
    assert "stop" == choice.finish_reason
    assert UpstreamFinished() == ending
    assert "scripted-chatcmpl-1" == transcript.upstream_id
    assert "m" == transcript.upstream_model
    assert transcript.usage is not None
    assert 4 == transcript.usage["completion_tokens"]
    assert transcript.usage["prompt_tokens"] > 0
    assert 1 + 4 + 3 == len(reads)  # the role, a read per word, and the end's three


async def test_without_a_reply_the_agent_introduces_itself() -> None:
    """An empty reply is a reply of its own: only a missing one means the introduction."""
    transcript, _ = folded(await collect(scripted()))
    assert INTRODUCTION == transcript.choices()[0].message["content"]
    transcript, ending = folded(await collect(scripted(reply="")))
    assert "" == transcript.choices()[0].message["content"]
    assert (True, UpstreamFinished()) == (transcript.is_whole, ending)


async def test_the_same_configuration_gives_the_same_answer() -> None:
    """Two runs of one agent, and two agents of one configuration, give equal events."""
    first, second = scripted(reply="a b c"), scripted(reply="a b c")
    expected = await collect(first)
    assert expected == await collect(first)
    assert expected == await collect(second)
    assert expected != await collect(scripted(reply="a b d"))


async def test_every_choice_gets_the_whole_reply() -> None:
    """Each of the `n` choices gets every token, and each of those is counted."""
    transcript, _ = folded(await collect(scripted(reply="a b"), call(n=3)), 3)
    found = [(it.index, it.message["content"], it.finish_reason) for it in transcript.choices()]
    assert [(0, "a b", "stop"), (1, "a b", "stop"), (2, "a b", "stop")] == found
    assert transcript.usage is not None
    assert 6 == transcript.usage["completion_tokens"]


@pytest.mark.parametrize("options", [{}, {"include_usage": None}, {"include_usage": True}])
async def test_usage_is_given_unless_it_is_refused(options: Any) -> None:
    """Yes, null and nothing all bring usage, whose prompt and answer add up to its total."""
    transcript, _ = folded(await collect(scripted(), call(stream_options=options)))
    assert transcript.usage is not None
    counted = transcript.usage
    assert counted["prompt_tokens"] + counted["completion_tokens"] == counted["total_tokens"]


async def test_a_client_that_refuses_usage_gets_none() -> None:
    """An explicit no leaves the usage chunk out, and the answer ends well all the same."""
    refused = call(stream_options={"include_usage": False})
    transcript, ending = folded(await collect(scripted(), refused))
    assert transcript.usage is None
    assert UpstreamFinished() == ending


@pytest.mark.parametrize(("after", "text"), [(0, ""), (2, "a b"), (3, "a b c"), (9, "a b c")])
@pytest.mark.parametrize(
    ("fail_with", "code"),
    [
        ("truncate", "upstream_incomplete"),
        ("error", "upstream_error"),
        ("malformed", "upstream_malformed"),
    ],
)
async def test_a_failure_comes_after_the_tokens_it_is_set_to(
    fail_with: str, code: str, after: int, text: str
) -> None:
    """Each way to fail has its own code, keeps the tokens before it and brings no finish
    reason."""
    agent = scripted(reply="a b c", fail_after_tokens=after, fail_with=fail_with)
    transcript, ending = folded(await collect(agent))
    assert transcript.choices()[0].message["content"] == text
    assert transcript.finish_reason is None
    assert isinstance(ending, UpstreamFailed)
    assert ending.failure.code == code


async def test_a_reset_is_reported_as_a_broken_connection() -> None:
    """The failure names the agent, and the tokens before it stand."""
    agent = scripted(reply="a b c", fail_after_tokens=2, fail_with="reset")
    transcript, ending = folded(await collect(agent))
    message = "The connection to the model's backend broke."
    assert UpstreamFailed(Failure("upstream_incomplete", message)) == ending
    assert "a b" == transcript.choices()[0].message["content"]


async def test_a_stalled_answer_falls_silent_and_can_be_left() -> None:
    """After its tokens nothing comes, and whoever waits can leave."""
    agent = scripted(reply="a b c", fail_after_tokens=2, fail_with="stall")
    reads: list[Sequence[Event]] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), agent.open(call()) as answer:
            while True:
                reads.append(await answer.read())
    assert "a b" == folded(reads)[0].choices()[0].message["content"]


async def test_the_pace_doesnt_drift() -> None:
    """No word comes before its time, which is counted from the start and not from the word
    before."""
    agent = scripted(reply="a b c d", tokens_per_second=50, first_token_delay_seconds=0.05)
    started = time.monotonic()
    moments: list[float] = []
    async with agent.open(call()) as answer:
        while len(moments) < 5:
            await answer.read()
            moments.append(time.monotonic() - started)
    words = moments[1:]
    for position, moment in enumerate(words):
        assert moment >= 0.05 + position / 50 - 0.005
    assert words[-1] < 1.0


async def test_an_answer_that_was_left_yields_nothing_more() -> None:
    """Leaving in the middle closes the generator behind the answer."""
    agent = scripted(reply="a b c")
    async with agent.open(call()) as answer:
        await answer.read()
        await answer.read()
    with pytest.raises(StopAsyncIteration):
        await answer.read()
