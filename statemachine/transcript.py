"""Folds chunks (decoded JSON objects) into the answer so far: choices, usage and the rest.

On the hot path. Never raises on odd values: what doesn't fit OpenAI's shape is kept as it came.

How values fold, for every delta field alike (`content`, `reasoning_content`, `reasoning`,
`refusal`, `tool_calls`, `function_call`, `audio`, and whatever a vendor invents):

- text joins text; `None` changes nothing;
- objects fold field by field; lists of objects with an `index` fold by that index, other lists
  are joined;
- names (`id`, `type`, `name`, `role`, `index`) come once: the first non-empty one stays;
- other values: the latest wins; values of different kinds are kept side by side in a list.
"""

from collections.abc import Mapping
from typing import Any

from statemachine.chunks import (
    ENVELOPE,
    ChunkPattern,
    ChunkRun,
    JsonObject,
    RepeatedChunks,
    bears_token,
    find_usage,
    own_fields,
)
from statemachine.messages import Choice

_COMES_ONCE = frozenset(("id", "type", "name", "role", "index"))


class _Text(list[str]):
    """Text still arriving: its pieces, joined once at the end instead of once per chunk."""

    __slots__ = ()


def _fold(old: Any, new: Any) -> Any:
    """Return the value after `new` arrived on top of `old` (None: nothing yet). May change `old`."""
    if new is None:
        return old
    if isinstance(new, str):
        if old is None:
            return _Text((new,))
        if isinstance(old, _Text):
            old.append(new)
            return old
        return [*_as_parts(old), *_as_parts(new)] if new else old
    if isinstance(new, Mapping):
        if old is None:
            old = {}
        if isinstance(old, dict):
            for key, value in new.items():
                if key in _COMES_ONCE:
                    if old.get(key) in (None, ""):
                        old[key] = value
                else:
                    old[key] = _fold(old.get(key), value)
            return old
        return [*_as_parts(old), *_as_parts(new)]
    if isinstance(new, list):
        folded = [] if old is None else _as_parts(old)
        for item in new:
            _fold_item(folded, item)
        return folded
    if isinstance(old, (_Text, dict, list)):
        return [*_as_parts(old), new]
    return new


def _fold_item(items: list[Any], new: Any) -> None:
    """Fold one list item in: into its namesake by `index`, or at the end."""
    index = new.get("index") if isinstance(new, Mapping) else None
    if index is not None:
        for position, item in enumerate(items):
            if isinstance(item, dict) and item.get("index") == index:
                items[position] = _fold(item, new)
                return
    items.append(_fold(None, new) if isinstance(new, Mapping) else new)


def _as_parts(value: Any) -> list[Any]:
    if isinstance(value, _Text):
        value = "".join(value)
    if isinstance(value, str):
        return [{"type": "text", "text": value}] if value else []
    return value if isinstance(value, list) else [value]


def _plain(value: Any) -> Any:
    """A copy of a folded value with its texts joined."""
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, (dict, Mapping)):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


class _OpenChoice:
    """One choice while it is arriving."""

    __slots__ = ("content", "delta", "extra", "finish_reason", "logprobs")

    def __init__(self) -> None:
        self.content: _Text | None = None
        self.delta: dict[str, Any] = {}
        self.finish_reason: str | None = None
        self.logprobs: Any = None
        self.extra: dict[str, Any] = {}

    def fold(self, choice: JsonObject) -> bool:
        """Take one chunk's choice in; true if it bore a token."""
        bore_token = False
        delta = choice.get("delta")
        if type(delta) is dict or isinstance(delta, Mapping):
            for key, value in delta.items():
                if key == "content" and type(value) is str and "content" not in self.delta:
                    if self.content is None:
                        self.content = _Text()
                    self.content.append(value)
                    bore_token = bore_token or value != ""
                elif key != "role":
                    self._fold_field(key, value)
                    bore_token = bore_token or (value is not None and bears_token(key, value))
        for key, value in choice.items():
            if value is None or key == "delta" or key == "index":
                continue
            if key == "finish_reason":
                self.finish_reason = str(value)
            elif key == "logprobs":
                self.logprobs = _fold(self.logprobs, value)
            else:
                self.extra[key] = value
        return bore_token

    def _fold_field(self, key: str, value: Any) -> None:
        if key == "content" and self.content is not None and value is not None:
            self.delta[key] = self.content  # text first, then parts: they go on as one list
            self.content = None
        folded = _fold(self.delta.get(key), value)
        if folded is not None:
            self.delta[key] = folded

    def growing(self, key: str) -> _Text | None:
        """Where texts of this field go; None if it isn't plain text."""
        value = self.content if key == "content" else self.delta.get(key)
        return value if isinstance(value, _Text) else None

    def closed(self, index: int) -> Choice:
        content = None if self.content is None else "".join(self.content)
        message = {"role": "assistant", "content": content, **_plain(self.delta)}
        logprobs = None if self.logprobs is None else _plain(self.logprobs)
        return Choice(index, message, self.finish_reason, logprobs, dict(self.extra))


class Transcript:
    """The answer so far. One per session; not safe to share between sessions."""

    __slots__ = (
        "_choices",
        "_choices_expected",
        "_growing",
        "_pattern",
        "chunk_count",
        "extra",
        "is_whole",
        "upstream_created",
        "upstream_id",
        "upstream_model",
        "usage",
        "usage_frame",
    )

    def __init__(self, choices_expected: int = 1) -> None:
        self._choices: dict[int, _OpenChoice] = {}
        self._choices_expected = choices_expected
        self._pattern: ChunkPattern | None = None
        self._growing: _Text | None = None
        self.chunk_count = 0
        self.is_whole = False
        """True once every choice, those asked for and those seen, has a finish reason."""
        self.usage: JsonObject | None = None
        self.usage_frame: JsonObject | None = None
        """The last chunk that carried usage and no choice; shown only to clients that asked."""
        self.upstream_id: str | None = None
        self.upstream_model: str | None = None
        self.upstream_created: int | None = None
        self.extra: dict[str, Any] = {}

    def fold(self, payload: JsonObject) -> bool:
        """Take one chunk in.

        Returns true if it bore a token: any non-empty delta field besides `role`.
        """
        self._pattern = None
        if not self.chunk_count:
            self._fold_envelope(payload)
        self.chunk_count += 1
        if not ENVELOPE.issuperset(payload):
            self.extra.update(own_fields(payload))
        if (usage := find_usage(payload)) is not None:
            self.usage = usage
            if not payload.get("choices"):
                self.usage_frame = payload
        bore_token = False
        for choice in payload.get("choices") or ():
            index = choice.get("index") or 0
            current = self._choices.get(index)
            if current is None:
                current = self._choices[index] = _OpenChoice()
            bore_token = current.fold(choice) or bore_token
        if payload.get("choices"):
            self.is_whole = self._have_all_finished()
        return bore_token

    def fold_run(self, run: ChunkRun) -> bool:
        """Take a run in: `fold` for each of its chunks. Returns true if one of them bore a token."""
        if not isinstance(run, RepeatedChunks):
            return self.fold(run.payload)
        if run.pattern is not self._pattern or self._growing is None:
            return self._fold_anew(run)
        # The last chunk was of this pattern too: whatever else it holds has been taken in.
        self.chunk_count += len(run.texts)
        self._growing.extend(run.texts)
        return any(run.texts)

    def _fold_anew(self, run: RepeatedChunks) -> bool:
        """The same for a run that follows another kind of chunk, or whose text isn't plain here."""
        pattern, rest = run.pattern, run.texts[1:]
        first = pattern.chunk(run.texts[0])
        bore_token = self.fold(first)
        self._growing = self._choices[first["choices"][0].get("index") or 0].growing(pattern.key)
        if self._growing is None:
            return any([self.fold(pattern.chunk(text)) for text in rest]) or bore_token
        self._pattern = pattern
        self.chunk_count += len(rest)
        self._growing.extend(rest)
        return bore_token or any(rest)

    def _fold_envelope(self, payload: JsonObject) -> None:
        upstream_id, model = payload.get("id"), payload.get("model")
        created = payload.get("created")
        self.upstream_id = upstream_id if isinstance(upstream_id, str) else None
        self.upstream_model = model if isinstance(model, str) else None
        # Azure's first chunk, which only has filter results, says 0.
        self.upstream_created = created if isinstance(created, int) and created > 0 else None

    def _have_all_finished(self) -> bool:
        for choice in self._choices.values():
            if choice.finish_reason is None:
                return False
        return len(self._choices) >= self._choices_expected

    @property
    def finish_reason(self) -> str | None:
        """The first choice's finish reason, if it has come."""
        first = self._choices.get(min(self._choices)) if self._choices else None
        return first.finish_reason if first else None

    def choices(self) -> tuple[Choice, ...]:
        """The choices as far as they came, by index; fresh copies with all text joined."""
        return tuple([self._choices[index].closed(index) for index in sorted(self._choices)])
