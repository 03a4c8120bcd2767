"""A scripted model and scripted tools: doubles of an answer's upstream and of an agent's tools."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.agents.protocol import AgentCall, Sink
from service.tools.contract import Tool, ToolResult
from service.turns.loop import TurnLimits, Turns
from service.wire.requests import ChatRequest
from statemachine import (
    Activity,
    ChunkReceived,
    Effect,
    Event,
    Outcome,
    Save,
    SessionPolicy,
    SessionRecord,
    StreamSession,
    ToolCallStarted,
    UpstreamFinished,
)
from tests.statemachine.conftest import asked, chunk, finish_chunk, text_chunk

SEARCH = Tool("docs", "search", "Looks things up.", {"type": "object"})
ROLL = Tool("dice", "roll", "Rolls a die.", {"type": "object"})


def calls_chunk(*calls: tuple[str, str, str], finish: str | None = None) -> Any:
    """A chunk with whole calls: id, name, arguments."""
    items = [
        {
            "index": index,
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for index, (call_id, name, arguments) in enumerate(calls)
    ]
    return chunk({"tool_calls": items}, finish)


def says(*texts: str, finish: str = "stop") -> list[Event]:
    """A turn that says this, and ends the answer."""
    chunks = [chunk({"role": "assistant", "content": ""}), *map(text_chunk, texts)]
    return [*map(ChunkReceived, [*chunks, finish_chunk(finish)]), UpstreamFinished()]


def wants(*calls: tuple[str, str, str], text: str = "", usage: Any = None) -> list[Event]:
    """A turn that says this, and calls these."""
    chunks = [chunk({"role": "assistant", "content": ""})]
    chunks += [text_chunk(text)] if text else []
    chunks += [calls_chunk(*calls), finish_chunk("tool_calls")]
    chunks += [{**chunk({}), "choices": [], "usage": usage}] if usage else []
    return [*map(ChunkReceived, chunks), UpstreamFinished()]


class Model:
    """Says what it is told to, a turn after the other, an event at a time.

    Attributes:
        asked: the request of each turn.
    """

    def __init__(self, *turns: list[Event]) -> None:
        self.turns = list(turns)
        self.asked: list[ChatRequest] = []
        self.agent: Any = "the agent"

    def ask(self, call: AgentCall, _agents: Any) -> "_Answer":
        self.asked.append(call.request)
        return _Answer(self.turns.pop(0))


class _Answer:
    agent: Any = "the agent"

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    async def read(self, sink: Sink | None = None) -> Sequence[Event]:
        if not self._events:
            await asyncio.Event().wait()
        return [self._events.pop(0)]

    async def close(self) -> None:
        pass


class Tools:
    """Answers as it is told to.

    Attributes:
        results: what each tool brings, by its full name.
        made: the calls that were made, in their order: name and arguments.
        holds: calls of these tools wait until the event is set.
        at_once: how many were made at the same time, at most.
    """

    def __init__(self) -> None:
        self.results: dict[str, ToolResult] = {}
        self.made: list[tuple[str, Any]] = []
        self.holds: dict[str, asyncio.Event] = {}
        self.at_once = 0
        self.given_up: list[str] = []
        self._now = 0

    async def tools(self) -> Sequence[Tool]:
        return [SEARCH, ROLL]

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Tools"]:
        yield self

    async def call(self, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        self.made.append((tool.full_name, arguments))
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        try:
            if (hold := self.holds.get(tool.full_name)) is not None:
                await hold.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.given_up.append(tool.full_name)
            raise
        finally:
            self._now -= 1
        return self.results.get(tool.full_name, ToolResult(Outcome.OK, f"{tool.name} it is", 9))

    async def close(self) -> None:
        pass


class Answer:
    """One answer: a session and its upstream of several turns, driven as a relay does.

    Attributes:
        events: all that was read, in reads.
        effects: all that followed.
    """

    def __init__(self, model: Model, toolbox: Tools, limits: TurnLimits, **request: Any) -> None:
        session_request = asked(**request)
        policy = SessionPolicy(activity=Activity.FIELD)
        self.session = StreamSession(session_request, policy)
        self.tools = toolbox
        self.events: list[Sequence[Event]] = []
        self.effects: list[Effect] = []
        body = {
            "model": "demo",
            "messages": list(session_request.messages),
            "tools": session_request.tools,
            **session_request.parameters,
        }
        chat = ChatRequest(
            body, "demo", body["messages"], True, 1, None, session_request.tools, None
        )
        call = AgentCall(chat, session_request.completion_id, "00-1-1-01")
        self.turns = Turns(model.ask, call, toolbox, self.session.transcript, limits)
        self.now = 0.0

    async def step(self) -> Sequence[Event]:
        """One read. What it tells to have begun has not been called before the next."""
        events = await self.turns.read()
        begun = [event for event in events if isinstance(event, ToolCallStarted)]
        assert len(self.tools.made) <= self._begun
        self._begun += len(begun)
        self.events.append(events)
        for event in events:
            self.now += 1.0
            self.effects += self.session.handle(event, self.now)
        return events

    _begun = 0

    async def to_its_end(self) -> SessionRecord:
        while not self.session.state.is_final:
            await self.step()
        await self.turns.close()
        (record,) = [effect.record for effect in self.effects if isinstance(effect, Save)]
        return record


LIMITS = TurnLimits(max_turns=8, concurrency=4, stops_on_error=False, may_call=lambda: 0.0)


@pytest.fixture
def tools() -> Tools:
    return Tools()
