"""The states of a completion and which event leads where. The whole protocol fits on one screen.

1. A cell holds the next state, or `IGNORED` (late but honest: it may well arrive, and changes
   nothing), or is absent (it cannot happen: `IllegalTransition`, and nothing changes).
2. A state that is final is never left.
3. `AttemptStarted` is legal in `PENDING` only: this row is the rule that retries and fallback
   agents end with the first token.
4. `TextReceived` is legal in `STREAMING` only: it says what differs from an earlier chunk.

`docs/state-machine.md` is printed from this file by `python -m statemachine`; a test compares.
"""

import enum
from typing import Final, Literal


class State(enum.StrEnum):
    """Where a completion is in its life. The values are column, log field and metric label."""

    PENDING = "pending"
    """Asked for; no chunk yet."""
    STREAMING = "streaming"
    """At least one chunk arrived."""
    COMPLETED = "completed"
    """The upstream ended well; the full text is kept."""
    FAILED = "failed"
    """The upstream, a deadline or a drain ended it; the partial text is kept."""
    CLIENT_GONE = "client_gone"
    """The client left or asked to stop; the partial text is kept."""

    is_final: bool

    def __init__(self, value: str) -> None:
        # Asked for every chunk: an attribute, where a property would compare texts each time.
        self.is_final = value not in ("pending", "streaming")


class ClientGone(enum.StrEnum):
    """What a client's leaving means (`client_gone` in the configuration)."""

    CANCEL = "cancel"
    """Stop the upstream at once and keep the partial text."""
    FINISH = "finish"
    """Let the upstream end and keep the full text."""


class Ignored(enum.Enum):
    """The type of `IGNORED`."""

    IGNORED = "ignored"


IGNORED: Final = Ignored.IGNORED
Cell = State | Literal[Ignored.IGNORED]


class IllegalTransition(Exception):
    """An event came that cannot happen in this state: a bug in the caller. Nothing was changed."""

    def __init__(self, state: State, event_name: str) -> None:
        super().__init__(f"{event_name} cannot happen in state {state.value!r}")
        self.state = state
        self.event_name = event_name


_RUNNING: dict[str, Cell] = {
    "ChunkReceived": State.STREAMING,
    "UpstreamFinished": State.COMPLETED,
    "UpstreamFailed": State.FAILED,
    "DeadlineExpired": State.FAILED,
    "DrainExpired": State.FAILED,
    "ClientLeft": State.CLIENT_GONE,
    "StopRequested": State.CLIENT_GONE,
}
_LATE: dict[str, Cell] = dict.fromkeys(
    ("DeadlineExpired", "DrainExpired", "ClientLeft", "StopRequested", "TimePassed"), IGNORED
)
# After our own decision to end, the upstream may still get a word in before it is closed.
_LATE_UPSTREAM: dict[str, Cell] = dict.fromkeys(
    ("AttemptStarted", "ChunkReceived", "TextReceived", "UpstreamFinished", "UpstreamFailed"),
    IGNORED,
)

TRANSITIONS: Final[dict[State, dict[str, Cell]]] = {
    State.PENDING: {
        **_RUNNING,
        "AttemptStarted": State.PENDING,
        "TimePassed": State.PENDING,
    },
    State.STREAMING: {
        **_RUNNING,
        "TextReceived": State.STREAMING,
        "TimePassed": State.STREAMING,
    },
    State.COMPLETED: {**_LATE},
    State.FAILED: {**_LATE, **_LATE_UPSTREAM},
    State.CLIENT_GONE: {**_LATE, **_LATE_UPSTREAM},
}

# Under `client_gone: finish` a client that leaves is detached and the answer goes on.
DETACHED: Final[dict[State, dict[str, Cell]]] = {
    **TRANSITIONS,
    State.PENDING: {**TRANSITIONS[State.PENDING], "ClientLeft": State.PENDING},
    State.STREAMING: {**TRANSITIONS[State.STREAMING], "ClientLeft": State.STREAMING},
}


def transitions(client_gone: ClientGone) -> dict[State, dict[str, Cell]]:
    """The table in force: state → event's class name → cell; an absent name is illegal."""
    return DETACHED if client_gone is ClientGone.FINISH else TRANSITIONS
