"""Shows the tools that were called for an answer, and its turns as OpenAI writes messages. Pure."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from db.store import StoredToolCall
from statemachine import ToolCall

_SEPARATOR = "\n\n"
"""Between the texts of two turns."""


def tool_call_object(call: StoredToolCall | ToolCall) -> dict[str, Any]:
    """One call, of a running answer or a stored one. Times are POSIX seconds."""
    outcome = call.outcome
    return {
        "id": call.call_id,
        "object": "tool_call",
        "turn": call.turn,
        "position": call.position,
        "server": call.server,
        "tool": call.tool,
        "arguments": call.arguments,
        "asked_at": call.asked_at,
        "ended_at": call.ended_at,
        "outcome": None if outcome is None else str(outcome),
        "result": call.result,
        "bytes": call.bytes if isinstance(call, StoredToolCall) else call.size,
        "is_truncated": call.is_truncated,
    }


def messages_of(
    message: Mapping[str, Any] | None, calls: Sequence[StoredToolCall]
) -> list[dict[str, Any]]:
    """An answer's turns: for each that called tools what was said and called, and what each call brought;
    then what was said last.

    Args:
        message: the answer as one message; None if it said nothing.
        calls: by turn and position.
    """
    said = dict(message or {"role": "assistant", "content": None})
    text = said["content"] if isinstance(said["content"], str) else ""
    messages: list[dict[str, Any]] = []
    begin = 0
    for _, group in groupby(calls, key=attrgetter("turn")):
        turn = list(group)
        end = turn[0].text_end
        messages.append(
            {
                "role": "assistant",
                "content": _spoken(text, begin, end),
                "tool_calls": [_called(call) for call in turn],
            }
        )
        messages += [
            {"role": "tool", "tool_call_id": call.call_id, "content": call.result}
            for call in turn
            if call.result is not None
        ]
        begin = end
    if isinstance(said["content"], str):
        said["content"] = _spoken(text, begin, len(text))
    return [*messages, said] if message is not None else messages


def _spoken(text: str, begin: int, end: int) -> str | None:
    part = text[begin:end]
    return (part.removeprefix(_SEPARATOR) if begin else part) or None


def _called(call: StoredToolCall) -> dict[str, Any]:
    name = f"{call.server}__{call.tool}" if call.tool else call.server
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": name, "arguments": call.arguments},
    }
