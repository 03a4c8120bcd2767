"""The store's contract: what the service may ask of the place where answers are kept.

No SQL and no driver here. `db.postgres.PostgresStore` is the real one; `db.memory.MemoryStore`
keeps the same promises without durability; `tests/db/test_store_contract.py` holds both to them.
Called by `db.saver` (writing) and `service` (readiness, reading).
"""

from collections.abc import Sequence
from typing import Any, Protocol

from attrs import frozen

from statemachine import SessionRecord, State


class StoreError(Exception):
    """Base of what a store raises. The message says what to do and never holds stored text."""


class StoreUnavailable(StoreError):
    """The store can't be reached or can't work now; the same call may succeed later.

    Nothing of the call was kept, or all of it was (the answer to a commit can be lost): calling
    again is always safe.
    """


class RecordRejected(StoreError):
    """The store will never take this: the data itself is at fault. Nothing of the call was kept."""


@frozen
class StoredMessage:
    """One message as it is kept; texts are given back exactly as they came in."""

    message_id: str
    conversation_id: str
    completion_id: str | None
    choice_index: int | None
    role: str
    content: str | None
    parts: dict[str, Any] | None
    state: str
    digest: str
    parent_digest: str | None
    created_at: float


@frozen
class StoredCompletion:
    """One completion as it is kept. Field by field the columns of `completions`."""

    completion_id: str
    conversation_id: str
    owner: str
    agent: str
    model: str
    upstream_id: str | None
    upstream_model: str | None
    upstream_created: int | None
    state: State
    finish_reason: str | None
    error: dict[str, Any] | None
    usage: dict[str, Any] | None
    usage_source: str
    token_count: int
    chunk_count: int
    ttft_ms: float | None
    duration_ms: float
    trace_id: str
    request: dict[str, Any]
    tools_digest: str | None
    metadata: dict[str, Any] | None
    prompt_digest: str | None
    extra: dict[str, Any] | None
    created_at: float
    finished_at: float
    client_left_at: float | None


class Store(Protocol):
    """Every method is a coroutine; cancelling one keeps all of its effect or none."""

    async def save(self, records: Sequence[SessionRecord]) -> None:
        """Keep all these completions, each with its new input messages and its answer's
        messages, in one transaction: all or nothing.

        Idempotent by completion id: what is there already stays as it is.

        Raises:
            StoreUnavailable: not now; nothing or everything was kept.
            RecordRejected: at least one record can never be kept; nothing was.
        """

    async def find(self, completion_id: str) -> StoredCompletion | None:
        """The completion, or None. Raises `StoreUnavailable`."""

    async def answer(self, completion_id: str) -> list[StoredMessage]:
        """The completion's own messages by choice index; empty if unknown.

        Raises `StoreUnavailable`.
        """

    async def thread(self, digest: str) -> list[StoredMessage]:
        """The messages from a conversation's root to the one with this digest, oldest first.

        Empty if the digest is unknown. Raises `StoreUnavailable`.
        """

    async def check(self) -> None:
        """Return if the store can take writes now. Raises `StoreUnavailable` saying why not."""

    async def close(self) -> None:
        """Give back every resource; the store is not usable afterwards. Never raises."""
