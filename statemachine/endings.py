"""Why a session ended other than well: our own failures, in the words that people read.

Called by `session`. What an upstream says of itself comes in with its events.
"""

from statemachine.messages import (
    ClientLeft,
    DeadlineExpired,
    DrainExpired,
    Event,
    Failure,
    StopRequested,
    UpstreamFailed,
)

CLIENT_LEFT = Failure("client_left", "The client left before the answer was complete.")
STOPPED = Failure("stopped", "The answer was stopped on request before it was complete.")
DRAINING = Failure(
    "draining",
    "The service is restarting and could not finish this answer; please send the request again.",
)


def expired(code: str, message: str) -> DeadlineExpired:
    """The event for a deadline that has passed."""
    return DeadlineExpired(Failure(code, message, type="timeout_error"))


def failure_of(event: Event) -> Failure | None:
    """What an ending event says went wrong; None if nothing did."""
    match event:
        case UpstreamFailed(failure) | DeadlineExpired(failure):
            return failure
        case DrainExpired():
            return DRAINING
        case StopRequested():
            return STOPPED
        case ClientLeft():
            return CLIENT_LEFT
        case _:
            return None
