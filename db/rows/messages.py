"""Spreads a message over its row's columns; `StoredMessage.message` is the way back. No SQL.

Never decides where a message stands in the tree: that is `db.rows.history`'s part.
"""

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from db.rows.columns import readable
from db.rows.digest import SENT_BACK, is_empty, spoken
from db.store import StoredMessage
from statemachine import Choice, SessionRecord


def role_of(message: Mapping[str, Any]) -> str:
    """The role as its column holds it."""
    return readable(str(message.get("role")))


def text_of(message: Mapping[str, Any]) -> str | None:
    """The content if it is a text; else None, and the content is among the parts."""
    content = message.get("content")
    return content if isinstance(content, str) else None


def parts_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """All that a message holds besides its role and a plain text content."""
    return {
        field: value
        for field, value in message.items()
        if value is not None
        and field != "role"
        and not (field == "content" and isinstance(value, str))
    }


def answer_parts(choice: Choice, record: SessionRecord) -> dict[str, Any]:
    """The parts of an answer, and under `choice` what its choice holds besides the message."""
    parts = parts_of(choice.message)
    kept: dict[str, Any] = {}
    if not is_empty(choice.logprobs):
        kept["logprobs"] = choice.logprobs
    if choice.extra:
        kept["extra"] = dict(choice.extra)
    if choice.finish_reason and choice.finish_reason != record.finish_reason:
        kept["finish_reason"] = choice.finish_reason
    if "choice" in parts:  # a vendor's field of that very name
        kept["delta"] = parts["choice"]
    if kept:
        parts["choice"] = kept
    return parts


def sent_id(digest: str) -> str:
    """The id of a message that a client sent: the same whenever it is sent again."""
    return "msg_" + digest[:32]


def sent_copy(answer: StoredMessage, hidden: bool) -> StoredMessage:
    """The row that takes a deleted answer's place where other messages follow it: as much of the
    answer as a client's copy holds."""
    parts = {
        field: spoken(value) if field == "content" else value
        for field, value in (answer.parts or {}).items()
        if field in SENT_BACK
    }
    return evolve(
        answer,
        message_id=sent_id(answer.digest),
        completion_id=None,
        choice_index=None,
        content=spoken(answer.content),
        parts=parts or None,
        state="complete",
        hidden=hidden,
    )
