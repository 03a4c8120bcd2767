"""What a backend has said after so many events, read from its own bytes: the oracle of cut answers."""

import json
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from tests.corpus.fold import Folded
from tests.corpus.seen import text_of

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_REAL_ENDS = ("stop", "length", "tool_calls", "content_filter", "function_call")


@frozen
class Said:
    """An answer as far as its backend got.

    Attributes:
        text: the words of each choice.
        reasons: the finish reasons that have come, by choice.
        is_finished: something was said, and every choice that began has a finish reason, or a
            `[DONE]` has come.
        has_failed: an error has come, or a finish reason that means cut off, or what is no text.
    """

    text: dict[int, str]
    reasons: dict[int, str]
    is_finished: bool
    has_failed: bool


def said_in(events: Sequence[bytes]) -> Said:
    """What these events say."""
    folded, has_failed, is_done = Folded(), False, False
    for line in b"".join(events).replace(b"\r", b"\n").split(b"\n"):
        payload = _payload_of(line)
        if line.removeprefix(b"data:").strip() == b"[DONE]":
            is_done = True
        elif _is_error(payload):
            has_failed = True
        elif not (has_failed or is_done):
            folded.add({"choices": [], **_mended(payload)})
    choices = folded.choices()
    reasons = {one["index"]: one["finish_reason"] for one in choices if one.get("finish_reason")}
    return Said(
        text_of(choices),
        reasons,
        bool(choices) and (is_done or len(reasons) == len(choices)),
        has_failed or any(reason not in _REAL_ENDS for reason in reasons.values()),
    )


def _payload_of(line: bytes) -> dict[str, Any]:
    if line.startswith(b"error:"):
        line = b'{"error": %b}' % line[6:]
    try:
        payload = json.loads(line.removeprefix(_BYTE_ORDER_MARK).removeprefix(b"data:"))
    except UnicodeDecodeError:
        return {"error": "no text"}
    except ValueError:
        return {}
    return payload if isinstance(payload, dict) else {}


def _is_error(payload: dict[str, Any]) -> bool:
    of_groq = payload.get("x_groq", {}).get("error")
    return bool(payload.get("error") or of_groq) or payload.get("object") == "error"


def _mended(payload: dict[str, Any]) -> dict[str, Any]:
    """The payload with deltas where deltas are."""
    choices = [
        {
            **choice,
            "index": int(choice.get("index", 0)),
            "delta": choice.get("delta", choice.get("message")) or {},
        }
        for choice in payload.get("choices", ())
    ]
    return {**payload, "choices": choices}
