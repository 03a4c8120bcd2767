"""Gathers what an answer's agent does between its words: `Work`. A session has one from the end of its
first turn on. Pure.
"""

from attrs import evolve

from statemachine.calls import Activity, Outcome, ToolCall, Turn, activity_chunk
from statemachine.chunks import ParsedChunk
from statemachine.messages import (
    Event,
    SessionPolicy,
    SessionRequest,
    ToolCallEnded,
    ToolCallStarted,
    TurnEnded,
    UpstreamFailed,
)
from statemachine.transcript import Transcript


class Work:
    """The turns and calls of one answer, so far.

    Attributes:
        turns: those that have ended.
    """

    __slots__ = ("_calls", "turns")

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self._calls: dict[str, ToolCall] = {}

    def note(
        self, event: TurnEnded | ToolCallStarted | ToolCallEnded, answer: Transcript, now: float
    ) -> ToolCall | None:
        """Take in what happened at `now`. The call that clients are to be told of, if it is one's beginning
        or end. An end of what wasn't begun changes nothing, nor does a second one."""
        match event:
            case TurnEnded(number):
                self.turns.append(Turn(number, answer.text_length, answer.take_usage()))
                return None
            case ToolCallStarted(call_id, turn, position, server, tool, arguments):
                call = ToolCall(call_id, turn, position, server, tool, arguments, now)
            case ToolCallEnded(call_id, outcome, result, size, is_truncated):
                begun = self._calls.get(call_id)
                if begun is None or begun.outcome is not None:
                    return None
                call = evolve(
                    begun,
                    ended_at=now,
                    outcome=outcome,
                    result=result,
                    size=size,
                    is_truncated=is_truncated,
                )
        self._calls[call.call_id] = call
        return call

    @property
    def begun(self) -> tuple[ToolCall, ...]:
        """All calls so far, in the order in which they began."""
        return tuple(self._calls.values())

    def calls(self, ending: Event) -> tuple[ToolCall, ...]:
        """All calls of an answer that this has ended. An upstream fails while a tool is at work only if the
        process that called it died, or broke: then nobody knows what became of the call."""
        is_known = not isinstance(ending, UpstreamFailed)
        outcome = Outcome.ABANDONED if is_known else Outcome.UNKNOWN
        return tuple(
            call if call.outcome is not None else evolve(call, outcome=outcome)
            for call in self._calls.values()
        )


def told_of(call: ToolCall, request: SessionRequest, policy: SessionPolicy) -> ParsedChunk | None:
    """The chunk by which a client is told of a call's beginning or end; None if it isn't to be."""
    if policy.activity is Activity.NONE or not request.stream:
        return None
    return ParsedChunk(
        activity_chunk(
            call,
            policy.activity,
            request.model,
            int(request.created_at),
            shows_detail=policy.shows_tool_detail,
        )
    )
