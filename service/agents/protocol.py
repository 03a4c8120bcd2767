"""What the service asks of an agent, and how an agent says no."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from attrs import frozen

from service.settings.config import Timeouts
from service.wire import ChatRequest
from statemachine import ClientGone, Failure


class AgentError(Exception):
    """An attempt failed before its first token.

    `is_retryable` says that the same agent may well answer next time; `is_final` that no other
    agent would do better, because the request itself is at fault.
    """

    def __init__(
        self, failure: Failure, *, is_retryable: bool = False, is_final: bool = False
    ) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.is_retryable = is_retryable
        self.is_final = is_final


@frozen
class AgentCall:
    """One request to an agent. `traceparent` is the W3C header to send along; `is_fallback` says
    that the client's model was another agent's business."""

    request: ChatRequest
    completion_id: str
    traceparent: str
    is_fallback: bool = False


Listener = Callable[[Sequence[bytes]], int]
"""Offered pieces of a body, in order, at least one; says how many of them, from the first on, it
took. It must not raise."""


class AgentBody(Protocol):
    """An answer's bytes, one item per socket read.

    Attributes:
        listener: offered what comes while an item is awaited; what it takes makes no item, and the
            waiting goes on. It spares a chunk the waking of a task. A body that has no use for it
            is an iterator and nothing more.
    """

    listener: Listener | None

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...


class Agent(Protocol):
    """An upstream. One instance serves all requests; it holds no state of any of them."""

    name: str
    timeouts: Timeouts
    retries: int
    fallbacks: tuple[str, ...]
    client_gone: ClientGone | None
    max_event_bytes: int

    def serves(self, model: str) -> bool:
        """True if requests for this model may go here."""

    def open(
        self, call: AgentCall
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes] | AgentBody]:
        """Ask. Entering returns once the upstream has said 200; the value yields its SSE body,
        one item per socket read. Leaving closes the connection at once, on every path;
        cancelling any await does too.

        Raises on entering and while reading:
            AgentError: the attempt failed; `failure` says how.
        """

    async def models(self) -> list[dict[str, Any]]:
        """OpenAI model objects that can be asked for here. Never raises: an upstream that can't
        be asked contributes nothing."""

    async def close(self) -> None:
        """Give back every connection."""
