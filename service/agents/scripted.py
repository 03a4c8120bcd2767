"""The built-in agent: says fixed words at a steady pace, and fails on request.

It answers when no key is set, so that a first run needs no network; it is the agent to try
alerting, timeouts and clients against (`fail_after_tokens`, `fail_with`). Same configuration,
same bytes.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import Any

from service.agents.circuit import Circuits
from service.agents.protocol import AgentCall, AgentTools, Sink, Target
from service.agents.scripted_calls import calls_delta, script_of
from service.settings.config import ScriptedAgentConfig
from statemachine import ChunkReceived, Event, Failure, UpstreamFailed, UpstreamFinished
from statemachine.endings import BROKEN_OFF
from statemachine.tokens import estimate_tokens

INTRODUCTION = (
    "Hello! I am the built-in demo agent: I need no key and no network, and I always say this. "
    "Every word reaches you the moment I say it, and all of them are kept in PostgreSQL, even if "
    "you hang up in the middle. To talk to a real model, set OPENAI_API_KEY, or point "
    "OPENAI_BASE_URL at any server that speaks OpenAI's API (Ollama, vLLM, llama.cpp), and "
    "start me again."
)


class ScriptedAgent:
    """Says its reply word by word. One instance serves all requests.

    A token is a word with the space before it. `fail_with` takes effect after
    `fail_after_tokens` tokens, and is what a backend would do that breaks its connection (`reset`),
    ends it cleanly without a finish reason (`truncate`), falls silent (`stall`), sends an error
    event (`error`) or half a JSON object (`malformed`).
    """

    def __init__(self, config: ScriptedAgentConfig, tools: AgentTools | None = None) -> None:
        self.name = config.name
        self.timeouts = config.timeouts
        self.retries = config.retries
        self.fallbacks = config.fallbacks
        self.client_gone = config.client_gone
        self.circuits = Circuits(config.name)  # nothing of it can be down
        self.tools = tools
        self._config = config
        self._reply = INTRODUCTION if config.reply is None else config.reply

    def serves(self, model: str) -> bool:
        return model == self.name or any(
            fnmatchcase(model, pattern) for pattern in self._config.models
        )

    def target(self, call: AgentCall) -> Target:
        return Target("verbatim", call.request.model)

    @asynccontextmanager
    async def open(self, call: AgentCall) -> AsyncIterator["_Answer"]:
        events = self._events(call)
        try:
            yield _Answer(events)
        finally:
            await events.aclose()

    async def prepare(self) -> None:
        pass

    async def models(self) -> list[dict[str, Any]]:
        names = [self.name, *(name for name in self._config.models if not set(name) & set("*?["))]
        return [
            {"id": name, "object": "model", "created": 0, "owned_by": "verbatim"}
            for name in dict.fromkeys(names)
        ]

    async def close(self) -> None:
        if self.tools is not None:
            await self.tools.toolbox.close()

    async def _events(self, call: AgentCall) -> AsyncGenerator[list[Event]]:
        config = self._config
        choices = range(call.request.choices_expected)
        loop = asyncio.get_running_loop()
        starts_at = loop.time() + config.first_token_delay_seconds
        role = {"role": "assistant", "content": ""}
        yield [_chunk(call, [_choice(index, role)]) for index in choices]
        script = script_of(call.request, self._reply)
        tokens = split_tokens(script.text)
        for position, token in enumerate(tokens):
            if position == config.fail_after_tokens:
                break
            await asyncio.sleep(starts_at + position / config.tokens_per_second - loop.time())
            yield [_chunk(call, [_choice(index, {"content": token})]) for index in choices]
        if config.fail_after_tokens is not None:
            yield [UpstreamFailed(await self._failure())]
            return
        if script.calls:
            yield [_chunk(call, [_choice(index, calls_delta(script.calls))]) for index in choices]
        reason = "tool_calls" if script.calls else "stop"
        yield [_chunk(call, [_choice(index, {}, reason)]) for index in choices]
        if call.request.include_usage is not False:
            yield [_chunk(call, [], usage=_usage(call, len(tokens)))]
        yield [UpstreamFinished()]

    async def _failure(self) -> Failure:
        match self._config.fail_with:
            case "reset":
                return Failure(BROKEN_OFF, "The connection to the model's backend broke.")
            case "stall":
                await asyncio.Event().wait()
            case "error":
                message = f"The agent {self.name!r} is scripted to fail here."
                return Failure("upstream_error", message)
            case "malformed":
                message = "The model's backend sent an event that is not JSON."
                return Failure("upstream_malformed", message)
        return Failure(BROKEN_OFF, "The model's answer broke off before its end.")


class _Answer:
    """See `Answer`: the script's events, a token at a time."""

    def __init__(self, events: AsyncIterator[list[Event]]) -> None:
        self._events = events

    async def read(self, sink: Sink | None = None) -> Sequence[Event]:
        return await anext(self._events)


def _usage(call: AgentCall, tokens: int) -> dict[str, int]:
    prompt = estimate_tokens(call.request.messages)
    answer = tokens * call.request.choices_expected
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }


def split_tokens(text: str) -> list[str]:
    """Cut a text into words, each with the white space before it; joined they are the text."""
    return list(_words(text))


def _words(text: str) -> Iterator[str]:
    start = 0
    for position in range(1, len(text)):
        if text[position].isspace() and not text[position - 1].isspace():
            yield text[start:position]
            start = position
    if text:
        yield text[start:]


def _choice(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _chunk(call: AgentCall, choices: list[dict[str, Any]], **fields: Any) -> ChunkReceived:
    return ChunkReceived(
        {
            "id": f"scripted-{call.completion_id}",
            "object": "chat.completion.chunk",
            "model": call.request.model,
            "choices": choices,
            **fields,
        }
    )
