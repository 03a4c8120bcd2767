"""Takes out of what is shown all that people and models said, where operators must not read it. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from db.store import StoredCompletion

HIDDEN = "hidden (admin.texts)"
_OPEN = frozenset(("id", "object", "created", "model", "state", "request_id", "service_tier"))
_PLAIN = (int, float, bool, type(None))


def without_texts(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A `chat.completion` object with its names and numbers alone: no message, no tools, no metadata,
    and of the request's parameters those that are no texts."""
    shown = {
        key: value if key in _OPEN or isinstance(value, _PLAIN) else HIDDEN
        for key, value in answer.items()
    }
    shown["choices"] = [
        {
            "index": choice.get("index"),
            "finish_reason": choice.get("finish_reason"),
            "message": {"role": (choice.get("message") or {}).get("role"), "content": HIDDEN},
        }
        for choice in answer.get("choices", ())
    ]
    shown["usage"] = _numbers(answer.get("usage"))
    if (error := answer.get("error")) is not None:
        shown["error"] = {"code": error.get("code"), "type": error.get("type"), "message": HIDDEN}
    return shown


def _numbers(value: Any) -> Any:
    """Of an object its numbers, at any depth."""
    if isinstance(value, Mapping):
        return {key: _numbers(one) for key, one in value.items()}
    return value if isinstance(value, _PLAIN) else HIDDEN


def parameters_shown(row: StoredCompletion, *, shows_texts: bool) -> dict[str, Any]:
    """The request's parameters but its model, as names and values."""
    given = {key: value for key, value in row.request.items() if key != "model"}
    if shows_texts:
        return given
    return {key: value if isinstance(value, _PLAIN) else HIDDEN for key, value in given.items()}


def code_of(error: Mapping[str, Any] | None) -> str:
    """An error's code: our own, or the upstream's where there is none; "" without an error."""
    return str((error or {}).get("kind") or (error or {}).get("code") or "")


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
