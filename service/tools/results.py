"""Says what a tool answered, for the model, and bounds it; checks what a tool is called with. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from service.tools.contract import ToolResult
from service.tools.link import Answered, CallFailed, Enclosed, Fate
from statemachine import Outcome

MOST_ARGUMENT_BYTES = 4 * 1024 * 1024 - 4096
"""Servers made with the Python SDK refuse a request from 4 MiB on; the rest is what is around arguments."""

_OUTCOMES = {Fate.TIMEOUT: Outcome.TIMEOUT, Fate.UNKNOWN: Outcome.UNKNOWN}


def why_unsendable(arguments: Mapping[str, Any]) -> str | None:
    """Why a tool can't be called with these arguments, for the model; None if it can."""
    try:
        data = json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return "The arguments hold half a character (a lone surrogate)"
    except (TypeError, ValueError, RecursionError):
        return "The arguments are not what JSON can say"
    if len(data) > MOST_ARGUMENT_BYTES:
        return f"The arguments have {len(data)} bytes; the most is {MOST_ARGUMENT_BYTES}"
    return None


def answer_of(answered: Answered, most_bytes: int) -> ToolResult:
    """The result of a call that was answered: texts, a line end between; other parts in words, without
    their data. The structured value, as JSON, if there are no parts."""
    parts = [_in_words(part) if isinstance(part, Enclosed) else part for part in answered.parts]
    has_text = any(isinstance(part, str) for part in answered.parts)
    if answered.structured is not None and not has_text:
        parts.append(json.dumps(answered.structured, ensure_ascii=False))
    outcome = Outcome.ERROR if answered.is_error else Outcome.OK
    return bounded(outcome, "\n".join(parts), most_bytes)


def failure_of(failed: CallFailed, most_bytes: int) -> ToolResult:
    """The result of a call that wasn't answered."""
    return bounded(_OUTCOMES.get(failed.fate, Outcome.ERROR), failed.words, most_bytes)


def bounded(outcome: Outcome, text: str, most_bytes: int) -> ToolResult:
    """A result whose text is cut after `most_bytes` of UTF-8, at a character, and says so at its end."""
    data = text.encode("utf-8", "replace")
    if len(data) <= most_bytes:
        return ToolResult(outcome, data.decode(), len(data))
    kept = data[:most_bytes].decode("utf-8", "ignore")
    note = f"\n[cut: these are the first {most_bytes} of {len(data)} bytes]"
    return ToolResult(outcome, kept + note, len(data), is_truncated=True)


def _in_words(part: Enclosed) -> str:
    size = "" if part.size is None else f", {part.size} bytes"
    return f"[{part.words}{size}]"
