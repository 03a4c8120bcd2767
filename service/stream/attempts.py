"""Asks agents in turn until one has answered with its first token, then reads that one to its end.

The policy of attempts:

1. Each agent is asked up to 1 + `retries` times, with exponential back-off and jitter; then its
   fallbacks are, in order.
2. Only failures that may pass are retried on the same agent (no connection, 408, 409, 429, 5xx,
   a broken answer); a `Retry-After` is obeyed up to `LONGEST_RETRY_WAIT_SECONDS`. A first-token
   timeout goes straight to the fallback: asking the same slow model again doubles the wait.
3. A request that is itself at fault (400, 413, 422) goes nowhere else.
4. An agent that is known to be down (`service.agents.circuit`) is passed over, and isn't asked
   again where there is another; the one request that tries it isn't repeated.
5. A failure that was retried in vain says so to the client, whose own retries would multiply ours.
6. All of it ends with the first token. What comes before it (a role, a heartbeat) is held back
   till then, so that a retry leaves no trace at the client.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from attrs import evolve

from service.agents.protocol import Agent, AgentCall, AgentError, Answer, Sink, refusal
from service.stream.holding import HeldBack
from service.stream.moments import Attempt, Moments
from statemachine import (
    AttemptStarted,
    ChunkReceived,
    DeadlineExpired,
    Event,
    Failure,
    UpstreamFailed,
    UpstreamFinished,
)
from statemachine.backoff import backoff
from statemachine.chunks import begins_answer
from statemachine.endings import NOTHING_CAME

LONGEST_RETRY_WAIT_SECONDS = 8.0
_FIRST_RETRY_WAIT_SECONDS = 0.25


class Attempts:
    """The events of one completion's upstream, whichever agent they come from.

    Args:
        agents: whom to ask, in order; at least one, and the first may be asked now.
        call: what to ask.
        moments: told of every attempt.
        name_attempt: makes the `traceparent` of each attempt; without it all have the call's.
        asks_once: nothing is tried again, and nobody else is asked.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        call: AgentCall,
        moments: Moments,
        name_attempt: Callable[[], str] | None = None,
        *,
        asks_once: bool = False,
    ) -> None:
        self._agent, *self._others = agents
        self._call: AgentCall | None = call
        self._model = call.request.model
        self._moments = moments
        self._name_attempt = name_attempt
        self._asks_once = asks_once
        self._number = 1
        self._first_chunk_at: float | None = None
        self._retried_in_vain = False
        self._is_trial = self._agent.circuits.begin(self._model)
        self._waits: Iterator[float] | None = None
        self._open: AbstractAsyncContextManager[Answer] | None = None
        self._answer: Answer | None = None

    @property
    def agent(self) -> Agent:
        """Who is asked, or has answered."""
        return self._agent

    def read(self, sink: Sink | None = None) -> Coroutine[Any, Any, Sequence[Event]]:
        """The next events, at least one: those of one socket read, a new attempt, or the ending.

        Up to the first token each call is an attempt: it returns with the first token's events, or
        with the `AttemptStarted` of the next one, or with the ending. After an ending
        (`UpstreamFinished`, `UpstreamFailed`, `DeadlineExpired`) there is nothing more to read.
        Cancelling it leaves nothing but `close` to call.

        Args:
            sink: see `Answer.read`; given nothing before the first token.
        """
        return self._ask() if self._answer is None else self._answer.read(sink)

    async def _ask(self) -> Sequence[Event]:
        """Make one attempt."""
        asked_at = time.monotonic()
        self._first_chunk_at = None
        try:
            events = await self._reach_first_token()
        except AgentError as error:
            await self._hang_up()
            self._note_failure(asked_at, error)
            return [await self._after(error)]
        self._agent.circuits.succeeded(self._model)
        self._is_trial = False
        self._note_attempt(asked_at)
        return events

    async def close(self) -> None:
        """Close the connection at once. Safe to call twice, and after a cancelled `read`."""
        if self._is_trial:
            self._is_trial = False
            self._agent.circuits.abandoned(self._model)
        if self._open is not None:
            await self._hang_up()

    async def _hang_up(self) -> None:
        opened, self._open, self._answer = self._open, None, None
        if opened is not None:
            await opened.__aexit__(None, None, None)

    async def _reach_first_token(self) -> list[Event]:
        """Ask the agent. Raises AgentError if it fails before its first token."""
        agent, call = self._agent, self._call
        assert call is not None  # nobody asks again after the first token
        if self._name_attempt is not None:
            call = evolve(call, traceparent=self._name_attempt())
        self._moments.asking(agent, self._number, call)
        try:
            async with asyncio.timeout(agent.timeouts.first_token_seconds):
                opening = agent.open(call)
                answer = await opening.__aenter__()
                self._open = opening
                events = await self._first_token(answer)
        except TimeoutError:
            raise AgentError(_first_token_timeout(agent)) from None
        self._answer = answer
        self._call = None  # nobody is asked again, and it may be large
        return events

    async def _first_token(self, answer: Answer) -> list[Event]:
        """The events up to the first token, or of an answer that ends well without one. Raises AgentError
        if it doesn't."""
        held = HeldBack()
        while True:
            events = await answer.read()
            if self._first_chunk_at is None:
                self._first_chunk_at = time.monotonic()
            if any(
                isinstance(event, ChunkReceived) and begins_answer(event.run) for event in events
            ):
                return [*held.events, *events]
            held.add(events)
            last = events[-1]
            if isinstance(last, UpstreamFailed):
                raise refusal(last.failure)
            if isinstance(last, UpstreamFinished):
                if not held.has_begun:
                    raise AgentError(NOTHING_CAME, is_retryable=True)
                return held.events

    async def _after(self, error: AgentError) -> Event:
        """What follows a failed attempt: another one, once it is time for it, or the ending."""
        wait_seconds = self._wait_before_retry(error)
        self._is_trial = False
        if wait_seconds is not None:
            await asyncio.sleep(wait_seconds)
            self._number += 1
        else:
            self._retried_in_vain |= error.is_retryable and self._number > self._agent.retries > 0
            fallback = None if error.is_final else self._next_agent()
            if fallback is None:
                return self._ending(error)
            self._others = self._others[self._others.index(fallback) + 1 :]
            self._agent, self._number, self._waits = fallback, 1, None
            self._is_trial = fallback.circuits.begin(self._model)
            assert self._call is not None  # it is kept up to the first token
            self._call = evolve(self._call, is_fallback=True)
        return AttemptStarted(self._agent.name, self._agent.timeouts.idle_seconds)

    def _next_agent(self) -> Agent | None:
        """The next one that may be asked now."""
        model = self._model
        askable = (agent for agent in self._others if not agent.circuits.wait_seconds(model))
        return next(askable, None)

    def _ending(self, error: AgentError) -> Event:
        failure = error.failure
        if self._retried_in_vain and error.is_retryable:
            failure = evolve(failure, should_retry=False)
        timed_out = failure.code.endswith("_timeout")
        return DeadlineExpired(failure) if timed_out else UpstreamFailed(failure)

    def _note_failure(self, asked_at: float, error: AgentError) -> None:
        model = self._model
        self._agent.circuits.failed(model, error.failure, is_trial=self._is_trial)
        self._note_attempt(asked_at, error.failure, error.cause)

    def _note_attempt(
        self, asked_at: float, failure: Failure | None = None, cause: str | None = None
    ) -> None:
        seconds, chunk_at = time.monotonic() - asked_at, self._first_chunk_at
        chunk_seconds = None if chunk_at is None else chunk_at - asked_at
        name, number = self._agent.name, self._number
        self._moments.tried(Attempt(name, number, seconds, failure, cause, asked_at, chunk_seconds))

    def _wait_before_retry(self, error: AgentError) -> float | None:
        """How long to wait before asking the same agent again, in seconds; None: don't."""
        is_last = self._asks_once or self._number > self._agent.retries
        if not error.is_retryable or is_last or self._is_trial:
            return None
        if self._agent.circuits.wait_seconds(self._model) and self._next_agent():
            return None
        asked = error.failure.retry_after_seconds
        if asked is None:
            self._waits = self._waits or backoff(
                _FIRST_RETRY_WAIT_SECONDS, LONGEST_RETRY_WAIT_SECONDS, random.random
            )
            return next(self._waits)
        return asked if asked <= LONGEST_RETRY_WAIT_SECONDS else None


def _first_token_timeout(agent: Agent) -> Failure:
    seconds = agent.timeouts.first_token_seconds
    message = f"The model said nothing within {seconds:g} s."
    return Failure("first_token_timeout", message, type="timeout_error")
