"""Makes the record of a session that is about to end: what is kept of it. Pure."""

from typing import Protocol

from statemachine.endings import failure_of, usage_of
from statemachine.messages import Event, SessionRecord, SessionRequest
from statemachine.states import State
from statemachine.transcript import Transcript
from statemachine.work import Work


class Life(Protocol):
    """What is recorded of; `statemachine.session.StreamSession` is one."""

    request: SessionRequest
    transcript: Transcript
    work: Work | None
    agent: str
    first_token_at: float | None
    client_left_at: float | None
    longest_gap_seconds: float

    def estimate_prompt(self) -> int:
        """The tokens of what was sent."""


def record_of(session: Life, state: State, ending: Event, now: float) -> SessionRecord:
    """What is kept of a session.

    Args:
        state: the one that it ends in.
        ending: what ends it, at `now`.
    """
    transcript, request, work = session.transcript, session.request, session.work
    transcript.tape.close()
    choices = transcript.choices()
    turns = () if work is None else tuple(work.turns)
    usage, source = usage_of(transcript, choices, session.estimate_prompt, turns)
    tokens = (usage or {}).get("completion_tokens")
    whole, first = state is State.COMPLETED or transcript.is_whole, session.first_token_at
    return SessionRecord(
        request=request,
        agent=session.agent,
        state=state,
        finish_reason=transcript.finish_reason if whole else None,
        failure=failure_of(ending),
        choices=choices,
        whole=whole,
        usage=usage,
        usage_source=source,
        token_count=tokens if type(tokens) is int else 0,
        chunk_count=transcript.chunk_count,
        ttft_ms=None if first is None else (first - request.created_at) * 1000,
        duration_ms=(now - request.created_at) * 1000,
        finished_at=now,
        client_left_at=session.client_left_at,
        upstream_id=transcript.upstream_id,
        upstream_model=transcript.upstream_model,
        upstream_created=transcript.upstream_created,
        extra=dict(transcript.extra),
        tape=transcript.tape,
        usage_frame=transcript.usage_frame,
        longest_gap_seconds=session.longest_gap_seconds,
        turns=turns,
        tool_calls=() if work is None else work.calls(ending),
    )
