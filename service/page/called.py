"""Shows the tools that were called for an answer: a row for each, and its stretch of the time axis. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.page.texts import HIDDEN
from service.page.timeline import Stretch
from service.page.writing import cut

_KINDS = {"ok": "completed", None: "streaming", "abandoned": "away"}
"""An outcome → the colour of its stretch; all others are drawn as failures."""


def called(shown: Mapping[str, Any], *, shows_texts: bool) -> list[dict[str, Any]]:
    """The calls of a completion's object, each with its name, its outcome, how long it took (seconds, or
    None), and its arguments and result as they may be shown."""
    return [
        {
            "name": name_of(call),
            "turn": call["turn"],
            "outcome": call["outcome"] or "running",
            "seconds": _seconds(call),
            "bytes": call["bytes"],
            "is_truncated": call["is_truncated"],
            "arguments": cut(call["arguments"]) if shows_texts else HIDDEN,
            "result": cut(call["result"] or "") if shows_texts else HIDDEN,
        }
        for call in _calls_in(shown)
    ]


def stretches(shown: Mapping[str, Any]) -> list[Stretch]:
    """The same for the time axis."""
    return [
        Stretch(
            _KINDS.get(call["outcome"], "failed"),
            call["asked_at"],
            call["ended_at"],
            f"{name_of(call)}, {(call['outcome'] or 'running')}",
        )
        for call in _calls_in(shown)
    ]


def name_of(call: Mapping[str, Any]) -> str:
    """Whose tool, and which."""
    return f"{call['server']}: {call['tool']}"[:200]


def _calls_in(shown: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    calls: Sequence[Mapping[str, Any]] = shown.get("tool_calls") or ()
    return calls


def _seconds(call: Mapping[str, Any]) -> float | None:
    ended_at: float | None = call["ended_at"]
    return None if ended_at is None else ended_at - call["asked_at"]
