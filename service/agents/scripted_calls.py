"""Has the scripted agent call the tools that it is offered, as a model would, by words. Pure."""

from collections.abc import Sequence
from typing import Any

from attrs import frozen

from service.wire import ChatRequest

_WORDS = {
    "clock__now": ("time", "clock"),
    "dice__roll": ("dice", "die", "roll"),
}
"""What a question has in it that one of the built-in tools answers."""


@frozen
class Script:
    """What the agent says in a turn, and calls after it."""

    text: str
    calls: tuple[str, ...] = ()


def script_of(request: ChatRequest, reply: str) -> Script:
    """What is said to a request: the reply, but if the last question is one for tools that are offered, a
    call of these; and once they have answered, what they answered."""
    last = request.messages[-1]
    if last["role"] == "tool":
        return Script(f"This is what I was told: {_told(request)}.")
    if last["role"] != "user":
        return Script(reply)
    words = set(_text_of(last).lower().replace("?", " ").replace(".", " ").split())
    offered = _offered(request.tools or ())
    called = [
        name for name, known in _WORDS.items() if name in offered and not words.isdisjoint(known)
    ]
    return Script("Let me look.", tuple(called)) if called else Script(reply)


def calls_delta(calls: Sequence[str]) -> dict[str, Any]:
    """The delta of a chunk that calls these."""
    items = [
        {
            "index": index,
            "id": f"call_{name}",
            "type": "function",
            "function": {"name": name, "arguments": "{}"},
        }
        for index, name in enumerate(calls)
    ]
    return {"tool_calls": items}


def _told(request: ChatRequest) -> str:
    told: list[str] = []
    for message in reversed(request.messages):
        if message["role"] != "tool":
            break
        told.insert(0, str(message.get("content")))
    return ", ".join(told)


def _offered(tools: Sequence[Any]) -> set[str]:
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    return {str(each.get("name")) for each in functions if isinstance(each, dict)}


def _text_of(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return " ".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
