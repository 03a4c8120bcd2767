"""Defines the store's contract: the values that are kept, the calls, and the errors of each.

No SQL and no driver here. `db.postgres.store.PostgresStore` is the real store;
`db.memory.store.MemoryStore` keeps the same promises without durability. The tests of the contract
(`tests/db`) run over both.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Generic, Protocol, TypeVar

from attrs import frozen

from statemachine import Choice, SessionRecord, State
from statemachine.tape import Tape

PAGE_BYTES: Final = 4 * 1024 * 1024
"""About how much text a page holds. It always holds one item, whatever that one's size."""

T = TypeVar("T")

ExactText = Annotated[str, "any text, also one that a text column can't hold"]
Moment = Annotated[float, "POSIX seconds, to the microsecond"]
Ordinal = Annotated[int, "from 0 to 2**31 - 1"]


class StoreError(Exception):
    """The base of a store's errors. The message says what to do and never holds stored text."""


class StoreUnavailable(StoreError):
    """The store can't be reached or can't work now; the same call may succeed later.

    Nothing of the call was kept, or all of it, since the answer to a commit can be lost. Calling
    again is always safe.
    """


class TooSlow(StoreUnavailable):
    """The store works, and gave this call up: it took longer than it may, or somebody stopped it."""


class TablesUnfit(StoreUnavailable):
    """The tables are missing, or not those that this code knows."""


class RecordRejected(StoreError):
    """The store will never keep this: the data itself is at fault. Nothing of the call was kept."""


class UnknownCursor(StoreError):
    """The item that a page should come after isn't there, and never was."""


# --- rows -----------------------------------------------------------------------------------
#
# Each field is a column. A new one needs a migration, and a value in `db.rows.history`.


@frozen(slots=False)  # a row's attributes are its `__dict__`
class StoredConversation:
    """A conversation as it is kept, or as one record knows it.

    Its key is the client's own name for it, if it has one. It is hidden if all its completions are.
    """

    conversation_id: str
    owner: str
    client_key: str | None
    created_at: Moment
    updated_at: Moment
    hidden: bool = False


@frozen(slots=False)  # a row's attributes are its `__dict__`
class StoredMessage:
    """One message as it is kept; its text is exactly the one that came in.

    It is hidden if only hidden completions have it, as an answer or in their prompt.
    """

    message_id: str
    conversation_id: str
    completion_id: str | None
    choice_index: Ordinal | None
    role: str
    content: ExactText | None
    parts: dict[str, Any] | None
    state: str
    digest: str
    parent_digest: str | None
    created_at: Moment
    hidden: bool = False

    @property
    def message(self) -> dict[str, Any]:
        """OpenAI's message object: role, content, and whatever else the message held."""
        parts = dict(self.parts or {})
        if self.choice_index is not None:
            choice = parts.pop("choice", {})
            if "delta" in choice:
                parts["choice"] = choice["delta"]
        return {"role": self.role, "content": self.content, **parts}


@frozen(slots=False)  # a row's attributes are its `__dict__`
class StoredCompletion:
    """One completion as it is kept.

    It is hidden if its client asked for it with `store: false`; then it is shown to nobody.
    """

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
    request_id: str | None
    request: dict[str, Any]
    tools_digest: str | None
    metadata: dict[str, Any] | None
    prompt_digest: str | None
    extra: dict[str, Any] | None
    created_at: Moment
    finished_at: Moment
    client_left_at: Moment | None
    hidden: bool = False


@frozen(slots=False)  # a row's attributes are its `__dict__`
class StoredToolCall:
    """One call of a tool that the service made for an answer; see `statemachine.ToolCall`.

    `bytes` is the size of what the tool answered, `text_end` how many characters of the answer's text had
    come when the turn ended that wanted it.
    """

    completion_id: str
    turn: Ordinal
    position: Ordinal
    call_id: str
    server: str
    tool: str
    arguments: ExactText
    asked_at: Moment
    ended_at: Moment | None
    outcome: str
    result: ExactText | None
    bytes: int
    is_truncated: bool
    text_end: int


# --- reading for owners ---------------------------------------------------------------------


@frozen
class Paging:
    """A part of a list: up to `limit` items after the one with the id `after`, or from the list's
    beginning. Lists are ordered by time of creation, and by id where that is the same."""

    limit: int
    after: str | None = None
    descending: bool = False


@frozen
class Page(Generic[T]):
    """A part of a list, in the list's order. It may hold fewer items than `limit` although there
    are more: see `PAGE_BYTES`. It is empty only if there are none."""

    items: tuple[T, ...]
    has_more: bool


@frozen
class CompletionFilter:
    """The completions with this model, with all these pairs in their metadata, that ended in this
    state."""

    model: str | None = None
    metadata: Mapping[str, str] | None = None
    state: State | None = None


@frozen
class CompletionView:
    """A completion with its answer's messages, by choice index, its request's tools, and the calls that
    were made for it, by turn and position."""

    completion: StoredCompletion
    answers: tuple[StoredMessage, ...]
    tools: Sequence[Any] | None
    tool_calls: tuple[StoredToolCall, ...] = ()

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The answer's choices, as they were saved."""
        choices = []
        for row in self.answers:
            held = (row.parts or {}).get("choice", {})
            finish_reason = held.get("finish_reason", self.completion.finish_reason)
            extra, logprobs = held.get("extra", {}), held.get("logprobs")
            choices.append(
                Choice(row.choice_index or 0, row.message, finish_reason, logprobs, extra)
            )
        return tuple(choices)


@frozen
class KeptTape:
    """What was stored of an answer's chunks.

    Attributes:
        tape: the chunks.
        usage_frame: see `SessionRecord`.
        status: the HTTP status of a failure, where it isn't the code's usual one.
    """

    tape: Tape
    usage_frame: Mapping[str, Any] | None = None
    status: int | None = None


@frozen
class Replayable:
    """A completion with all that it takes to send its answer again as it was sent.

    `tape` is None in a row of before there were tapes, where the tape was too large to be kept, and
    where somebody has edited it or the answer: then the answer is known, and not its chunks.
    """

    view: CompletionView
    tape: KeptTape | None


@frozen
class ThreadNode:
    """A node of a conversation's tree: a message, and the completion whose answer it is, if it
    is one; or a completion that never began to answer, without a message.

    `parent_id` is the node above: None for a root. `tool_calls` are those that were made for an answer.
    """

    node_id: str
    parent_id: str | None
    message: StoredMessage | None
    completion: StoredCompletion | None
    tool_calls: tuple[StoredToolCall, ...] = ()


@frozen
class ConversationView:
    """A conversation and a page of its nodes."""

    conversation: StoredConversation
    nodes: Page[ThreadNode]


class Readable(Protocol):
    """The calls by which owners read, change and delete their completions.

    To its caller another owner's completion, or a hidden one, isn't there. Each call is a coroutine,
    may raise `StoreUnavailable`, and keeps all of its effect or none if it is cancelled.
    """

    async def list_completions(
        self, owner: str, wanted: CompletionFilter, paging: Paging
    ) -> Page[CompletionView]:
        """A page of the owner's completions. `paging.after` may name a deleted one.

        Raises `UnknownCursor`.
        """

    async def view(self, owner: str, completion_id: str) -> CompletionView | None:
        """One completion, or None."""

    async def replayable(
        self, owner: str, completion_id: str, *, hidden_since: float | None = None
    ) -> Replayable | None:
        """One completion with its chunks, or None.

        Args:
            hidden_since: a hidden one is found too, if it ended at this moment (POSIX seconds) or
                after it; None: no hidden one is.
        """

    async def list_prompt(
        self, owner: str, completion_id: str, paging: Paging
    ) -> Page[StoredMessage] | None:
        """A page of the messages that a completion's client sent, oldest first; None without the
        completion.

        Raises `UnknownCursor`.
        """

    async def set_metadata(
        self, owner: str, completion_id: str, metadata: Mapping[str, str] | None
    ) -> CompletionView | None:
        """Replace a completion's metadata. Returns the completion with it, or None."""

    async def delete(self, owner: str, completion_id: str) -> bool:
        """Delete a completion for good: saving its record again brings nothing back.

        Its answer goes too, and so does whatever of its prompt and its tools no other completion
        has; with its last completion the conversation goes. False if it isn't there.
        """

    async def list_conversations(self, owner: str, paging: Paging) -> Page[StoredConversation]:
        """A page of the owner's conversations. `paging.after` may name a deleted one.

        Raises `UnknownCursor`.
        """

    async def view_conversation(
        self, owner: str, conversation_id: str, paging: Paging
    ) -> ConversationView | None:
        """A conversation and a page of its nodes, or None. Equal messages after the same
        messages are one node, but each answer is a node of its own.

        Raises `UnknownCursor`.
        """


class Store(Readable, Protocol):
    """All calls. Each is a coroutine, and keeps all of its effect or none if it is cancelled."""

    async def save(self, records: Sequence[SessionRecord]) -> None:
        """Keep all these completions, each with its new input messages and its answer's
        messages, in one transaction: all or nothing.

        Idempotent by completion id: a completion that is there already stays as it is. But one that
        ended with its process (`process_died`) is replaced, in a transaction of its own, by a record that
        has more of it; what could be read of it before is the beginning of what can be read then.

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
        """Return if a save would work now: one is tried, and nothing of it is kept.

        Raises `StoreUnavailable` saying why not; `TablesUnfit` of tables.
        """

    async def close(self) -> None:
        """Release every resource. The store is not usable afterwards. Never raises."""
