"""What ends an answer well, what doesn't, and what it then has used."""

from typing import Any

import pytest

from statemachine import (
    ChunkReceived,
    DeadlineExpired,
    DrainExpired,
    Event,
    Failure,
    Save,
    SessionPolicy,
    SessionRecord,
    State,
    StreamSession,
    UpstreamFailed,
    UpstreamFinished,
    UsageSource,
)
from statemachine.endings import BODY_ENDED, BROKEN_OFF
from statemachine.session import TRAILER_SECONDS
from tests.statemachine.conftest import asked, chunk, finish_chunk, text_after, text_chunk

BROKEN = UpstreamFailed(Failure(BROKEN_OFF, "The connection broke."))
ENDED = UpstreamFailed(BODY_ENDED)
JUNK = UpstreamFailed(Failure("upstream_malformed", "That is not JSON."))
ERROR = UpstreamFailed(Failure("upstream_error", "Out of memory."))
QUIET = SessionPolicy(keep_alive_interval_seconds=None)


def ended(*events: Any, **request: Any) -> SessionRecord:
    """The record of an answer of these chunks and events, a second apart."""
    session = StreamSession(asked(**request), QUIET)
    for second, event in enumerate(events, 1):
        event = event if isinstance(event, Event) else ChunkReceived(event)
        for effect in session.handle(event, float(second)):
            if isinstance(effect, Save):
                return effect.record
    raise AssertionError("it has not ended")


# --- whole is whole -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", [BROKEN, ENDED, JUNK, DrainExpired(), DeadlineExpired(Failure("total_timeout", "…"))]
)
def test_nothing_spoils_a_whole_answer(end: Event) -> None:
    """Behind every choice's finish reason nothing is missing."""
    record = ended(text_chunk("Hello"), finish_chunk(), end)
    assert (State.COMPLETED, "stop", None) == (record.state, record.finish_reason, record.failure)
    assert record.whole


def test_an_error_behind_a_whole_answer_is_told() -> None:
    """The backend says that something went wrong; the message is whole all the same."""
    record = ended(text_chunk("Hello"), finish_chunk(), ERROR)
    assert (State.FAILED, ERROR.failure, True) == (record.state, record.failure, record.whole)


@pytest.mark.parametrize("end", [BROKEN, ENDED, JUNK])
def test_text_alone_is_no_whole_answer(end: Event) -> None:
    """Without a finish reason there may have been more."""
    record = ended(text_chunk("Hello"), end)
    assert (State.FAILED, None, False) == (record.state, record.finish_reason, record.whole)


def test_done_without_a_finish_reason_is_a_good_end() -> None:
    """The upstream says that it is done; why isn't made up."""
    record = ended(text_chunk("Hello"), UpstreamFinished())
    assert (State.COMPLETED, None, True) == (record.state, record.finish_reason, record.whole)


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (ENDED, State.COMPLETED),
        (UpstreamFinished(), State.COMPLETED),
        (BROKEN, State.FAILED),
        (JUNK, State.FAILED),
    ],
)
def test_an_upstream_may_know_of_one_choice_only(end: Event, state: State) -> None:
    """Some ignore `n`. Where the connection is sound to the end, the choices that began count."""
    record = ended(text_chunk("Hello"), finish_chunk(), end, choices_expected=2)
    assert state is record.state
    assert (state is State.COMPLETED) == record.whole


@pytest.mark.parametrize("end", [ENDED, BROKEN, JUNK])
def test_a_choice_that_began_must_end(end: Event) -> None:
    """One of two is cut off: the answer is."""
    other = chunk({"content": "Hi"}, index=1)
    record = ended(text_chunk("Hello"), other, finish_chunk(), end, choices_expected=2)
    assert (State.FAILED, False) == (record.state, record.whole)


# --- reasons that are none, or come early ---------------------------------------------------------


@pytest.mark.parametrize("reason", ["", " ", "null", "None", False, 0, {}, []])
def test_what_is_no_reason_ends_nothing(reason: Any) -> None:
    """An answer with it in each chunk isn't whole."""
    session = StreamSession(asked(), QUIET)
    session.handle(ChunkReceived(chunk({"content": "a"}, reason)), 1.0)
    assert not session.transcript.is_whole
    assert session.due(1.0 + TRAILER_SECONDS) is None
    record = ended(chunk({"content": "a"}, reason), ENDED)
    assert (State.FAILED, None) == (record.state, record.finish_reason)


@pytest.mark.parametrize("repeated", [False, True])
def test_text_puts_the_trailer_off(repeated: bool) -> None:
    """`stop` in every chunk, or words after it: each has its seconds, and none is lost."""
    session = StreamSession(asked(), QUIET)
    first = chunk({"content": "a"}, "stop")
    more = text_after(text_chunk("a"), "b") if repeated else ChunkReceived(first)
    session.handle(ChunkReceived(first), 0.0)
    for second in range(4, 40, 4):
        assert session.due(second) is None
        milestones = session.milestones
        session.handle(more, second)
        assert milestones < session.milestones, "its driver must look again"
    assert 36.0 + TRAILER_SECONDS == session.wakes_at
    assert UpstreamFinished() == session.due(36.0 + TRAILER_SECONDS)


def test_a_choice_that_begins_late_has_its_time() -> None:
    """An answer that was whole isn't any more, once another choice comes that nobody asked for."""
    session = StreamSession(asked(), QUIET)
    session.handle(ChunkReceived(finish_chunk()), 1.0)
    session.handle(ChunkReceived(chunk({"content": "a"}, index=1)), 2.0)
    assert session.due(1.0 + TRAILER_SECONDS) is None
    assert 2.0 + 60.0 == session.wakes_at
    session.handle(ChunkReceived(chunk({}, "stop", index=1)), 50.0)
    assert 50.0 + TRAILER_SECONDS == session.wakes_at


def test_usage_behind_the_end_puts_nothing_off() -> None:
    """Only words do."""
    session = StreamSession(asked(), QUIET)
    session.handle(ChunkReceived(finish_chunk()), 1.0)
    session.handle(ChunkReceived({"choices": [], "usage": {"total_tokens": 1}}), 5.0)
    session.handle(ChunkReceived(chunk({})), 5.0)
    assert UpstreamFinished() == session.due(1.0 + TRAILER_SECONDS)


# --- usage ----------------------------------------------------------------------------------------


def used(completion: int, **more: Any) -> dict[str, Any]:
    total = {"prompt_tokens": 5, "completion_tokens": completion, "total_tokens": 5 + completion}
    return {"choices": [], "usage": {**total, **more}}


def test_usage_of_each_choice_is_added_up() -> None:
    """llama.cpp counts each choice apart, behind its end. They share the prompt."""
    details = [{"completion_tokens_details": {"reasoning_tokens": count}} for count in (1, 2)]
    record = ended(
        chunk({"content": "a"}, index=1),
        chunk({}, "stop", index=1),
        used(4, **details[0]),
        text_chunk("b"),
        finish_chunk(),
        used(9, **details[1]),
        UpstreamFinished(),
        choices_expected=2,
    )
    assert {
        "prompt_tokens": 5,
        "completion_tokens": 13,
        "total_tokens": 18,
        "summed": True,
        "completion_tokens_details": {"reasoning_tokens": 3},
    } == record.usage
    assert (UsageSource.PROVIDER, 13) == (record.usage_source, record.token_count)


def test_usage_of_each_choice_may_come_at_the_end() -> None:
    """It need not be right behind the choice that it is of."""
    ends = [chunk({}, "stop", index=1), finish_chunk()]
    record = ended(*ends, used(4), used(9), UpstreamFinished(), choices_expected=2)
    assert ({"prompt_tokens": 5, "completion_tokens": 13, "total_tokens": 18, "summed": True}) == (
        record.usage
    )


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_latest_usage_counts_otherwise(frames: int) -> None:
    """Of figures that grow as the answer does, the last is the sum already."""
    growing = [used(count) for count in range(frames)]
    record = ended(
        chunk({"content": "a"}, index=1),
        *growing,
        chunk({"content": "a"}),
        chunk({}, "stop", index=1),
        finish_chunk(),
        used(9),
        UpstreamFinished(),
        choices_expected=2,
    )
    assert used(9)["usage"] == record.usage


def test_empty_usage_says_nothing() -> None:
    """`{}` in each chunk isn't the provider's count."""
    record = ended({**text_chunk("a"), "usage": {}}, finish_chunk(), UpstreamFinished())
    assert UsageSource.ESTIMATED is record.usage_source
    told = ended(used(3), {**finish_chunk(), "usage": {}}, UpstreamFinished())
    assert used(3)["usage"] == told.usage
