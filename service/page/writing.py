"""What is stored, as JSON text and as a command to paste. Long texts take their time: whoever calls this
does so in a thread.

Never here: what may be shown.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from db.store import StoredCompletion

LONGEST_SHOWN = 200_000
"""Characters of one text, or of the JSON; of longer ones the beginning is shown."""
_LONGEST_COMMAND = 64 * 1024
_LEFT_OUT = "left out here"


def cut(text: str) -> str:
    """The beginning of a long text, and how much more there is."""
    if len(text) <= LONGEST_SHOWN:
        return text
    return f"{text[:LONGEST_SHOWN]}\n… and {len(text) - LONGEST_SHOWN:,} characters more"


def json_text(value: Any) -> str:
    """JSON to be read, cut if it is long."""
    try:
        return cut(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    except TypeError:  # half a character, a huge number, very deep
        return cut(json.dumps(value, indent=2, ensure_ascii=False))


def compact_text(value: Any) -> str:
    """JSON to be read by another worker."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value)


def completion_text(answer: Mapping[str, Any]) -> str:
    """A `chat.completion` object as `json_text`; its logprobs, many times its text, are left out."""
    choices = [
        {**choice, "logprobs": _LEFT_OUT} if choice.get("logprobs") else choice
        for choice in answer.get("choices", ())
    ]
    return json_text({**answer, "choices": choices})


def letter_text(path: Path) -> str:
    """A dead letter as `json_text`. Raises ValueError, OSError."""
    source = path.read_text("utf-8", "replace")
    try:
        return json_text(orjson.loads(source))
    except orjson.JSONDecodeError:
        return json_text(json.loads(source))


def command(
    url: str,
    row: StoredCompletion,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
) -> str | None:
    """A command that asks the same again; None where it would be too long to paste."""
    body = {**row.request, "model": row.model, "messages": list(messages)}
    if tools:
        body["tools"] = tools
    if row.metadata:
        body["metadata"] = row.metadata
    text = compact_text(body)
    if len(text) > _LONGEST_COMMAND:
        return None
    key = "" if row.owner == "anonymous" else " -H 'Authorization: Bearer YOUR-KEY'"
    return f"curl -N {shlex.quote(url)}{key} -H 'Content-Type: application/json' -d {shlex.quote(text)}"
