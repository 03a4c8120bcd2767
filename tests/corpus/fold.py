"""Folds chunks as a careful client would: a second opinion on `statemachine.transcript`.

Written for reading, not for speed, and knowing nothing of the service.
"""

from collections.abc import Mapping
from typing import Any

_ENVELOPE = ("id", "object", "created", "model", "choices", "usage", "obfuscation")
_SAID_ONCE = ("id", "type", "name", "role", "index", "format", "signature")


class Folded:
    """An answer so far.

    Attributes:
        extra: top-level fields of the chunks that OpenAI doesn't define; the last one of each.
    """

    def __init__(self) -> None:
        self.extra: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, payload: Mapping[str, Any]) -> None:
        """Take a chunk in."""
        for key, value in payload.items():
            if key not in _ENVELOPE and value is not None:
                self.extra[key] = value
        for choice in payload["choices"]:
            folded = self._choices.setdefault(
                choice.get("index") or 0, {"message": {}, "finish_reason": None}
            )
            for key, value in choice.items():
                if key == "delta":
                    _join_fields(folded["message"], value or {})
                elif key == "logprobs" and value is not None:
                    folded[key] = _joined(folded.get(key), value)
                elif key not in ("index", "logprobs", "message") and value is not None:
                    folded[key] = value

    def choices(self) -> list[dict[str, Any]]:
        """The choices by index; of a message only what isn't empty, and without its role."""
        return [
            {
                "index": index,
                **{key: value for key, value in choice.items() if value is not None},
                "message": {
                    key: value
                    for key, value in choice["message"].items()
                    if key != "role" and value != []
                },
            }
            for index, choice in sorted(self._choices.items())
        ]


def _join_fields(old: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if value is not None and not (key in _SAID_ONCE and old.get(key) not in (None, "")):
            old[key] = _joined(old.get(key), value)


def _joined(old: Any, new: Any) -> Any:
    if isinstance(new, list):
        items = [] if old is None else _as_parts(old)
        for item in new:
            _join_item(items, item)
        return items
    if isinstance(new, Mapping):
        joined = dict(old or {})
        _join_fields(joined, new)
        return joined
    if isinstance(old, list):
        return _joined(old, _as_parts(new))
    if isinstance(old, str) and isinstance(new, str):
        return whole_characters(old + new)
    return new


def whole_characters(text: str) -> str:
    """The text, with halves of characters that have met put together."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _as_parts(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [{"type": "text", "text": value}] if value else []
    return list(value)


def _join_item(items: list[Any], new: Any) -> None:
    """Into its namesake, into the part of the same kind just before it, or at the end."""
    for position in reversed(range(len(items))):
        item = items[position]
        if not (isinstance(item, dict) and isinstance(new, Mapping)):
            continue
        has_index = new.get("index") is not None
        if has_index and item.get("index") == new["index"]:
            if new.get("id") in (None, "", item.get("id")):
                items[position] = _joined(item, new)
                return
        if not has_index and position == len(items) - 1 and _are_one_part(item, new):
            items[position] = _joined(item, new)
            return
    items.append(_joined(None, new) if isinstance(new, Mapping) else new)


def _are_one_part(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return old.get("type") in ("text", "thinking") and old.get("type") == new.get("type")
