"""Asks a model, calls the tools that it wants, and asks again, until it wants none: `Turns`.

    Relay ──read──▶ ┌───────┐ ──read──▶ Attempts, one for each turn ──▶ the model
                    │ Turns │
          ◀─events─ └───────┘ ──read──▶ Calling, one for each turn ───▶ tools

1. Words pass as they come; also past this object, by the sink.
2. A turn whose end wants tools of ours is no end: it is told as `TurnEnded`, then each call, then
   another turn begins. Whatever is told is written down before the next `read`: a call before it is made,
   its result before the model sees it.
3. Only the first turn's model may be asked twice, or another in its place (`Attempts`).
4. The client's own tools end the answer, once those of ours that were called beside them have run. Of a
   tool that nobody has the model is told that there is none.
5. An answer that may go on no longer ends as failed, and says why.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from attrs import evolve, frozen

from service.agents.protocol import Agent, AgentCall, Sink
from service.stream.ports import Upstream
from service.tools.contract import Calls, Tool, Toolbox, ToolsUnavailable
from service.turns.calling import Calling, MayCall, calls_of
from service.turns.gathering import Gathering
from service.turns.messages import messages_after, request_with
from service.wire import InvalidRequest
from statemachine import (
    ChunkReceived,
    Event,
    Failure,
    Outcome,
    Transcript,
    TurnEnded,
    UpstreamFailed,
    UpstreamFinished,
)
from statemachine.endings import BROKEN_OFF, MALFORMED
from statemachine.session import TRAILER_SECONDS

_TOO_MUCH = Failure(MALFORMED, "The model wanted more calls of tools than can be made at once.")


@frozen
class TurnLimits:
    """How far an answer may go.

    Attributes:
        max_turns: how often the model is asked.
        concurrency: how many tools are called at the same time.
        stops_on_error: the first call that doesn't end well ends the answer.
        may_call: see `MayCall`.
    """

    max_turns: int
    concurrency: int
    stops_on_error: bool
    may_call: MayCall


Asking = Callable[[AgentCall, Sequence[Agent] | None], Upstream]
"""Makes what asks a model for one turn: the agents given, once; or, given none, those of the first turn."""


class Turns:
    """The upstream of an answer whose agent has tools.

    Args:
        ask: see `Asking`; whom it returns for the first turn has an `agent`.
        call: what the client asked.
        toolbox: the agent's.
        answer: what has been said so far.
        limits: see `TurnLimits`.
    """

    def __init__(
        self,
        ask: Asking,
        call: AgentCall,
        toolbox: Toolbox,
        answer: Transcript,
        limits: TurnLimits,
    ) -> None:
        self._ask = ask
        self._tools: dict[str, Tool] | None = None
        self._theirs: set[str] | None = set()
        """The client's tools; None if some of them have names that aren't known."""
        self._call = call
        self._toolbox = toolbox
        self._answer = answer
        self._limits = limits
        self._number = 0
        self._agents: Sequence[Agent] | None = None
        self._names: set[str] = set()
        self._text_begins = 0
        self._model: Upstream | None = None
        self._gathering: Gathering | None = None
        self._calling: Calling | None = None
        self._open: AbstractAsyncContextManager[Calls] | None = None
        self._calls: Calls | None = None
        self._ending: list[Event] = []

    async def read(self, sink: Sink | None = None) -> Sequence[Event]:
        """See `Attempts.read`."""
        while True:
            if self._ending:
                events, self._ending = self._ending, []
            elif self._calling is not None:
                events = await self._read_calls(self._calling)
            else:
                events = await self._read_model(sink)
            if events:
                return events

    async def close(self) -> None:
        """Close the connection to the model, and give up what tools are at. Safe to call twice, and after a
        cancelled `read`."""
        if self._calling is not None:
            self._calling.give_up()
        model, self._model = self._model, None
        if model is not None:
            await model.close()
        opened, self._open, self._calls = self._open, None, None
        if opened is not None:
            await opened.__aexit__(None, None, None)

    # --- the model's part -------------------------------------------------------------------

    async def _read_model(self, sink: Sink | None) -> list[Event]:
        if self._tools is None:
            try:
                self._offer(await self._toolbox.tools())
            except ToolsUnavailable as error:
                return [UpstreamFailed(error.failure)]
            except InvalidRequest as error:
                return [UpstreamFailed(_invalid(error))]
        if self._model is None:
            self._begin_turn()
        assert self._model is not None
        gathering = self._gathering
        assert gathering is not None
        passed: list[Event] = []
        for event in await self._next(self._model, gathering, sink):
            match event:
                case ChunkReceived():
                    passed += gathering.take(event)
                case UpstreamFinished() if gathering.wants_calls:
                    return [*passed, *await self._end_turn(gathering)]
                case UpstreamFailed(failure) if gathering.wants_calls and _is_whole_anyway(
                    failure, gathering
                ):
                    return [*passed, *await self._end_turn(gathering)]
                case UpstreamFinished():
                    passed += [*gathering.ending(), event]
                case _:
                    passed.append(event)
        if gathering.is_too_much:
            return [*passed, UpstreamFailed(_TOO_MUCH)]
        return passed

    async def _next(
        self, model: Upstream, gathering: Gathering, sink: Sink | None
    ) -> Sequence[Event]:
        """The model's next events. Where its calls are whole, `[DONE]` is waited for as long as a session
        does."""
        if gathering.finish_reason is None or not gathering.wants_calls:
            return await model.read(sink)
        try:
            async with asyncio.timeout(TRAILER_SECONDS):
                return await model.read(sink)
        except TimeoutError:
            return [UpstreamFinished()]

    def _offer(self, tools: Sequence[Tool]) -> None:
        """Have the model know these. Raises InvalidRequest if the client has a tool of the same name."""
        self._tools = {tool.full_name: tool for tool in tools}
        names = [_name_of(theirs) for theirs in self._call.request.tools or ()]
        self._theirs = None if None in names else {name for name in names if name is not None}
        for position, name in enumerate(names):
            if name in self._tools:
                message = f"The agent has a tool {name!r} of its own; please name yours otherwise."
                raise InvalidRequest(message, f"tools[{position}].function.name")
        self._call = evolve(self._call, request=request_with(self._call.request, tools))

    def _begin_turn(self) -> None:
        self._number += 1
        is_first = self._number == 1
        self._model = self._ask(self._call, None if is_first else self._agents)
        self._text_begins = self._answer.text_length
        self._gathering = Gathering(
            self._is_ours, is_first=is_first, follows_text=self._text_begins > 0
        )

    def _is_ours(self, name: str) -> bool:
        """Also of a name that nobody has, and of one that is yet to come where the client has no tools."""
        assert self._tools is not None
        if name in self._tools or self._theirs is None:
            return name in self._tools
        return name not in self._theirs if name else not self._theirs

    async def _end_turn(self, gathering: Gathering) -> list[Event]:
        """The turn wants tools of ours."""
        if gathering.is_too_much:
            return [UpstreamFailed(_TOO_MUCH)]
        model, self._model = self._model, None
        assert model is not None
        if self._agents is None:
            self._agents = (model.agent,)  # type: ignore[attr-defined]  # see `ask`
        await model.close()
        limits = self._limits
        if self._number >= limits.max_turns and not gathering.has_theirs:
            return [UpstreamFailed(_too_many_turns(limits.max_turns))]
        if self._calls is None:
            self._open = self._toolbox.open()
            self._calls = await self._open.__aenter__()
        assert self._tools is not None
        todo = calls_of(self._number, gathering.calls, self._tools, self._names)
        self._calling = Calling(todo, self._calls, limits.concurrency, limits.may_call)
        return [TurnEnded(self._number), *self._calling.announce()]

    # --- the tools' part --------------------------------------------------------------------

    async def _read_calls(self, calling: Calling) -> list[Event]:
        events = await calling.read()
        if not calling.is_over:
            return events
        self._calling = None
        gathering = self._gathering
        assert gathering is not None
        calls, results = calling.calls, calling.results
        failed = [call for call in calls if results[call.call_id].outcome is not Outcome.OK]
        if failed and self._limits.stops_on_error:
            self._ending = [UpstreamFailed(_tool_failed(failed[0].name))]
        elif gathering.has_theirs:
            self._ending = [*gathering.ending(), UpstreamFinished()]
        else:
            text = self._answer.text_from(self._text_begins)
            if gathering.has_text and self._text_begins:
                text = text.removeprefix("\n\n")
            told = messages_after(text, calls, results, calling.unreadable)
            self._call = evolve(self._call, request=request_with(self._call.request, (), told))
        return events


def _name_of(tool: Any) -> str | None:
    """The name by which a model calls a client's tool; None for a kind that isn't known."""
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _is_whole_anyway(failure: Failure, gathering: Gathering) -> bool:
    """True of a connection that breaks after a finish reason: nothing of the turn is missing."""
    return gathering.finish_reason is not None and failure.code in (BROKEN_OFF, MALFORMED)


def _invalid(error: InvalidRequest) -> Failure:
    kind = "invalid_request_error"
    return Failure("invalid_request", error.message, type=kind, param=error.param, status=400)


def _too_many_turns(most: int) -> Failure:
    return Failure(
        "too_many_turns",
        f"The answer was stopped: after {most} turns the model still wants to call tools.",
    )


def _tool_failed(name: str) -> Failure:
    return Failure("tool_failed", f"The answer was stopped: the tool {name[:100]!r} failed.")
