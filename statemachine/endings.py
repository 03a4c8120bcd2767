"""Says why a session ended, in words for people, and what it used up.

The service's own failures are here; an upstream's own words come in with its events.
"""

from collections.abc import Callable, Sequence
from typing import Any

from statemachine.calls import Turn, usage_of_turns
from statemachine.messages import (
    AnswerExceeded,
    Choice,
    ClientLeft,
    DeadlineExpired,
    DrainExpired,
    Event,
    Failure,
    SessionRequest,
    StopRequested,
    UpstreamFailed,
    UsageSource,
    WaitExpired,
)
from statemachine.tokens import estimate_tokens
from statemachine.transcript import Transcript

BROKEN_OFF = "upstream_incomplete"
"""The code of an upstream that ended before its answer did: no `[DONE]`, a connection that broke."""
MALFORMED = "upstream_malformed"
"""The code of an upstream that sent what is no answer."""
BODY_ENDED = Failure(BROKEN_OFF, "The model's answer broke off before its end.")
"""An upstream that just stops, although its connection is sound. Only the session knows if its finish
reasons make that a good end after all."""
NOTHING_CAME = Failure(BROKEN_OFF, "The model's backend ended the answer before it began.")
CUT_OFF_REASONS = (
    "abort",
    "aborted",
    "cancelled",
    "canceled",
    "error",
    "failed",
    "incomplete",
    "insufficient_system_resource",
    "internal_error",
    "malformed_function_call",
    "network_error",
    "server_error",
    "timeout",
)
"""Finish reasons by which backends say that they didn't finish."""
CLIENT_LEFT = Failure("client_left", "The client left before the answer was complete.")
STOPPED = Failure("stopped", "The answer was stopped on request before it was complete.")
DRAINING = Failure(
    "draining",
    "The service is restarting and could not finish this answer; please send the request again.",
)


def expired(code: str, message: str) -> DeadlineExpired:
    """Make the event for a deadline that has passed."""
    return DeadlineExpired(Failure(code, message, type="timeout_error"))


def failure_of(event: Event) -> Failure | None:
    """Return what an ending event says went wrong; None if nothing did."""
    match event:
        case UpstreamFailed(failure) | DeadlineExpired(failure) | AnswerExceeded(failure):
            return failure
        case DrainExpired():
            return DRAINING
        case StopRequested():
            return STOPPED
        case ClientLeft() | WaitExpired():
            return CLIENT_LEFT
        case _:
            return None


def prompt_tokens_of(request: SessionRequest) -> int:
    """Estimate the tokens of what was sent."""
    return estimate_tokens([request.messages, request.tools])


def usage_of(
    transcript: Transcript,
    choices: Sequence[Choice],
    prompt_tokens: Callable[[], int],
    turns: Sequence[Turn] = (),
) -> tuple[dict[str, Any] | None, UsageSource]:
    """Return usage as the upstream gave it, or an estimate that says so, or nothing.

    Args:
        choices: the transcript's own, so that they needn't be made twice.
        prompt_tokens: estimates those of what was sent.
        turns: those before the last one.
    """
    if turns and (total := usage_of_turns(turns, transcript.usage)) is not None:
        return total, UsageSource.PROVIDER
    if transcript.usage is not None:
        return dict(transcript.usage), UsageSource.PROVIDER
    if not transcript.chunk_count:
        return None, UsageSource.UNKNOWN
    prompt = prompt_tokens()
    answer = sum(
        estimate_tokens([value for key, value in choice.message.items() if key != "role"])
        for choice in choices
    )
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "estimated": True,
    }
    return usage, UsageSource.ESTIMATED
