"""Says what an agent did between its words, its turns and the tools that it called; and how clients are
told. Pure values: `statemachine.work` gathers them.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from statemachine.chunks import JsonObject


class Outcome(enum.StrEnum):
    """What became of a tool's call. The values are column, field and metric label."""

    OK = "ok"
    """The tool answered."""
    ERROR = "error"
    """The tool, or who was to call it, said that it failed."""
    TIMEOUT = "timeout"
    """The tool was given up; it may have done what it was asked, or may yet."""
    ABANDONED = "abandoned"
    """The answer ended while the tool was at work; it may have done what it was asked, or may yet."""
    UNKNOWN = "unknown"
    """The way to the tool broke, or the process died: nobody knows whether it did what it was asked."""


class Activity(enum.StrEnum):
    """How a client is told of calls (`tools.show` in the configuration)."""

    NONE = "none"
    FIELD = "field"
    """A field of its own, `activity`, in a chunk without text."""
    OPENWEBUI = "openwebui"
    """That, and the status line that Open WebUI shows."""


@frozen
class ToolCall:
    """One call of a tool of ours.

    Attributes:
        call_id: the model's name for it.
        turn: in which of the answer's turns, from 1.
        position: which of that turn's calls, from 0.
        server, tool: what is called.
        arguments: JSON, as the model wrote it.
        asked_at, ended_at: POSIX seconds; the latter is None if its end was never told.
        outcome: what became of it; None while it is at work.
        result: what the model was told, if it was told anything.
        size: of what the tool answered, in bytes, cut or not.
        is_truncated: less than that is in the result.
    """

    call_id: str
    turn: int
    position: int
    server: str
    tool: str
    arguments: str
    asked_at: float
    ended_at: float | None = None
    outcome: Outcome | None = None
    result: str | None = None
    size: int = 0
    is_truncated: bool = False


@frozen
class Turn:
    """A turn that ended with calls of ours; the answer's last one isn't among them.

    Attributes:
        number: from 1.
        text_end: how many characters of the first choice's text had come.
        usage: what its upstream reported.
    """

    number: int
    text_end: int
    usage: JsonObject | None = None


def activity_chunk(
    call: ToolCall, shown: Activity, model: str, created: int, *, shows_detail: bool
) -> dict[str, Any]:
    """The chunk that tells a client of a call's beginning, or of its end once it has an outcome.

    Args:
        model: the name that goes into it.
        created: POSIX seconds.
        shows_detail: with arguments and result.
    """
    told: dict[str, Any] = {
        "type": "tool_call.started" if call.outcome is None else "tool_call.finished",
        "call_id": call.call_id,
        "turn": call.turn,
        "server": call.server,
        "tool": call.tool,
    }
    if call.outcome is not None:
        told["outcome"] = call.outcome.value
        told["seconds"] = round((call.ended_at or call.asked_at) - call.asked_at, 3)
    if shows_detail:
        told["arguments"] = call.arguments
        if call.outcome is not None:
            told["result"] = call.result
    chunk: dict[str, Any] = {
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "delta": {}, "finish_reason": None}],
        "activity": told,
    }
    if shown is Activity.OPENWEBUI:
        data = {"description": _described(call), "done": call.outcome is not None}
        chunk["event"] = {"type": "status", "data": data}
    return chunk


def _described(call: ToolCall) -> str:
    name = f"{call.server}: {call.tool}"
    if call.outcome is None:
        return f"{name} …"
    return name if call.outcome is Outcome.OK else f"{name} ({call.outcome.value})"


def usage_of_turns(turns: Sequence[Turn], last: JsonObject | None) -> dict[str, Any] | None:
    """What all turns used: each number summed, and under `turns` what each one reported. None if none
    did.

    Args:
        last: the usage of the turn after these.
    """
    reported = [turn.usage for turn in turns] + [last]
    known = [usage for usage in reported if usage is not None]
    if not known:
        return None
    total: dict[str, Any] = {}
    for usage in known:
        _add(total, usage)
    total["turns"] = [None if usage is None else dict(usage) for usage in reported]
    return total


def _add(total: dict[str, Any], usage: Mapping[str, Any]) -> None:
    for key, value in usage.items():
        known = total.get(key)
        if isinstance(value, Mapping):
            part = dict(known) if isinstance(known, Mapping) else {}
            _add(part, value)
            total[key] = part
        elif type(value) in (int, float) and type(known) in (int, float):
            total[key] = known + value
        elif value is not None or known is None:
            total[key] = value
