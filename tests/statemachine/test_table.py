"""The session obeys the transition table, cell by cell. What stands in the cells has its second
opinion in docs/state-machine.md, which a test compares."""

import pytest

from statemachine import (
    IGNORED,
    AnswerExceeded,
    AttemptStarted,
    ChunkReceived,
    ClientGone,
    ClientLeft,
    ClientReturned,
    DeadlineExpired,
    DrainExpired,
    Event,
    Failure,
    IllegalTransition,
    Outcome,
    Save,
    SessionPolicy,
    State,
    StopRequested,
    StreamSession,
    TimePassed,
    ToolCallEnded,
    ToolCallStarted,
    TurnEnded,
    UpstreamFailed,
    UpstreamFinished,
    WaitExpired,
    messages,
    transitions,
)
from statemachine.table import FINISH_MATRIX, MATRIX, WAIT_MATRIX
from tests.statemachine.conftest import asked, finish_chunk, text_chunk

P, S, C, F, G = State
FAILURE = Failure("upstream_error", "It broke.")
EVENTS: dict[type[Event], Event] = {
    AttemptStarted: AttemptStarted("demo", 60.0),
    ChunkReceived: ChunkReceived(text_chunk("word")),
    AnswerExceeded: AnswerExceeded(FAILURE),
    TurnEnded: TurnEnded(1),
    ToolCallStarted: ToolCallStarted("call_1", 1, 0, "docs", "search", "{}"),
    ToolCallEnded: ToolCallEnded("call_1", Outcome.OK, "found", 5),
    UpstreamFinished: UpstreamFinished(),
    UpstreamFailed: UpstreamFailed(FAILURE),
    DeadlineExpired: DeadlineExpired(FAILURE),
    DrainExpired: DrainExpired(),
    ClientLeft: ClientLeft(),
    ClientReturned: ClientReturned(),
    WaitExpired: WaitExpired(),
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
    (policy, state, event, transitions(policy)[state].get(event))
    for policy in ClientGone
    for event in MATRIX
    for state in State
]


def session_in(state: State, policy: ClientGone) -> StreamSession:
    session = StreamSession(asked(), SessionPolicy(client_gone=policy))
    for event in WAY_TO[state]:
        session.handle(event, 1.0)
    assert session.state is state
    return session


def test_every_event_has_a_row_of_five_cells() -> None:
    """The matrices name every event there is, and every state, so no new one escapes them."""
    # Not `__subclasses__()`: attrs makes slotted classes twice, and the first lingers.
    kinds = {kind for kind in vars(messages).values() if isinstance(kind, type)}
    events = {kind for kind in kinds if issubclass(kind, Event)} - {Event}
    for matrix in (MATRIX, FINISH_MATRIX, WAIT_MATRIX):
        assert events == set(matrix)
        assert {len(State)} == {len(cells) for cells in matrix.values()}


def test_the_policies_differ_in_what_leaving_and_coming_back_mean() -> None:
    """Under `finish` and `wait` a running session survives its last reader's leaving, under `wait`
    until the wait is over; all else is the same."""
    late = (IGNORED, IGNORED, IGNORED)
    rows = (ClientLeft, ClientReturned, WaitExpired)
    assert [(G, G, *late), (None, None, *late), (None, None, *late)] == [MATRIX[e] for e in rows]
    assert [(P, S, *late), (P, S, *late), (None, None, *late)] == [FINISH_MATRIX[e] for e in rows]
    assert [(P, S, *late), (P, S, *late), (G, G, *late)] == [WAIT_MATRIX[e] for e in rows]
    for matrix in (FINISH_MATRIX, WAIT_MATRIX):
        assert {} == {e: matrix[e] for e in MATRIX if e not in rows and matrix[e] != MATRIX[e]}


def test_each_policy_has_a_table_of_its_own() -> None:
    """The policies go from the least patient one to the most, and each obeys its own matrix."""
    assert ["cancel", "wait", "finish"] == [policy.value for policy in ClientGone]
    for policy, matrix in zip(ClientGone, (MATRIX, WAIT_MATRIX, FINISH_MATRIX), strict=True):
        for event, cells in matrix.items():
            assert cells == tuple(transitions(policy)[state].get(event) for state in State)


@pytest.mark.parametrize(("policy", "state", "event", "cell"), CELLS)
def test_a_session_obeys_every_cell(
    policy: ClientGone, state: State, event: type[Event], cell: object
) -> None:
    """A cell decides the session's next state; ignored and illegal events change nothing; a
    final state is entered with exactly one Save."""
    session = session_in(state, policy)
    before = repr(session)
    if cell is None:
        with pytest.raises(IllegalTransition):
            session.handle(EVENTS[event], 2.0)
        assert before == repr(session)
        return
    effects = session.handle(EVENTS[event], 2.0)
    saves = [effect for effect in effects if isinstance(effect, Save)]
    if cell is IGNORED:
        assert () == effects
        assert before == repr(session)
        return
    assert session.state is cell
    assert len(saves) == (1 if cell in (C, F, G) else 0)


def test_final_states_lead_nowhere() -> None:
    """No cell of a final state holds a state: what has ended stays ended."""
    for policy in ClientGone:
        for state in (C, F, G):
            assert {IGNORED} == set(transitions(policy)[state].values())


@pytest.mark.parametrize("policy", ClientGone)
def test_no_attempt_starts_once_a_chunk_has_come(policy: ClientGone) -> None:
    """Retries and fallbacks belong to the time before the first token, or come too late."""
    cells = [transitions(policy)[state].get(AttemptStarted) for state in State]
    assert [P, None, None, IGNORED, IGNORED] == cells


@pytest.mark.parametrize("state", [P, S])
def test_an_upstream_that_breaks_off_after_every_finish_reason_has_ended_well(state: State) -> None:
    """Nothing of such an answer is missing; an error that the upstream names is a failure all the
    same, and so is breaking off before."""
    broken = UpstreamFailed(Failure("upstream_incomplete", "It broke."))
    for events, failure, end in (
        ((ChunkReceived(finish_chunk()),), broken, C),
        ((ChunkReceived(finish_chunk()),), UpstreamFailed(FAILURE), F),
        ((), broken, F),
    ):
        session = session_in(state, ClientGone.CANCEL)
        for event in (*events, failure):
            session.handle(event, 2.0)
        assert session.state is end


def test_the_states_values_are_a_contract() -> None:
    """Columns, log fields and metric labels use these words."""
    assert [
        "pending",
        "streaming",
        "completed",
        "failed",
        "client_gone",
    ] == [state.value for state in State]
