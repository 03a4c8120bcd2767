"""Words what a model is asked in a later turn, as OpenAI writes it. Pure."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from attrs import evolve

from service.tools.contract import Tool, ToolResult
from service.turns.calling import Call
from service.wire import ChatRequest

_UNFIT, _LONGEST_NAME = re.compile(r"[^A-Za-z0-9_-]"), 64


def request_with(
    request: ChatRequest, tools: Sequence[Tool], told: Sequence[dict[str, Any]] = ()
) -> ChatRequest:
    """The request, with these tools beside its own, and these messages behind its own. After messages the
    client's `tool_choice` counts no more."""
    body: dict[str, Any] = {**request.body}
    messages = [*request.messages, *told]
    offered: list[Any] = [*(request.tools or ()), *map(_offered, tools)]
    body["messages"] = messages
    if offered:
        body["tools"] = offered
    if told:
        body.pop("tool_choice", None)
    return evolve(request, body=body, messages=messages, tools=offered or None)


def messages_after(
    text: str,
    calls: Sequence[Call],
    results: Mapping[str, ToolResult],
    unreadable: Collection[str],
) -> list[dict[str, Any]]:
    """What a turn adds to the conversation: what the model said and called, and what each call brought, in
    the order of the calls. Names and arguments that backends refuse, which the model made up, are made fit:
    what each call brought says what was wrong.

    Args:
        unreadable: the ids of calls whose arguments are no JSON object.
    """
    said = {
        "role": "assistant",
        "content": text or None,
        "tool_calls": [
            {
                "id": call.call_id,
                "type": "function",
                "function": {
                    "name": _fit(call.name),
                    "arguments": "{}" if call.call_id in unreadable else _object(call.arguments),
                },
            }
            for call in calls
        ],
    }
    brought = [
        {"role": "tool", "tool_call_id": call.call_id, "content": results[call.call_id].text}
        for call in calls
    ]
    return [said, *brought]


def _fit(name: str) -> str:
    """A name as OpenAI's API takes it."""
    return _UNFIT.sub("_", name)[:_LONGEST_NAME] or "unnamed"


def _object(arguments: str) -> str:
    """Arguments as vLLM and others take them, which parse them: none at all are an empty object."""
    return arguments if arguments.strip() else "{}"


def _offered(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.full_name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
        },
    }
