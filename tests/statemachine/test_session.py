"""What a session asks for, event by event: the order of effects is the policy."""

from typing import Any

import pytest

from statemachine import (
    AttemptStarted,
    ChunkReceived,
    ClientGone,
    ClientLeft,
    DeadlineExpired,
    DrainExpired,
    Effect,
    Event,
    Failure,
    JsonObject,
    ParsedChunk,
    Save,
    SendChunk,
    SendDone,
    SendError,
    SessionPolicy,
    SessionRecord,
    State,
    StopRequested,
    StreamSession,
    TimePassed,
    UpstreamFailed,
    UpstreamFinished,
    UsageSource,
)
from statemachine.endings import NOTHING_CAME
from statemachine.session import TRAILER_SECONDS
from tests.statemachine.conftest import asked, chunk, finish_chunk, text_chunk

FAILURE = Failure("upstream_incomplete", "It broke off.")


def session(policy: SessionPolicy | None = None, **request: Any) -> StreamSession:
    return StreamSession(asked(**request), policy or SessionPolicy())


def play(target: StreamSession, *events: Event, at: float = 1.0) -> list[Effect]:
    return [effect for event in events for effect in target.handle(event, at)]


def names(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def saved(effects: list[Effect]) -> SessionRecord:
    (save,) = (effect for effect in effects if isinstance(effect, Save))
    return save.record


def payload_of(effect: SendChunk) -> JsonObject:
    """The one chunk that is to be sent."""
    assert isinstance(effect.run, ParsedChunk)
    return effect.run.payload


def test_a_whole_answer_is_saved_before_it_is_done() -> None:
    """The effects are to open, to send, to save, and only then `SendDone`."""
    effects = play(
        session(),
        ChunkReceived(text_chunk("Hello")),
        ChunkReceived(finish_chunk()),
        UpstreamFinished(),
    )
    assert ["OpenStream", "SendChunk", "SendChunk", "Save", "SendDone"] == names(effects)
    record = saved(effects)
    assert record.state is State.COMPLETED
    assert "stop" == record.finish_reason
    assert {"role": "assistant", "content": "Hello"} == record.choices[0].message
    assert record.whole


def test_an_empty_answer_is_complete() -> None:
    """A model may say nothing at all: a finish reason without a word is an answer."""
    effects = play(session(), ChunkReceived(finish_chunk()), UpstreamFinished())
    assert ["OpenStream", "SendChunk", "Save", "SendDone"] == names(effects)
    record = saved(effects)
    assert (State.COMPLETED, "stop") == (record.state, record.finish_reason)


@pytest.mark.parametrize("payloads", [(), ({},), ({"choices": [], "usage": {"total_tokens": 3}},)])
def test_an_end_without_a_beginning_is_a_failure(payloads: tuple[Any, ...]) -> None:
    """An upstream that says it is done and never began a choice has failed."""
    record = saved(play(session(), *map(ChunkReceived, payloads), UpstreamFinished()))
    assert (State.FAILED, NOTHING_CAME) == (record.state, record.failure)
    assert not record.whole


def test_a_failure_before_the_first_token_opens_nothing() -> None:
    """The error can be an HTTP status then, and the failure is kept all the same."""
    target = session()
    effects = play(target, UpstreamFailed(FAILURE))
    assert ["Save", "SendError"] == names(effects)
    assert not target.opened
    assert FAILURE == saved(effects).failure


def test_a_failure_mid_stream_keeps_the_text() -> None:
    """The partial text is saved before the client gets the error, without a finish reason."""
    effects = play(session(), ChunkReceived(text_chunk("Hel")), UpstreamFailed(FAILURE))
    assert ["OpenStream", "SendChunk", "Save", "SendError"] == names(effects)
    record = saved(effects)
    assert "Hel" == record.choices[0].message["content"]
    assert (None, False) == (record.finish_reason, record.whole)


@pytest.mark.parametrize(
    ("event", "state", "code"),
    [
        (DeadlineExpired(Failure("idle_timeout", "…")), State.FAILED, "idle_timeout"),
        (DrainExpired(), State.FAILED, "draining"),
    ],
)
def test_our_own_endings_stop_the_upstream_first(event: Event, state: State, code: str) -> None:
    """Deadlines and drains stop the upstream, save, and then send the client the error."""
    effects = play(session(), ChunkReceived(text_chunk("Hel")), event)
    assert ["StopUpstream", "Save", "SendError"] == names(effects)[2:]
    record = saved(effects)
    assert (record.state, record.failure.code if record.failure else None) == (state, code)


def test_under_cancel_a_client_that_leaves_stops_the_upstream() -> None:
    """The partial text is kept, and nothing more is sent."""
    effects = play(session(), ChunkReceived(text_chunk("Hel")), ClientLeft(), at=3.0)
    assert ["StopUpstream", "Save"] == names(effects)[2:]
    record = saved(effects)
    assert (State.CLIENT_GONE, 3.0) == (record.state, record.client_left_at)
    assert record.failure is not None
    assert "client_left" == record.failure.code


def test_under_finish_the_answer_goes_on_without_its_client() -> None:
    """The whole answer is kept, with the moment when the client left first."""
    target = session(SessionPolicy(client_gone=ClientGone.FINISH))
    play(target, ChunkReceived(text_chunk("Hel")))
    assert [] == play(target, ClientLeft(), at=2.0)
    assert [] == play(target, ClientLeft(), at=2.5)
    assert [] == play(target, ChunkReceived(text_chunk("lo")), at=3.0)
    effects = play(target, UpstreamFinished(), at=4.0)
    assert ["Save"] == names(effects)
    record = saved(effects)
    assert (State.COMPLETED, 2.0) == (record.state, record.client_left_at)
    assert "Hello" == record.choices[0].message["content"]


def test_a_stop_is_no_client_that_left() -> None:
    """An explicit stop is `stopped`, also under `finish`, and the stream just ends, without
    `[DONE]`."""
    target = session(SessionPolicy(client_gone=ClientGone.FINISH))
    effects = play(target, ChunkReceived(text_chunk("Hel")), StopRequested())
    assert ["StopUpstream", "Save"] == names(effects)[2:]
    record = saved(effects)
    assert record.failure is not None
    assert (State.CLIENT_GONE, "stopped") == (record.state, record.failure.code)


def test_finish_reasons_survive_a_late_failure() -> None:
    """A failure after every choice's finish reason is a failure, but its messages are whole."""
    error = UpstreamFailed(Failure("upstream_error", "Oops."))
    effects = play(
        session(), ChunkReceived(text_chunk("Hello")), ChunkReceived(finish_chunk("length")), error
    )
    record = saved(effects)
    assert (State.FAILED, "length", True) == (record.state, record.finish_reason, record.whole)


def test_an_answer_is_whole_once_every_choice_has_ended() -> None:
    """With `n: 2` one choice's finish reason isn't enough."""
    target = session(choices_expected=2)
    play(target, ChunkReceived(chunk({}, "stop", index=1)))
    assert not target.transcript.is_whole
    play(target, ChunkReceived(chunk({"content": "late"}, index=0)))
    play(target, ChunkReceived(chunk({}, "stop", index=0)))
    assert target.transcript.is_whole


def test_a_ping_before_the_first_token_opens_the_stream() -> None:
    """After an interval of silence the 200 is committed by a ping; not a moment earlier."""
    target = session(SessionPolicy(keep_alive_interval_seconds=15.0))
    assert [] == play(target, TimePassed(), at=14.9)
    assert ["OpenStream", "SendPing"] == names(play(target, TimePassed(), at=15.0))
    assert target.state is State.PENDING
    assert [] == play(target, TimePassed(), at=29.9)
    assert ["SendPing"] == names(play(target, TimePassed(), at=30.0))


def test_chunks_put_pings_off() -> None:
    """Silence is counted from the last thing sent, chunk or ping."""
    target = session(SessionPolicy(keep_alive_interval_seconds=15.0))
    play(target, ChunkReceived(text_chunk("Hel")), at=10.0)
    assert [] == play(target, TimePassed(), at=24.9)
    assert ["SendPing"] == names(play(target, TimePassed(), at=25.0))


def test_without_an_interval_or_a_client_there_are_no_pings() -> None:
    """A plain request gets no pings, nor does a client that left."""
    plain = session(SessionPolicy(keep_alive_interval_seconds=None, total_seconds=None))
    assert [] == play(plain, TimePassed(), at=1e6)
    assert plain.wakes_at == float("inf")
    left = session(SessionPolicy(client_gone=ClientGone.FINISH))
    play(left, ClientLeft())
    assert [] == play(left, TimePassed(), at=1e6)


def test_the_idle_deadline_counts_tokens_only() -> None:
    """The idle deadline starts with the first token, and an empty delta doesn't feed it."""
    policy = SessionPolicy(keep_alive_interval_seconds=None, idle_seconds=10.0, total_seconds=None)
    target = session(policy)
    play(target, ChunkReceived(chunk({"role": "assistant", "content": ""})), at=1.0)
    assert target.wakes_at == float("inf")
    play(target, ChunkReceived(text_chunk("Hel")), at=2.0)
    play(target, ChunkReceived(text_chunk("")), at=9.0)
    assert 12.0 == target.wakes_at
    assert target.due(11.9) is None
    event = target.due(12.0)
    assert isinstance(event, DeadlineExpired)
    assert "idle_timeout" == event.failure.code
    assert "10 s" in event.failure.message


def test_the_total_deadline_counts_from_the_beginning() -> None:
    """However lively the stream, `total_seconds` after its creation it is over."""
    target = session(SessionPolicy(keep_alive_interval_seconds=None, total_seconds=600.0))
    play(target, ChunkReceived(text_chunk("Hel")), at=599.0)
    event = target.due(600.0)
    assert isinstance(event, DeadlineExpired)
    assert "total_timeout" == event.failure.code


def test_a_whole_answer_doesnt_wait_for_a_dawdling_upstream() -> None:
    """After every finish reason the trailer gets some seconds; then the answer has ended well."""
    target = session(SessionPolicy(keep_alive_interval_seconds=None))
    play(target, ChunkReceived(text_chunk("Hel")), ChunkReceived(finish_chunk()), at=1.0)
    assert target.due(1.0 + TRAILER_SECONDS - 0.1) is None
    assert UpstreamFinished() == target.due(1.0 + TRAILER_SECONDS)


def test_a_whole_answer_has_no_idle_deadline_any_more() -> None:
    """What the upstream still owes is usage and `[DONE]`, which have a deadline of their own."""
    policy = SessionPolicy(keep_alive_interval_seconds=None, idle_seconds=1.0, total_seconds=None)
    target = session(policy)
    play(target, ChunkReceived(text_chunk("Hel")), ChunkReceived(finish_chunk()), at=1.0)
    assert 1.0 + TRAILER_SECONDS == target.wakes_at


def test_a_first_token_and_a_whole_answer_are_milestones() -> None:
    """Each is counted once, when `wakes_at` may have moved closer."""
    target = session(choices_expected=2)
    chunks = (
        chunk({"role": "assistant", "content": ""}),
        text_chunk("Hel"),
        text_chunk("lo"),
        finish_chunk(),
        chunk({}, "stop", index=1),
        finish_chunk(),
    )
    counted = []
    for payload in chunks:
        play(target, ChunkReceived(payload))
        counted.append(target.milestones)
    assert [0, 1, 1, 1, 2, 2] == counted


def test_an_excuse_for_silence_never_brings_the_idle_deadline_closer() -> None:
    """Nor is there anything to excuse before the first token."""
    policy = SessionPolicy(keep_alive_interval_seconds=None, idle_seconds=10.0, total_seconds=None)
    target = session(policy)
    target.excuse_silence(1.0)
    assert target.wakes_at == float("inf")
    play(target, ChunkReceived(text_chunk("Hel")), at=2.0)
    for excused_until, deadline in ((1.0, 12.0), (5.0, 15.0), (4.0, 15.0)):
        target.excuse_silence(excused_until)
        assert target.wakes_at == deadline


def test_the_longest_gap_is_between_two_tokens() -> None:
    """Not before the first nor after the last, and without what a slow client made of it."""
    target = session()
    for at, text in ((5.0, "a"), (6.0, "b"), (9.0, "c"), (10.0, "d")):
        play(target, ChunkReceived(text_chunk(text)), at=at)
    assert 3.0 == target.longest_gap_seconds
    target.excuse_silence(18.0)
    play(target, ChunkReceived(text_chunk("e")), at=20.0)
    play(target, ChunkReceived(finish_chunk()), at=24.0)
    record = saved(play(target, UpstreamFinished(), at=30.0))
    assert 3.0 == record.longest_gap_seconds
    assert 0.0 == saved(play(session(), UpstreamFinished())).longest_gap_seconds


def test_a_plain_request_is_sent_nothing_before_its_end() -> None:
    """Its chunks are folded, and the completion object is all that its client gets."""
    target = session(stream=False)
    effects = play(
        target, ChunkReceived(text_chunk("Hi")), ChunkReceived(finish_chunk()), UpstreamFinished()
    )
    assert ["Save", "SendDone"] == names(effects)
    assert not target.opened


def test_an_answer_that_ended_well_is_whole_without_a_finish_reason() -> None:
    """The upstream's own word for the end is enough."""
    record = saved(play(session(), ChunkReceived(text_chunk("Hi")), UpstreamFinished()))
    assert (State.COMPLETED, True, None) == (record.state, record.whole, record.finish_reason)


def test_the_last_attempts_agent_and_idle_deadline_count() -> None:
    """The record names the agent that answered."""
    target = session(SessionPolicy(keep_alive_interval_seconds=None, total_seconds=None))
    play(target, AttemptStarted("first", 5.0), AttemptStarted("second", 9.0))
    play(target, ChunkReceived(text_chunk("Hi")), at=1.0)
    assert 10.0 == target.wakes_at
    assert "second" == saved(play(target, UpstreamFinished())).agent


def test_usage_is_hidden_from_those_who_did_not_ask() -> None:
    """A usage chunk is kept for the record, not sent."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    effects = play(
        session(),
        ChunkReceived(text_chunk("Hi")),
        ChunkReceived({"choices": [], "usage": usage}),
        UpstreamFinished(),
    )
    assert ["OpenStream", "SendChunk", "Save", "SendDone"] == names(effects)
    record = saved(effects)
    assert (record.usage, record.usage_source) == (usage, UsageSource.PROVIDER)
    assert 2 == record.token_count


def test_usage_comes_once_and_last_for_those_who_asked() -> None:
    """Wherever the upstream put it, usage is one chunk of its own before the end, its other
    fields untouched."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    frame = {"id": "up-1", "choices": [], "usage": usage, "timings": {"predicted_n": 2}}
    effects = play(
        session(include_usage=True),
        ChunkReceived(frame),
        ChunkReceived(text_chunk("Hi")),
        UpstreamFinished(),
    )
    assert ["OpenStream", "SendChunk", "SendChunk", "Save", "SendDone"] == names(effects)
    sent = [payload_of(effect) for effect in effects if isinstance(effect, SendChunk)]
    assert sent[-1] == frame


def test_an_estimated_usage_is_marked_as_such() -> None:
    """A client that asked gets an estimate from an upstream that doesn't count."""
    effects = play(
        session(include_usage=True), ChunkReceived(text_chunk("x" * 40)), UpstreamFinished()
    )
    sent = [payload_of(effect) for effect in effects if isinstance(effect, SendChunk)][-1]
    assert {
        "choices": [],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 10,
            "total_tokens": 13,
            "estimated": True,
        },
    } == sent
    assert saved(effects).usage_source is UsageSource.ESTIMATED


def test_heartbeat_chunks_are_not_passed_on() -> None:
    """A chunk without choices would make clients stumble over `choices[0]`; one with fields of its
    own goes through."""
    heartbeat = {"id": "x", "object": "chat.completion.chunk", "choices": []}
    filters = {"id": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    effects = play(session(), ChunkReceived(heartbeat), ChunkReceived(filters))
    assert ["OpenStream", "SendChunk"] == names(effects)


def test_times_are_measured_from_the_request() -> None:
    """The time to first token ends with the first text, not with the role, and the duration with
    the end."""
    target = session(created_at=100.0)
    play(target, ChunkReceived(chunk({"role": "assistant", "content": ""})), at=100.1)
    play(target, ChunkReceived(text_chunk("Hi")), at=100.25)
    record = saved(play(target, UpstreamFinished(), at=101.5))
    assert record.ttft_ms == pytest.approx(250.0)
    assert record.duration_ms == pytest.approx(1500.0)


def test_done_and_error_exclude_each_other() -> None:
    """A session that failed has no `SendDone`, and one that completed no `SendError`."""
    failed = play(session(), ChunkReceived(text_chunk("Hi")), UpstreamFailed(FAILURE))
    assert not any(isinstance(effect, SendDone) for effect in failed)
    done = play(session(), ChunkReceived(text_chunk("Hi")), UpstreamFinished())
    assert not any(isinstance(effect, SendError) for effect in done)
