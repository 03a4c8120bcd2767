"""Takes out of what is shown all that people and models said, where operators must not read it. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from db.store import StoredCompletion

HIDDEN = "hidden (admin.texts)"
_OPEN = frozenset(("id", "object", "created", "model", "state", "request_id"))
_DROPPED = frozenset(("service_tier", "system_fingerprint"))
_PLAIN = (int, float, bool, type(None))
_NAME = re.compile("[A-Za-z0-9_.-]{1,64}")
_ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))


def without_texts(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A `chat.completion` object with its names and numbers alone: no message, no tools, no metadata,
    and of the request's parameters those that are no texts."""
    shown = {
        key: value if key in _OPEN or isinstance(value, _PLAIN) else HIDDEN
        for key, value in answer.items()
        if key not in _DROPPED and _NAME.fullmatch(key)
    }
    shown["choices"] = [
        {
            "index": choice.get("index"),
            "finish_reason": name_shown(choice.get("finish_reason")),
            "message": {"role": role_of(choice.get("message") or {}), "content": HIDDEN},
        }
        for choice in answer.get("choices", ())
    ]
    if calls := answer.get("tool_calls"):
        shown["tool_calls"] = [
            {**call, "id": HIDDEN, "arguments": HIDDEN, "result": HIDDEN} for call in calls
        ]
    shown["usage"] = _numbers(answer.get("usage"))
    if (error := answer.get("error")) is not None:
        code, kind = name_shown(error.get("code")), name_shown(error.get("type"))
        shown["error"] = {"code": code, "type": kind, "message": HIDDEN}
    return shown


def name_shown(value: Any) -> Any:
    """A backend's or client's code, if it looks like one and not like a text; else `HIDDEN`. None stays."""
    if value is None or (isinstance(value, str) and _NAME.fullmatch(value)):
        return value
    return HIDDEN


def role_of(message: Mapping[str, Any]) -> str:
    """A message's role; "other" for one that clients or backends made up."""
    role = message.get("role")
    return role if isinstance(role, str) and role in _ROLES else "other"


def _numbers(value: Any) -> Any:
    """Of an object its numbers, at any depth; None without any."""
    if isinstance(value, Mapping):
        return {
            key: _numbers(one)
            for key, one in value.items()
            if _NAME.fullmatch(key) and isinstance(one, (Mapping, *_PLAIN))
        }
    return value if isinstance(value, _PLAIN) else None


def parameters_shown(row: StoredCompletion, *, shows_texts: bool) -> dict[str, Any]:
    """The request's parameters but its model, as names and values."""
    given = {key: value for key, value in row.request.items() if key != "model"}
    if shows_texts:
        return given
    return {
        key: value if isinstance(value, _PLAIN) else HIDDEN
        for key, value in given.items()
        if _NAME.fullmatch(key)
    }


def code_of(error: Mapping[str, Any] | None) -> str:
    """An error's code: our own, or the upstream's where there is none; "" without an error. One that
    looks like a text is `HIDDEN`: codes are in lists, which show no text."""
    code = (error or {}).get("kind") or (error or {}).get("code") or ""
    return str(name_shown(str(code))) if code else ""


def said(content: Any) -> str:
    """A message's content as a text, whatever parts it has: what isn't text is named by its kind."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    parts = []
    for part in content:
        kind = part.get("type", "?") if isinstance(part, Mapping) else "?"
        is_text = isinstance(part, Mapping) and isinstance(part.get("text"), str)
        parts.append(part["text"] if is_text else f"[{kind}]")
    return "\n".join(parts)


def calls_of(message: Mapping[str, Any]) -> list[str]:
    """The tool calls in a message, as `name(arguments)`."""
    calls = message.get("tool_calls")
    found = []
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            found.append(f"{function.get('name')}({function.get('arguments') or ''})")
    return found


def reasoning_of(message: Mapping[str, Any]) -> str:
    """What a model thought aloud, by whichever of the usual names."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str):
            text: str = message[name]
            return text
    return ""
