"""Decides when two messages are the same: canonical content, and the digests made of it. Pure.

A digest is SHA-256 over the parent's digest, the role and the canonical content. Canonical content
is the same for all spellings of a message, so that an answer sent back by a client is recognised:

- a text, and a list of text parts that say the same, are the same;
- an answer's surrounding whitespace doesn't count, since clients trim it, nor its reasoning,
  since they drop it; the text of every other role counts exactly;
- tool arguments are compared as JSON, since clients parse them and write them anew;
- null, absent and empty are the same; caching hints don't count;
- every field that isn't known to come and go counts.

Digests live as long as the rows: a change to these rules makes old conversations branch.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from secrets import token_hex
from typing import Any

from db.rows.columns import canonical_json

_NOT_SENT_BACK = frozenset(
    (
        "annotations",
        "citations",
        "provider_specific_fields",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "thinking",
        "thinking_blocks",
    )
)
"""Fields of assistant messages that some clients send back and most drop."""

SENT_BACK = frozenset(
    ("audio", "content", "function_call", "name", "refusal", "role", "tool_calls")
)
"""The fields of an assistant message in OpenAI's request schema. An answer's digest is made of these
alone: whatever else its deltas carried, no client is likely to send it back."""

_PLAIN = frozenset(("role", "content"))
_REASONING_PARTS = frozenset(("reasoning", "redacted_thinking", "thinking"))
_REASONING_TAG = re.compile(r"\s*<(think|thinking|thought|reason|reasoning)>")
"""Begins reasoning that came as text; Open WebUI and others show it apart and don't send it back."""
_LONGEST_ARGUMENTS = 512 * 1024
"""Longer tool arguments are compared as the text that they are: to read megabytes of tiny values, or
of one number, takes seconds."""
LONGEST_SLICE = 1024 * 1024
"""Characters of a text that are made into JSON at a time."""
_MARK = token_hex(32)
"""A text that is in no message."""


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value's canonical form, in hex."""
    return sha256(canonical_json(value)).hexdigest()


def message_digest(parent: str, role: str, content: Mapping[str, Any]) -> str:
    """The digest of a message with this canonical content, below the one with digest `parent`."""
    text = content.get("content")
    if type(text) is str and len(text) > LONGEST_SLICE:
        return _digest_in_slices([parent, role, {**content, "content": _MARK}], text)
    return digest_of([parent, role, content])


def _digest_in_slices(value: Any, text: str) -> str:
    """The digest of a value in which `_MARK` stands for a long text, whose JSON is never held whole."""
    before, after = canonical_json(value).split(_MARK.encode())
    digest = sha256(before)
    start = 0
    while start < len(text):
        end = start + LONGEST_SLICE
        if "\ud800" <= text[end - 1 : end] <= "\udbff":
            end += 1  # half of a character, whose other half may follow
        digest.update(canonical_json(text[start:end])[1:-1])
        start = end
    digest.update(after)
    return digest.hexdigest()


def answer_content(message: Mapping[str, Any]) -> dict[str, Any]:
    """An answer's canonical content, which is also that of the copy that a client sends back."""
    return canonical_content(
        {field: value for field, value in message.items() if field in SENT_BACK}
    )


def canonical_content(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message's fields but its role, in the form that all its spellings share."""
    from_assistant = message.get("role") == "assistant"
    if message.keys() == _PLAIN and type(text := message["content"]) is str:  # nearly always
        text = spoken(text) if from_assistant else text
        return {"content": text} if text else {}
    canonical: dict[str, Any] = {}
    for field, value in message.items():
        if field in ("role", "cache_control") or (from_assistant and field in _NOT_SENT_BACK):
            continue
        if field == "content":
            value = _canonical_text(value)
            value = spoken(value) if from_assistant else value
        elif field == "tool_calls" and isinstance(value, list):
            value = [_canonical_tool_call(call) for call in value]
        if not is_empty(value):
            canonical[field] = value
    return canonical


def is_empty(value: Any) -> bool:
    """True of null, and of a text, list or object with nothing in it."""
    return value is None or (isinstance(value, (str, list, tuple, Mapping)) and not value)


def _canonical_text(content: Any) -> Any:
    """One text if all of the content is text; else its parts."""
    if not isinstance(content, list):
        return content
    parts = [_canonical_part(part) for part in content]
    if all(isinstance(part, dict) and _is_plain_text(part) for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _canonical_part(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    # Clients move their caching hints along with every turn.
    return {
        field: value
        for field, value in part.items()
        if field != "cache_control" and value is not None
    }


def _is_plain_text(part: dict[str, Any]) -> bool:
    return part.keys() == {"type", "text"} and isinstance(part["text"], str)


def spoken(content: Any) -> Any:
    """An answer's content as clients send it back: no reasoning, no surrounding whitespace."""
    if isinstance(content, list):
        content = [
            part
            for part in content
            if not (isinstance(part, dict) and part.get("type") in _REASONING_PARTS)
        ]
        content = _canonical_text(content)
    if not isinstance(content, str):
        return content
    if reasoning := _REASONING_TAG.match(content):
        _, _, content = content[reasoning.end() :].partition(f"</{reasoning[1]}>")
    return content.strip()


def _canonical_tool_call(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    # `index` is a matter of streaming, and a stream may leave `type` out.
    known = {"type": "function", **{k: v for k, v in call.items() if k != "index"}}
    function = known.get("function")
    if isinstance(function, Mapping):
        known["function"] = {
            "arguments": _canonical_arguments(function.get("arguments")),
            **{k: v for k, v in function.items() if k != "arguments" and not is_empty(v)},
        }
    return {field: value for field, value in known.items() if not is_empty(value)}


def _canonical_arguments(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    if len(arguments) > _LONGEST_ARGUMENTS:
        return arguments
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
