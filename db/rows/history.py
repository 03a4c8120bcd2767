"""Makes a record's rows, each message at its place in the conversation's tree. Pure, no SQL.

A chat client resends the whole history with each request. Stored each time, it would grow with
the square of its length; so history is a tree, like commits:

1. A message's digest is made of its parent's digest, its role and its content (`db.rows.digest`).
   Equal digests mean: the same message after the same messages in the same conversation.
2. A first message's parent digest is NULL, so that a walk up the tree ends there; its digest is
   made over the conversation's id instead, and the id over the owner. So no row is ever shared
   between two conversations or two owners.
3. A conversation is named by the client's key, or, by clients that keep none, by its opening:
   everything up to and including the first user message. A follow-up finds its conversation
   without asking the database.
4. A message that the client sent is stored only if its digest is new. Its id is made of the
   digest, so that storing it again is harmless.
5. Each choice of an answer is a row of its own, child of the last message sent. Regenerated
   answers are siblings, edits are branches.
6. No chunk, no answer: a completion that ended before the first one has no message rows.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Annotated, Any

from attrs import frozen

from db.rows.columns import as_json, readable
from db.rows.digest import answer_content, canonical_content, digest_of, message_digest
from db.rows.messages import answer_parts, parts_of, role_of, sent_id, text_of
from db.rows.tapes import TapeColumns, columns_of
from db.store import StoredCompletion, StoredConversation, StoredMessage, StoredToolCall
from statemachine import Choice, Failure, Outcome, SessionRecord, SessionRequest

_INDEXED_BYTES = 512
"""The longest text put into an index; PostgreSQL refuses index rows over 2,704 bytes."""

_PLACES = 1_000_000
"""The messages of one request are created a microsecond apart, so that they keep their order."""

_INT32, _INT64 = 2**31 - 1, 2**63 - 1

_Said = tuple[str, dict[str, Any]]
"""A message's role, and its canonical content."""

JsonSource = Annotated[Any, "what `db.rows.columns.as_json` makes of JSON"]
ByteDigits = Annotated[str, "bytes as PostgreSQL reads them: a backslash, x, hexadecimal digits"]


@frozen(slots=False)  # a row's attributes are its `__dict__`
class TapedCompletion(StoredCompletion):
    """A completion as it is saved if it has a tape. Lists don't read that, so the others have none."""

    tape: JsonSource | None = None
    tape_lengths: ByteDigits | None = None


@frozen(slots=False)  # a row's attributes are its `__dict__`
class ToolSetRow:
    """The tool definitions of a request, kept once however often they are sent."""

    digest: str
    tools: Sequence[Any]


@frozen
class RecordRows:
    """All the rows that are made of one record."""

    conversation: StoredConversation
    completion: StoredCompletion
    tool_set: ToolSetRow | None
    sent: tuple[StoredMessage, ...]
    """The messages that the client sent, oldest first; only those with a new digest are stored."""
    answers: tuple[StoredMessage, ...]
    tape: TapeColumns | None = None
    tool_calls: tuple[StoredToolCall, ...] = ()
    """What was called for it, in the order in which it was asked."""
    is_long: bool = False
    """Wording them takes so long that it isn't done in the event loop."""

    @property
    def saved_completion(self) -> StoredCompletion:
        """The completion as it is saved: a `TapedCompletion`, if there is a tape."""
        if self.tape is None:
            return self.completion
        # Not by its `__init__`, which takes longer than all else that a tape costs.
        taped = TapedCompletion.__new__(TapedCompletion)
        values = {
            **vars(self.completion),
            "tape": as_json(self.tape.tape),
            "tape_lengths": "\\x" + self.tape.lengths,
        }
        object.__setattr__(taped, "__dict__", values)
        return taped


def rows_of(record: SessionRecord) -> RecordRows:
    """The rows of a record. The same record always makes the same rows."""
    request = record.request
    said = [(role_of(message), canonical_content(message)) for message in request.messages]
    conversation = _conversation(request, said, record.finished_at)
    sent = _sent_messages(request, said, conversation)
    prompt_digest = sent[-1].digest if sent else None
    tool_set = None
    if request.tools:
        tool_set = ToolSetRow(digest_of(request.tools), request.tools)
    return RecordRows(
        conversation=conversation,
        completion=_completion(record, conversation, tool_set, prompt_digest),
        tool_set=tool_set,
        sent=sent,
        answers=_answers(record, conversation, prompt_digest),
        tape=columns_of(record),
        tool_calls=_tool_calls(record) if record.tool_calls else (),
    )


# --- the rows -------------------------------------------------------------------------------


def _conversation(
    request: SessionRequest, said: Sequence[_Said], finished_at: float
) -> StoredConversation:
    owner = readable(request.owner)
    key = None if request.conversation_key is None else _indexable(request.conversation_key)
    name = [owner, "opening", *_opening(request, said)] if key is None else [owner, "key", key]
    return StoredConversation(
        conversation_id="conv_" + digest_of(name)[:32],
        owner=owner,
        client_key=key,
        created_at=_moment(request.created_at),
        updated_at=_moment(finished_at),
        hidden=request.is_hidden,
    )


def _opening(request: SessionRequest, said: Sequence[_Said]) -> Sequence[_Said]:
    for position, message in enumerate(request.messages):
        if message.get("role") == "user":
            return said[: position + 1]
    return said


def _sent_messages(
    request: SessionRequest, said: Sequence[_Said], conversation: StoredConversation
) -> tuple[StoredMessage, ...]:
    rows: list[StoredMessage] = []
    for position, (message, (role, content)) in enumerate(zip(request.messages, said, strict=True)):
        parent = rows[-1].digest if rows else None
        digest = message_digest(parent or conversation.conversation_id, role, content)
        rows.append(
            StoredMessage(
                message_id=sent_id(digest),
                conversation_id=conversation.conversation_id,
                completion_id=None,
                choice_index=None,
                role=role,
                content=text_of(message),
                parts=parts_of(message) or None,
                state="complete",
                digest=digest,
                parent_digest=parent,
                created_at=_moment(request.created_at + position / _PLACES),
                hidden=conversation.hidden,
            )
        )
    return tuple(rows)


def _answers(
    record: SessionRecord, conversation: StoredConversation, prompt_digest: str | None
) -> tuple[StoredMessage, ...]:
    parent = prompt_digest or conversation.conversation_id
    messages = len(record.request.messages)
    came_at = _moment(max(record.finished_at, record.request.created_at + messages / _PLACES))
    rows: list[StoredMessage] = []
    for index, choice in _numbered(record.choices):
        role = role_of(choice.message)
        rows.append(
            StoredMessage(
                message_id=f"{record.completion_id}-{index}",
                conversation_id=conversation.conversation_id,
                completion_id=record.completion_id,
                choice_index=index,
                role=role,
                content=text_of(choice.message),
                parts=answer_parts(choice, record) or None,
                state="complete" if record.whole else "partial",
                digest=message_digest(parent, role, answer_content(choice.message)),
                parent_digest=prompt_digest,
                created_at=came_at,
                hidden=conversation.hidden,
            )
        )
    return tuple(rows)


def _tool_calls(record: SessionRecord) -> tuple[StoredToolCall, ...]:
    ends = {turn.number: turn.text_end for turn in record.turns}
    return tuple(
        StoredToolCall(
            completion_id=record.completion_id,
            turn=call.turn,
            position=call.position,
            call_id=readable(call.call_id),
            server=readable(call.server),
            tool=readable(call.tool),
            arguments=call.arguments,
            asked_at=_moment(call.asked_at),
            ended_at=None if call.ended_at is None else _moment(call.ended_at),
            outcome=(call.outcome or Outcome.UNKNOWN).value,
            result=call.result,
            bytes=_count(call.size),
            is_truncated=call.is_truncated,
            text_end=ends.get(call.turn, 0),
        )
        for call in record.tool_calls
    )


def _numbered(choices: Sequence[Choice]) -> list[tuple[int, Choice]]:
    """The choices by their own index, or by position if an upstream gave nonsense for one."""
    indices = [choice.index for choice in choices]
    if all([type(index) is int and 0 <= index <= _INT32 for index in indices]):
        return list(zip(indices, choices, strict=True))
    return list(enumerate(choices))


def _completion(
    record: SessionRecord,
    conversation: StoredConversation,
    tool_set: ToolSetRow | None,
    prompt_digest: str | None,
) -> StoredCompletion:
    request, created = record.request, record.upstream_created
    left_at = record.client_left_at
    return StoredCompletion(
        completion_id=record.completion_id,
        conversation_id=conversation.conversation_id,
        owner=conversation.owner,
        agent=readable(record.agent),
        model=readable(request.model),
        upstream_id=_readable(record.upstream_id),
        upstream_model=_readable(record.upstream_model),
        upstream_created=created if type(created) is int and abs(created) <= _INT64 else None,
        state=record.state,
        finish_reason=_readable(record.finish_reason),
        error=_error(record.failure),
        usage=_object(record.usage),
        usage_source=record.usage_source.value,
        token_count=_count(record.token_count),
        chunk_count=record.chunk_count,
        ttft_ms=record.ttft_ms,
        duration_ms=record.duration_ms,
        trace_id=readable(request.trace_id),
        request_id=_readable(request.request_id),
        request=dict(request.parameters),
        tools_digest=tool_set.digest if tool_set else None,
        metadata=_object(request.metadata),
        prompt_digest=prompt_digest,
        extra=_object(record.extra) or None,
        created_at=conversation.created_at,
        finished_at=conversation.updated_at,
        client_left_at=None if left_at is None else _moment(left_at),
        hidden=conversation.hidden,
    )


def _error(failure: Failure | None) -> dict[str, Any] | None:
    """The error as the client saw it; `kind` is our own code, where the upstream had another."""
    if failure is None:
        return None
    error = {
        **failure.extra,
        "code": failure.reported_code,
        "message": failure.message,
        "type": failure.type,
        "param": failure.param,
    }
    return error if failure.reported_code == failure.code else {**error, "kind": failure.code}


def _count(value: Any) -> int:
    """A number of things as a column can hold it; 0 for what is none."""
    return max(0, min(value, _INT64)) if type(value) is int else 0


def _readable(text: Any) -> str | None:
    """A text for its column; None for what is none, be it a number or a list."""
    return readable(text) if isinstance(text, str) else None


def _indexable(text: str) -> str:
    """The text as an index can hold it: itself, or its digest if it is too long."""
    encoded = (text := readable(text)).encode()
    return text if len(encoded) <= _INDEXED_BYTES else "sha256:" + sha256(encoded).hexdigest()


def _object(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else dict(value)


def _moment(seconds: float) -> float:
    """POSIX seconds to the microsecond, which is what timestamptz keeps."""
    return round(seconds, 6)
