"""Makes what an answer comes from: one model, asked once; or, for an agent with tools, turns."""

from collections.abc import Callable, Sequence

from service.agents.protocol import Agent, AgentCall
from service.edge.errors import ApiError
from service.stream.attempts import Attempts
from service.stream.moments import Moments
from service.stream.ports import Upstream
from service.turns.calling import MayCall
from service.turns.loop import TurnLimits, Turns
from service.wire import ChatRequest
from statemachine import Failure, Transcript


def check_choices(agent: Agent, chat: ChatRequest) -> None:
    """Raises ApiError `invalid_request` (400) for several choices of an agent that has tools."""
    if agent.tools is not None and chat.choices_expected > 1:
        message = f"The agent {agent.name!r} calls tools, so 'n' must be 1."
        kind = "invalid_request_error"
        raise ApiError(Failure("invalid_request", message, type=kind, param="n"))


def upstream_of(
    agents: Sequence[Agent],
    call: AgentCall,
    moments: Moments,
    name_attempt: Callable[[], str] | None,
    answer: Transcript,
    may_call: MayCall,
) -> Upstream:
    """The upstream of an answer.

    Args:
        agents: whom to ask, in order; the first one's tools count.
        call, moments, name_attempt: see `Attempts`.
        answer: what has been said, as it comes.
        may_call: see there.
    """
    tools = agents[0].tools
    if tools is None:
        return Attempts(agents, call, moments, name_attempt)

    def ask(call: AgentCall, again: Sequence[Agent] | None) -> Attempts:
        asked = agents if again is None else again
        return Attempts(asked, call, moments, name_attempt, asks_once=again is not None)

    limits = TurnLimits(tools.max_turns, tools.concurrency, tools.stops_on_error, may_call)
    return Turns(ask, call, tools.toolbox, answer, limits)
