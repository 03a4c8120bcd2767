"""Asks agents in turn until one says its first token, then reads that one to its end.

Called by `service.stream.relay`, one `Upstream` per session. Here is the policy of attempts:

1. Each agent is asked up to 1 + `retries` times, with exponential back-off and jitter; then its
   fallbacks are, in order.
2. Only failures that may pass are retried on the same agent (no connection, 408, 409, 429, 5xx,
   a broken answer); a `Retry-After` is obeyed up to `LONGEST_RETRY_WAIT_SECONDS`. A first-token
   timeout goes straight to the fallback: asking the same slow model again doubles the wait.
3. A request that is itself at fault (400, 413, 422) goes nowhere else.
4. All of it ends with the first token. What comes before it (a role, a heartbeat) is held back
   till then, so that a retry leaves no trace at the client.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import stamina
import structlog
from attrs import evolve

from service.agents.protocol import Agent, AgentBody, AgentCall, AgentError
from service.wire import SseDecoder, events_of, last_events, text_of
from statemachine import (
    AttemptStarted,
    ChunkReceived,
    DeadlineExpired,
    Event,
    Failure,
    TextReceived,
    UpstreamFailed,
)

log = structlog.get_logger(__name__)

LONGEST_RETRY_WAIT_SECONDS = 8.0
_FIRST_RETRY_WAIT_SECONDS = 0.25

stamina.instrumentation.set_on_retry_hooks([])  # attempts are logged below, with their agent


class Upstream:
    """The tokens of one completion, wherever they come from.

    Args:
        agents: whom to ask, in order; at least one.
        call: what to ask.
        announce: told of every attempt after the first as it starts (`AttemptStarted`).
    """

    def __init__(
        self, agents: Sequence[Agent], call: AgentCall, announce: Callable[[Event], None]
    ) -> None:
        self._agents = agents
        self._call = call
        self._announce = announce
        self._answer: AbstractAsyncContextManager[AsyncIterator[bytes] | AgentBody] | None = None
        self._body: AsyncIterator[bytes] | None = None
        self._decoder = SseDecoder(0)
        self._broken: AgentError | None = None
        self._is_clear: Callable[[], bool] | None = None
        self._pass_on: Callable[[TextReceived], None] | None = None

    def listen(self, is_clear: Callable[[], bool], pass_on: Callable[[TextReceived], None]) -> None:
        """Have text that comes while `read` waits passed on at once, past it.

        Args:
            is_clear: asked first; False sends everything by way of `read`.
            pass_on: given the event. Neither may raise.
        """
        self._is_clear, self._pass_on = is_clear, pass_on

    async def read(self) -> Sequence[Event]:
        """The next events, at least one: those of one socket read, or the ending.

        The first call asks the agents and returns with the first token. After an ending
        (`UpstreamFinished`, `UpstreamFailed`, `DeadlineExpired`) there is nothing more to read.
        Cancelling it leaves nothing but `close` to call.
        """
        body, decoder = self._body, self._decoder
        if body is None:
            return await self._ask()
        while True:
            events = await self._read_events(body)
            if decoder.ending is not None:
                events.append(decoder.ending)
            if events:
                return events

    async def close(self) -> None:
        """Close the connection at once. Safe to call twice, and after a cancelled `read`."""
        answer, self._answer = self._answer, None
        if answer is not None:
            await answer.__aexit__(None, None, None)

    async def _ask(self) -> list[Event]:
        failure: Failure | None = None
        for agent in self._agents:
            try:
                return await self._ask_agent(agent)
            except AgentError as error:
                failure = error.failure
                if error.is_final:
                    break
        assert failure is not None  # there is at least one agent
        if failure.code.endswith("_timeout"):
            return [DeadlineExpired(failure)]
        return [UpstreamFailed(failure)]

    async def _ask_agent(self, agent: Agent) -> list[Event]:
        """One agent, with its retries. Raises AgentError after the last."""
        try:
            return await self._attempt(agent, 1)
        except AgentError as error:
            first = error
        if not first.is_retryable or not agent.retries:
            raise first
        # The machinery of retrying costs 8 % of a request; only those that failed once pay it.
        attempts = stamina.retry_context(
            on=_retry_wait,
            attempts=agent.retries + 1,
            timeout=None,
            wait_initial=_FIRST_RETRY_WAIT_SECONDS,
            wait_max=LONGEST_RETRY_WAIT_SECONDS,
            wait_jitter=_FIRST_RETRY_WAIT_SECONDS,
        )
        async for attempt in attempts:
            with attempt:
                if attempt.num == 1:
                    raise first
                return await self._attempt(agent, attempt.num)
        raise AssertionError("stamina raises after the last attempt")

    async def _attempt(self, agent: Agent, number: int) -> list[Event]:
        """One attempt, up to the first token. Leaves nothing open if it fails."""
        if number > 1 or agent is not self._agents[0]:  # with the first attempt, a session begins
            self._announce(AttemptStarted(agent.name, agent.timeouts.idle_seconds))
        try:
            return await self._reach_first_token(agent)
        except AgentError as error:
            await self.close()
            log.warning(
                "attempt failed",
                agent=agent.name,
                attempt=number,
                error=error.failure.reported_code,
                status=error.failure.status,
            )
            raise

    async def _reach_first_token(self, agent: Agent) -> list[Event]:
        self._decoder = SseDecoder(agent.max_event_bytes)
        self._broken = None
        try:
            async with asyncio.timeout(agent.timeouts.first_token_seconds):
                call = self._call
                if agent is not self._agents[0]:
                    call = evolve(call, is_fallback=True)
                answer = agent.open(call)
                body = await answer.__aenter__()
                self._answer = answer
                events = await self._first_token(body)
        except TimeoutError:
            raise AgentError(_first_token_timeout(agent)) from None
        self._body = body
        if self._is_clear is not None and hasattr(body, "listener"):
            body.listener = self._listen
        if self._decoder.ending is not None:
            events.append(self._decoder.ending)
        return events

    def _listen(self, pieces: Sequence[bytes]) -> int:
        """The listener of a body: takes pieces of text alone; all, all but the last few, or none."""
        assert self._is_clear is not None
        assert self._pass_on is not None
        if not self._is_clear():
            return 0
        if len(pieces) == 1:  # nearly always
            text, count = self._decoder.take(pieces[0]), 1
        else:
            text, count = text_of(self._decoder, pieces)
        if text is None:
            return 0
        self._pass_on(text)
        return count

    async def _first_token(self, body: AsyncIterator[bytes]) -> list[Event]:
        held: list[Event] = []
        while True:
            new = await self._read_events(body)
            held += new
            if any(map(_bears_token, new)):
                return held
            ending = self._decoder.ending
            if self._broken is not None:
                raise self._broken
            if isinstance(ending, UpstreamFailed):
                broke = ending.failure.code != "upstream_error"
                raise AgentError(ending.failure, is_retryable=broke)
            if ending is not None:
                return held

    async def _read_events(self, body: AsyncIterator[bytes]) -> list[Event]:
        try:
            return events_of(self._decoder, await body.__anext__())
        except (StopAsyncIteration, AgentError) as error:
            return self._last_events(error)

    def _last_events(self, end: StopAsyncIteration | AgentError) -> list[Event]:
        """Whatever was left at the body's end."""
        decoder = self._decoder
        events = last_events(decoder)
        if isinstance(end, AgentError) and _ended_badly(decoder):
            decoder.ending = UpstreamFailed(end.failure)
            self._broken = end
        return events


def _ended_badly(decoder: SseDecoder) -> bool:
    ending = decoder.ending
    return isinstance(ending, UpstreamFailed) and ending.failure.code == "upstream_incomplete"


def _retry_wait(error: Exception) -> bool | float:
    """Whether to ask the same agent again, and if it named a time, after how many seconds."""
    if not isinstance(error, AgentError) or not error.is_retryable:
        return False
    wait = error.failure.retry_after_seconds
    if wait is None:
        return True
    return wait if wait <= LONGEST_RETRY_WAIT_SECONDS else False


def _first_token_timeout(agent: Agent) -> Failure:
    seconds = agent.timeouts.first_token_seconds
    message = f"The agent {agent.name!r} said nothing within {seconds:g} s."
    return Failure("first_token_timeout", message, type="timeout_error")


def _bears_token(event: Event) -> bool:
    """True if this ends the wait for the first token: any text, or a finish reason."""
    if type(event) is TextReceived:
        return any(event.texts)
    assert type(event) is ChunkReceived
    for choice in event.payload.get("choices") or ():
        if choice.get("finish_reason") is not None:
            return True
        for key, value in (choice.get("delta") or {}).items():
            if key != "role" and value not in (None, "", [], {}):
                return True
    return False
