"""The transition table, cell by cell: what is written down, and that the session obeys it."""

import pytest

from statemachine import (
    IGNORED,
    AttemptStarted,
    ChunkReceived,
    ClientGone,
    ClientLeft,
    DeadlineExpired,
    DrainExpired,
    Event,
    Failure,
    IllegalTransition,
    Save,
    SessionPolicy,
    State,
    StopRequested,
    StreamSession,
    TextReceived,
    TimePassed,
    UpstreamFailed,
    UpstreamFinished,
    messages,
    transitions,
)
from tests.statemachine.conftest import asked, text_after, text_chunk

P, S, C, F, G = State.PENDING, State.STREAMING, State.COMPLETED, State.FAILED, State.CLIENT_GONE
I, ABSENT = IGNORED, None  # noqa: E741  (a table wants narrow columns)

# The same table as `statemachine.table`, written a second time by hand: event × state.
EXPECTED = {
    # event           PENDING STREAMING COMPLETED FAILED CLIENT_GONE
    AttemptStarted: (P, ABSENT, ABSENT, I, I),
    ChunkReceived: (S, S, ABSENT, I, I),
    TextReceived: (ABSENT, S, ABSENT, I, I),
    UpstreamFinished: (C, C, ABSENT, I, I),
    UpstreamFailed: (F, F, ABSENT, I, I),
    DeadlineExpired: (F, F, I, I, I),
    DrainExpired: (F, F, I, I, I),
    ClientLeft: (G, G, I, I, I),
    StopRequested: (G, G, I, I, I),
    TimePassed: (P, S, I, I, I),
}
FAILURE = Failure("upstream_error", "It broke.")
EVENTS: dict[type[Event], Event] = {
    AttemptStarted: AttemptStarted("demo", 60.0),
    ChunkReceived: ChunkReceived(text_chunk("word")),
    TextReceived: text_after(text_chunk("word"), "s"),
    UpstreamFinished: UpstreamFinished(),
    UpstreamFailed: UpstreamFailed(FAILURE),
    DeadlineExpired: DeadlineExpired(FAILURE),
    DrainExpired: DrainExpired(),
    ClientLeft: ClientLeft(),
    StopRequested: StopRequested(),
    TimePassed: TimePassed(),
}
WAY_TO: dict[State, tuple[Event, ...]] = {
    P: (),
    S: (EVENTS[ChunkReceived],),
    C: (EVENTS[ChunkReceived], EVENTS[UpstreamFinished]),
    F: (EVENTS[ChunkReceived], EVENTS[UpstreamFailed]),
    G: (EVENTS[ChunkReceived], EVENTS[StopRequested]),
}
CELLS = [
    (policy, state, event, cell)
    for policy in ClientGone
    for event, row in EXPECTED.items()
    for state, cell in zip(State, row, strict=True)
]


def expected_cell(policy: ClientGone, state: State, event: type[Event], cell: object) -> object:
    """Under `finish`, a running session survives its client's leaving."""
    if policy is ClientGone.FINISH and event is ClientLeft and state in (P, S):
        return state
    return cell


def session_in(state: State, policy: ClientGone) -> StreamSession:
    session = StreamSession(asked(), SessionPolicy(client_gone=policy))
    for event in WAY_TO[state]:
        session.handle(event, 1.0)
    assert session.state is state
    return session


def test_every_event_has_a_row() -> None:
    """The expected table names every event there is, so no new one escapes the matrix."""
    # Not `__subclasses__()`: attrs makes slotted classes twice, and the first lingers.
    kinds = {kind for kind in vars(messages).values() if isinstance(kind, type)}
    assert set(EXPECTED) == {kind for kind in kinds if issubclass(kind, Event)} - {Event}


@pytest.mark.parametrize(("policy", "state", "event", "cell"), CELLS)
def test_cell_is_as_written(
    policy: ClientGone, state: State, event: type[Event], cell: object
) -> None:
    """The table in the code is the table above."""
    expected = expected_cell(policy, state, event, cell)
    assert transitions(policy)[state].get(event.__name__) == expected


@pytest.mark.parametrize(("policy", "state", "event", "cell"), CELLS)
def test_session_obeys_the_cell(
    policy: ClientGone, state: State, event: type[Event], cell: object
) -> None:
    """A cell decides the session's next state; ignored and illegal events change nothing; a
    final state is entered with exactly one Save."""
    session = session_in(state, policy)
    before = repr(session)
    target = expected_cell(policy, state, event, cell)
    if target is ABSENT:
        with pytest.raises(IllegalTransition):
            session.handle(EVENTS[event], 2.0)
        assert before == repr(session)
        return
    effects = session.handle(EVENTS[event], 2.0)
    saves = [effect for effect in effects if isinstance(effect, Save)]
    if target is IGNORED:
        assert effects == ()
        assert before == repr(session)
        return
    assert session.state is target
    assert len(saves) == (1 if target in (C, F, G) else 0)


def test_final_states_lead_nowhere() -> None:
    """No cell of a final state holds a state: what has ended stays ended."""
    for policy in ClientGone:
        for state in (C, F, G):
            assert set(transitions(policy)[state].values()) == {IGNORED}


def test_state_values_are_the_contract() -> None:
    """Columns, log fields and metric labels use these words."""
    assert [state.value for state in State] == [
        "pending",
        "streaming",
        "completed",
        "failed",
        "client_gone",
    ]
