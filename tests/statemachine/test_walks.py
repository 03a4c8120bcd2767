"""Walks, all short ones and some long: whatever happens in whatever order, the promises hold."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine import (
    Activity,
    AttemptStarted,
    ChunkReceived,
    ChunkRun,
    ClientGone,
    ClientLeft,
    ClientReturned,
    DeadlineExpired,
    DrainExpired,
    Effect,
    Event,
    Failure,
    IllegalTransition,
    OpenStream,
    Outcome,
    RepeatedChunks,
    Save,
    SendChunk,
    SendDone,
    SendError,
    SendPing,
    SessionPolicy,
    State,
    StopRequested,
    StopUpstream,
    StreamSession,
    TimePassed,
    ToolCallEnded,
    ToolCallStarted,
    TurnEnded,
    UpstreamFailed,
    UpstreamFinished,
    WaitExpired,
)
from tests.statemachine.conftest import asked, finish_chunk, made_up, text_after, text_chunk

FAILURE = Failure("upstream_error", "It broke.")
BROKE_OFF = Failure("upstream_incomplete", "It broke off.")
SENDS = (OpenStream, SendChunk, SendPing, SendDone, SendError)

STEPS: tuple[Event, ...] = (
    ChunkReceived(text_chunk("word")),
    ChunkReceived(finish_chunk()),
    text_after(text_chunk("first"), "more", "", "!"),
    ChunkReceived({"choices": [], "usage": {"completion_tokens": 1}}),
    AttemptStarted("demo", 60.0),
    TurnEnded(1),
    ToolCallStarted("call_1", 1, 0, "docs", "search", "{}"),
    ToolCallEnded("call_1", Outcome.OK, "found", 5),
    UpstreamFinished(),
    UpstreamFailed(FAILURE),
    UpstreamFailed(BROKE_OFF),
    DeadlineExpired(FAILURE),
    DrainExpired(),
    ClientLeft(),
    ClientReturned(),
    WaitExpired(),
    StopRequested(),
    TimePassed(),
)
events = st.one_of(
    st.text(max_size=5).map(lambda text: ChunkReceived(text_chunk(text))), st.sampled_from(STEPS)
)
walks = st.lists(st.tuples(events, st.floats(0, 100)), max_size=30)


def text_in(run: ChunkRun) -> str:
    """What the chunks of a run say."""
    if isinstance(run, RepeatedChunks):
        return "".join(run.texts)
    choices = run.payload["choices"]
    return str(choices[0]["delta"].get("content", "")) if choices else ""


@pytest.mark.parametrize("client_gone", ClientGone)
def test_the_sessions_promises_hold_on_every_short_walk(client_gone: ClientGone) -> None:
    """Every walk of three events there is, with a silence after each that is long enough for a
    ping."""
    for walk in product(STEPS, repeat=3):
        promises_hold([(event, 20.0) for event in walk], client_gone, include_usage=True)


@made_up(25)
@given(walk=walks, client_gone=st.sampled_from(ClientGone), include_usage=st.booleans())
def test_the_sessions_promises_hold_on_long_walks(
    walk: list[tuple[Event, float]], client_gone: ClientGone, include_usage: bool
) -> None:
    """The same of walks that go on."""
    promises_hold(walk, client_gone, include_usage)


def promises_hold(
    walk: list[tuple[Event, float]], client_gone: ClientGone, include_usage: bool
) -> None:
    """One `Save` per ended life and none before; the text saved is the text received; nothing is
    sent before opening, after the save but its end, or while nobody is there."""
    session = StreamSession(
        asked(include_usage=include_usage),
        SessionPolicy(client_gone=client_gone, activity=Activity.FIELD),
    )
    now, text = 0.0, ""
    effects: list[Effect] = []
    for event, delay in walk:
        now += delay
        running = not session.state.is_final
        was_attached = session.attached
        try:
            new = session.handle(event, now)
        except IllegalTransition:
            continue
        if running and isinstance(event, ChunkReceived):
            text += text_in(event.run)
        if not (was_attached and session.attached) or isinstance(event, ClientReturned):
            assert not any(isinstance(effect, SENDS) for effect in new)
        effects.extend(new)
    saves = [effect for effect in effects if isinstance(effect, Save)]
    assert len(saves) == (1 if session.state.is_final else 0)
    opens = [index for index, effect in enumerate(effects) if isinstance(effect, OpenStream)]
    chunks = [
        index
        for index, effect in enumerate(effects)
        if isinstance(effect, (SendChunk, SendPing, SendDone))
    ]
    assert len(opens) <= 1
    if chunks:
        assert opens
        assert opens[0] < chunks[0]
    if saves:
        position = effects.index(saves[0])
        assert not any(isinstance(e, (SendChunk, SendPing)) for e in effects[position:])
        assert not any(isinstance(e, StopUpstream) for e in effects[position:])
        record = saves[0].record
        kept = "".join(str(c.message["content"] or "") for c in record.choices)
        assert kept == text
        assert record.state is session.state
        assert (record.client_left_at is None) is session.attached
        if record.state is not State.COMPLETED:
            assert record.failure is not None
            assert not any(isinstance(effect, SendDone) for effect in effects)
    if session.state.is_final:
        assert session.wakes_at == float("inf")
        assert session.due(now + 1e9) is None


@made_up(25)
@given(gaps=st.lists(st.floats(0, 40), max_size=20), interval=st.floats(0.1, 30))
def test_a_driver_that_asks_at_wakes_at_never_spins_or_sleeps_in(
    gaps: list[float], interval: float
) -> None:
    """At `wakes_at` something is due, before it nothing is, and handling it moves `wakes_at` on."""
    session = StreamSession(asked(), SessionPolicy(keep_alive_interval_seconds=interval))
    now = 0.0
    for gap in gaps:
        moment = session.wakes_at
        assert moment >= now
        if now + gap < moment:
            now += gap
            assert session.due(now) is None
            session.handle(ChunkReceived(text_chunk("x")), now)
        else:
            now = moment
            event = session.due(now)
            assert event is not None
            session.handle(event, now)
            assert session.wakes_at > now
        if session.state.is_final:
            return
