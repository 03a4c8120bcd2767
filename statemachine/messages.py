"""Events (something happened), effects (carry this out), and the values at a session's two ends.

The two are `SessionRequest` and `SessionRecord`. None of them carries behaviour or is changed once it
is made. Times are POSIX seconds as floats; durations are seconds unless the name says `_ms`. JSON
values are what a JSON parser makes of them (dict, list, str, int, float, bool, None) and are never
changed after they entered a message.
"""

import enum
from collections.abc import Sequence
from typing import Any

from attrs import define, field, frozen

from statemachine.calls import Activity, Outcome, ToolCall, Turn
from statemachine.chunks import ChunkRun, JsonObject, ParsedChunk
from statemachine.states import ClientGone, State
from statemachine.tape import DEFAULT_LIMIT, Tape


class UsageSource(enum.StrEnum):
    """Where a token count came from."""

    PROVIDER = "provider"
    """The upstream reported it."""
    ESTIMATED = "estimated"
    """Worked out from the text's length; see `statemachine.tokens`."""
    UNKNOWN = "unknown"
    """Nothing arrived that could be counted."""


@frozen
class Failure:
    """Why a completion did not complete, in the words that the client, the row and the log share."""

    code: str
    """Our word for it (the list is `service.edge.errors.ERROR_CODES`)."""
    message: str
    """One sentence for people. Never holds message text or keys of ours."""
    type: str = "server_error"
    """OpenAI's error `type`; the upstream's own when it sent one."""
    param: str | None = None
    upstream_code: str | None = None
    """The upstream's own error code, as text; it is what clients know how to handle."""
    status: int | None = None
    """HTTP status for a response not yet opened, where it differs from the code's usual one."""
    retry_after_seconds: float | None = None
    """What the upstream asked for in `Retry-After`."""
    should_retry: bool | None = field(default=None, eq=False)
    """Whether asking again is of any use, where that isn't what the status says. Advice, and no part
    of what happened."""
    extra: JsonObject = field(factory=dict)
    """Fields of the upstream's own error object that OpenAI doesn't define, such as `metadata`."""

    @property
    def reported_code(self) -> str:
        """The one code shown everywhere: the upstream's own if it sent one, else ours."""
        return self.upstream_code or self.code


@frozen
class SessionRequest:
    """What was asked for; everything a session knows when it is born.

    `parameters` is the request's body without `messages`, `tools` and `metadata`.
    `conversation_key` is the client's own name for the conversation, or None from a client that
    keeps none. `choices_expected` is OpenAI's `n`. `stream` is false for a client that wants one
    object: it is sent nothing before the end.
    """

    completion_id: str
    created_at: float
    trace_id: str
    owner: str
    agent: str
    model: str
    messages: Sequence[JsonObject]
    conversation_key: str | None = None
    tools: Sequence[Any] | None = None
    parameters: JsonObject = field(factory=dict)
    metadata: JsonObject | None = None
    choices_expected: int = 1
    include_usage: bool = False
    stream: bool = True
    request_id: str | None = None
    """What names the request in logs (`x-request-id`)."""

    @property
    def is_hidden(self) -> bool:
        """True if no list shows the completion (OpenAI's `store: false`)."""
        return self.parameters.get("store") is False


@frozen
class SessionPolicy:
    """How a session is to behave; from the configuration."""

    client_gone: ClientGone = ClientGone.CANCEL
    keep_alive_interval_seconds: float | None = 15.0
    """Silence towards the client after which a ping is due; None: never (non-streaming)."""
    idle_seconds: float | None = 60.0
    """Longest silence between tokens; an attempt's own figure replaces it."""
    total_seconds: float | None = 600.0
    """Longest life of the whole completion, counted from its creation."""
    max_answer_bytes: int | None = None
    """Largest answer, in bytes of what is kept of it; None: no limit."""
    max_tape_bytes: int = DEFAULT_LIMIT
    """Largest tape; of a larger one only the end is kept while the answer runs, and nothing after."""
    client_gone_wait_seconds: float = 30.0
    """Under `client_gone: wait`: how long the answer goes on after the last reader left."""
    activity: Activity = Activity.NONE
    """How the client is told of the tools that are called."""
    shows_tool_detail: bool = False
    """With their arguments and results."""


@frozen
class Choice:
    """One choice of an answer: `message` is an OpenAI assistant message (`role`, `content`, and
    whatever else its deltas carried), `extra` the choice's fields that OpenAI doesn't define."""

    index: int
    message: JsonObject
    finish_reason: str | None = None
    logprobs: Any = None
    extra: JsonObject = field(factory=dict)


@frozen
class SessionRecord:
    """What is kept of a completion that has ended. One per session, made when it ends.

    `choices` holds at least one entry once any chunk arrived. `whole` is true when every
    choice reached its end, so the messages may be called complete even if the completion
    failed afterwards. `extra` holds top-level chunk fields we don't interpret
    (`system_fingerprint`, `service_tier`, `citations`, …). `client_left_at` is when the last reader
    left, POSIX seconds; None if one was there at the end, also one that came after a leaving.
    """

    request: SessionRequest
    agent: str
    state: State
    finish_reason: str | None
    failure: Failure | None
    choices: tuple[Choice, ...]
    whole: bool
    usage: JsonObject | None
    usage_source: UsageSource
    token_count: int
    chunk_count: int
    ttft_ms: float | None
    duration_ms: float
    finished_at: float
    client_left_at: float | None
    upstream_id: str | None
    upstream_model: str | None
    upstream_created: int | None
    extra: JsonObject
    tape: Tape | None = field(default=None, eq=False, repr=False)
    """The answer's chunks; None if they aren't known exactly."""
    usage_frame: JsonObject | None = field(default=None, eq=False, repr=False)
    """The last chunk that carried usage and no choice, which is sent with `usage` to whom asked for it."""
    longest_gap_seconds: float = field(default=0.0, eq=False, repr=False)
    """The longest silence between two tokens; counted, and not stored."""
    turns: tuple[Turn, ...] = ()
    """Those that ended with calls of tools of ours: all but the last one."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls of tools of ours, in the order in which they were begun; each has an outcome."""

    @property
    def completion_id(self) -> str:
        return self.request.completion_id


# --- events: something happened -------------------------------------------------------------


class Event:
    """Base of everything that can happen to a session."""

    __slots__ = ()


@frozen
class AttemptStarted(Event):
    """An agent is about to be asked: each retry and each fallback. A session begins with the first."""

    agent: str
    idle_seconds: float | None = None


@define(init=False)
class ChunkReceived(Event):
    """A chunk arrived from the upstream, or several that came together and repeat an earlier one.

    A bare JSON object is taken as the one chunk that it is.
    """

    run: ChunkRun

    # One for each chunk: attrs' frozen classes and converters cost four times this `__init__`.
    def __init__(self, run: ChunkRun | JsonObject) -> None:
        self.run = ParsedChunk(run) if type(run) is dict else run  # type: ignore[assignment]


@frozen
class UpstreamFinished(Event):
    """The upstream ended well, as it says itself (`[DONE]`)."""


@frozen
class UpstreamFailed(Event):
    """The upstream broke off, answered with an error, or could not be reached."""

    failure: Failure


@frozen
class ClientLeft(Event):
    """The last reader has left: its connection is gone, or it stopped reading for too long."""


@frozen
class ClientReturned(Event):
    """A reader came after the last one had left."""


@frozen
class WaitExpired(Event):
    """Nobody came back in time. A session finds out itself, under `client_gone: wait`."""


@frozen
class StopRequested(Event):
    """Somebody asked, by the completion's id, that it end now."""


@frozen
class DeadlineExpired(Event):
    """A deadline of the upstream passed; `failure.code` names which."""

    failure: Failure


@frozen
class AnswerExceeded(Event):
    """The answer has grown past what is allowed; `failure.code` says in what. A session finds out
    itself, from the chunk that was too much."""

    failure: Failure


@frozen
class DrainExpired(Event):
    """The service is stopping and its grace for running streams is over."""


@frozen
class TurnEnded(Event):
    """The model has said what it had to say before it is told what its calls of our tools brought; they
    follow, and then another turn."""

    number: int


@frozen
class ToolCallStarted(Event):
    """A tool of ours is about to be called; nobody has called it yet. See `ToolCall`."""

    call_id: str
    turn: int
    position: int
    server: str
    tool: str
    arguments: str


@frozen
class ToolCallEnded(Event):
    """A call of ours is over; the model hasn't been told yet. See `ToolCall`."""

    call_id: str
    outcome: Outcome
    result: str | None = None
    size: int = 0
    is_truncated: bool = False


@frozen
class TimePassed(Event):
    """A wake-up came; perhaps a ping is due."""


# --- effects: carry this out ----------------------------------------------------------------


class Effect:
    """Base of everything a session asks its driver to do."""

    __slots__ = ()


@frozen
class OpenStream(Effect):
    """Commit the 200 and its headers; from now on errors are SSE events."""


@define(init=False)
class SendChunk(Effect):
    """Write a chunk, or several that repeat an earlier one. Takes what `ChunkReceived` takes."""

    run: ChunkRun

    def __init__(self, run: ChunkRun | JsonObject) -> None:
        self.run = ParsedChunk(run) if type(run) is dict else run  # type: ignore[assignment]


class SendActivity(SendChunk):
    """Write a chunk that tells of a tool's call, and says nothing of the answer."""

    __slots__ = ()


@frozen
class SendPing(Effect):
    """Write one keep-alive comment."""


@frozen
class SendError(Effect):
    """Tell the client why, truthfully: an HTTP error before the 200, an SSE error event after."""

    failure: Failure


@frozen
class SendDone(Effect):
    """The answer is whole: `[DONE]` on a stream, the completion object on a plain request."""

    record: SessionRecord


@frozen
class StopUpstream(Effect):
    """Close the upstream's connection now; nobody pays for tokens that nobody waits for."""


@frozen
class Save(Effect):
    """Hand the record to the one persistence hook. Exactly one per session."""

    record: SessionRecord
