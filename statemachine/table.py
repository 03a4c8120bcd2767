"""The transition table: which event leads from which state to which. It fits on one screen.

1. A cell holds the next state, or `LATE` (the event may honestly arrive, and changes nothing), or
   `NEVER` (it cannot happen: `IllegalTransition`, and nothing changes).
2. A state that is final is never left.
3. The row of `AttemptStarted` is the rule that retries and fallback agents end with the first
   token, or the first call of a tool: after it, there is no cell for another attempt.

`python -m statemachine` prints docs/state-machine.md from this file; a test compares.
"""

import enum
from typing import Final, Literal

from statemachine.messages import (
    AnswerExceeded,
    AttemptStarted,
    ChunkReceived,
    ClientLeft,
    ClientReturned,
    DeadlineExpired,
    DrainExpired,
    Event,
    StopRequested,
    TimePassed,
    ToolCallEnded,
    ToolCallStarted,
    TurnEnded,
    UpstreamFailed,
    UpstreamFinished,
    WaitExpired,
)
from statemachine.states import ClientGone, State


class Ignored(enum.Enum):
    """The type of `IGNORED`."""

    IGNORED = "ignored"


IGNORED: Final = Ignored.IGNORED
Cell = State | Literal[Ignored.IGNORED]


class IllegalTransition(Exception):
    """An event came that cannot happen in this state: a bug in the caller. Nothing was changed."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"{type(event).__name__} cannot happen in state {state.value!r}")
        self.state = state
        self.event = event


P, S, C, F, G = State
LATE, NEVER = IGNORED, None

_Matrix = dict[type[Event], tuple[Cell | None, ...]]
# fmt: off
MATRIX: Final[_Matrix] = {
    #                   PENDING  STREAMING  COMPLETED  FAILED  CLIENT_GONE
    AttemptStarted:    (P,       NEVER,     NEVER,     LATE,   LATE),
    ChunkReceived:     (S,       S,         NEVER,     LATE,   LATE),
    AnswerExceeded:    (F,       F,         NEVER,     NEVER,  NEVER),
    TurnEnded:         (S,       S,         NEVER,     LATE,   LATE),
    ToolCallStarted:   (S,       S,         NEVER,     LATE,   LATE),
    ToolCallEnded:     (NEVER,   S,         NEVER,     LATE,   LATE),
    UpstreamFinished:  (F,       C,         NEVER,     LATE,   LATE),
    UpstreamFailed:    (F,       F,         NEVER,     LATE,   LATE),
    ClientLeft:        (G,       G,         LATE,      LATE,   LATE),
    ClientReturned:    (NEVER,   NEVER,     LATE,      LATE,   LATE),
    WaitExpired:       (NEVER,   NEVER,     LATE,      LATE,   LATE),
    StopRequested:     (G,       G,         LATE,      LATE,   LATE),
    DeadlineExpired:   (F,       F,         LATE,      LATE,   LATE),
    DrainExpired:      (F,       F,         LATE,      LATE,   LATE),
    TimePassed:        (P,       S,         LATE,      LATE,   LATE),
}

# Under `client_gone: finish` two rows differ: the answer goes on while nobody is there.
FINISH_MATRIX: Final[_Matrix] = {
    **MATRIX,
    ClientLeft:        (P,       S,         LATE,      LATE,   LATE),
    ClientReturned:    (P,       S,         LATE,      LATE,   LATE),
}

# Under `client_gone: wait` a third one does: it goes on for so long only.
WAIT_MATRIX: Final[_Matrix] = {
    **FINISH_MATRIX,
    WaitExpired:       (G,       G,         LATE,      LATE,   LATE),
}
# fmt: on

Row = dict[type[Event], Cell]


def _columns(matrix: _Matrix) -> dict[State, Row]:
    return {
        state: {
            event: cell for event, cells in matrix.items() if (cell := cells[number]) is not None
        }
        for number, state in enumerate(State)
    }


_TABLES = {
    ClientGone.CANCEL: _columns(MATRIX),
    ClientGone.WAIT: _columns(WAIT_MATRIX),
    ClientGone.FINISH: _columns(FINISH_MATRIX),
}


def transitions(client_gone: ClientGone) -> dict[State, Row]:
    """The table in force: state → event's class → cell; an absent class is illegal."""
    return _TABLES[client_gone]
