"""What the service asks of an agent, and how an agent refuses.

An agent answers with a session's events, whatever it speaks: who has bytes decodes them.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from attrs import frozen

from service.agents.circuit import Circuits
from service.settings.config import Timeouts
from service.tools.contract import Toolbox
from service.wire import ChatRequest
from statemachine import ChunkReceived, ClientGone, Event, Failure

_RETRYABLE_STATUSES = frozenset((408, 409, 429))
_FINAL_STATUSES = frozenset((400, 413, 422))
"""The request itself is at fault; another agent would say the same."""


class AgentError(Exception):
    """An agent could not be asked, or refused.

    `is_retryable` says that the same agent may well answer next time; `is_final` that no other
    agent would do better, because the request itself is at fault. `cause` is for the log: what
    people who chat needn't know, or mustn't.
    """

    def __init__(
        self,
        failure: Failure,
        *,
        is_retryable: bool = False,
        is_final: bool = False,
        cause: str | None = None,
    ) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.is_retryable = is_retryable
        self.is_final = is_final
        self.cause = cause


def refusal(failure: Failure) -> AgentError:
    """How an agent refuses that was told this instead of an answer.

    The status decides, if there is one. Without it, an error that a backend reports is its answer,
    and a broken one may be whole next time.
    """
    status = failure.status
    if failure.should_retry is not None:
        is_retryable = failure.should_retry
    elif status is None:
        is_retryable = failure.code != "upstream_error"
    else:
        is_retryable = status in _RETRYABLE_STATUSES or status >= 500
    return AgentError(failure, is_retryable=is_retryable, is_final=status in _FINAL_STATUSES)


@frozen
class AgentCall:
    """One request to an agent. `traceparent` is the W3C header to send along; `is_fallback` says
    that the client's model was another agent's business."""

    request: ChatRequest
    completion_id: str
    traceparent: str
    is_fallback: bool = False


@frozen
class AgentTools:
    """The tools that an agent has, and how far it may go with them (`tools` in the configuration)."""

    toolbox: Toolbox
    max_turns: int = 8
    concurrency: int = 4
    stops_on_error: bool = False
    show: str = "auto"
    """`none`, `field`, `openwebui`, or `auto`: as the request's headers tell who asks."""
    shows_detail: bool = False


@frozen
class Target:
    """Whom an agent asks for a call's answer.

    Attributes:
        provider: who runs the model, as OpenTelemetry's GenAI conventions name it.
        model: the model that is asked for there.
        host, port: where; None if it is in this process.
    """

    provider: str
    model: str
    host: str | None = None
    port: int | None = None


class Sink(Protocol):
    """Takes chunks while a `read` waits, which spares them the waking of a task."""

    def is_clear(self) -> bool:
        """True if a chunk that came now could be taken. Never raises."""

    def take(self, event: ChunkReceived) -> None:
        """Take repeated chunks, right after `is_clear` was true. Never raises."""


class Answer(Protocol):
    """An answer being read."""

    async def read(self, sink: Sink | None = None) -> Sequence[Event]:
        """The next events, at least one, in order: those of one socket read, say.

        The last of all is the answer's ending, `UpstreamFinished` or `UpstreamFailed`; after it
        there is nothing more to read. Cancelling it leaves nothing but to leave the context.

        Args:
            sink: may be given repeated chunks that come while this waits, if it is clear; they are
                not returned then. An agent that has no use for it ignores it.
        """


class Agent(Protocol):
    """An upstream. One instance serves all requests; it holds no state of any of them.

    `circuits` say whether it may be asked now; whoever asks it tells them what became of it. Its `tools`
    are called by whoever asks, too; None: it has none.
    """

    name: str
    timeouts: Timeouts
    retries: int
    fallbacks: tuple[str, ...]
    client_gone: ClientGone | None
    circuits: Circuits
    tools: AgentTools | None

    def serves(self, model: str) -> bool:
        """True if requests for this model may go here."""

    def target(self, call: AgentCall) -> Target:
        """Whom `open` would ask. Never raises."""

    def open(self, call: AgentCall) -> AbstractAsyncContextManager[Answer]:
        """Ask. Entering returns once the upstream has begun to answer. Leaving closes the connection at
        once, on every path; cancelling any await does too.

        Raises on entering:
            AgentError: the attempt failed; `failure` says how.
        """

    async def prepare(self) -> None:
        """Do what takes a while and can be done once the service serves. Cancelled, it leaves that to the
        requests that need it."""

    async def models(self) -> list[dict[str, Any]]:
        """OpenAI model objects that can be asked for here. Never raises: an upstream that can't
        be asked contributes nothing."""

    async def close(self) -> None:
        """Give back every connection."""
