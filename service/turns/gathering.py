"""Gathers what a model calls in one turn, and lets the rest of its answer pass. Pure.

Chunks of text pass as they came. Pieces of calls of our tools are kept back, and so is the finish reason
that belongs to them; those of the client's own tools pass, counted as if ours weren't there.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import Factory, define

from statemachine import ChunkReceived, JsonObject, ParsedChunk
from statemachine.chunks import find_usage, finish_reason_of

_FINISHED_BY_CALLS = frozenset(("tool_calls", "function_call", "stop", "tool_use"))
"""Reasons after which calls are whole: some backends say `stop`."""

MOST_CALLS = 128
"""In one turn."""
MOST_CHARACTERS = 4 * 1024 * 1024
"""Of all arguments of one turn, names and ids included: servers take no more in one call."""


@define
class Wanted:
    """A call that a model wants.

    Attributes:
        call_id: as the model named it; "" if it didn't.
        name: of the tool.
        pieces: of its arguments' JSON, as far as they have come.
    """

    call_id: str
    name: str
    pieces: list[str] = Factory(list)

    @property
    def arguments(self) -> str:
        """The arguments' JSON."""
        return "".join(self.pieces)


class Gathering:
    """One turn of a model.

    Args:
        is_ours: whether a call with this name, "" if it is yet to come, is for us to make.
        is_first: it is the answer's first turn; of a later one the role isn't told again.
        follows_text: text has come before this turn, so a blank line goes before its own.

    Attributes:
        calls: those of ours, in the order in which they began.
        finish_reason: why the turn ended, once that has come.
        has_text: some text of this turn has come.
    """

    def __init__(
        self, is_ours: Callable[[str], bool], *, is_first: bool, follows_text: bool
    ) -> None:
        self.calls: list[Wanted] = []
        self.finish_reason: str | None = None
        self.has_text = False
        self._is_ours = is_ours
        self._is_first = is_first
        self._follows_text = follows_text
        self._places: dict[Any, Wanted | int] = {}
        """An item's index → the call of ours that it is a piece of, or its index among the client's."""
        self._last: Any = None
        self._theirs = 0
        self._size = 0
        self._finish: ParsedChunk | None = None

    @property
    def wants_calls(self) -> bool:
        """True if tools of ours are to be called: the turn isn't the answer's last, or its end waits."""
        return bool(self.calls) and (
            self.finish_reason is None or self.finish_reason in _FINISHED_BY_CALLS
        )

    @property
    def has_theirs(self) -> bool:
        """True if the client's own tools are called too."""
        return self._theirs > 0

    @property
    def is_too_much(self) -> bool:
        """True if no sound model would want so much."""
        return len(self.calls) > MOST_CALLS or self._size > MOST_CHARACTERS

    def take(self, event: ChunkReceived) -> list[ChunkReceived]:
        """What of a chunk passes."""
        run = event.run
        if type(run) is not ParsedChunk:
            return [event]  # text of a field that has begun
        choices = run.payload.get("choices")
        if not choices or not isinstance(choices[0], Mapping):
            return [event]
        choice = choices[0]
        delta = choice.get("delta")
        delta = delta if isinstance(delta, Mapping) else {}
        passed = self._passed_items(delta.get("tool_calls"))
        reason = finish_reason_of(choice.get("finish_reason"))
        if reason is not None:
            self.finish_reason = reason
        is_held = reason is not None and bool(self.calls)
        changed = passed is not None or is_held
        if not changed:
            return self._as_it_came(event, run, delta, reason)
        if is_held:
            kept = {key: value for key, value in run.payload.items() if key != "usage"}
            self._finish = ParsedChunk(_with_choice(kept, {**choice, "delta": {}}))
        return self._stripped(run.payload, choice, delta, passed)

    def ending(self) -> list[ChunkReceived]:
        """The finish reason that was kept back, for an answer that ends with this turn."""
        return [] if self._finish is None else [ChunkReceived(self._finish)]

    # --- calls ------------------------------------------------------------------------------

    def _passed_items(self, items: Any) -> list[Any] | None:
        """The items of the client's tools among these, with their indexes; None: all pass as they are."""
        if not isinstance(items, Sequence) or isinstance(items, str) or not items:
            return None
        passed: list[Any] = []
        is_changed = False
        for item in items:
            if not isinstance(item, Mapping):
                passed.append(item)
                continue
            place = self._place_of(item)
            if isinstance(place, Wanted):
                is_changed = True
                self._size += _grow(place, item)
            else:
                is_changed = is_changed or item.get("index", place) != place
                passed.append({**item, "index": place} if "index" in item else item)
        return passed if is_changed else None

    def _place_of(self, item: Mapping[str, Any]) -> Wanted | int:
        """Which call an item belongs to: that of its index, unless it has another id; without an index the
        last one, unless it begins one."""
        function = item.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        name = name if isinstance(name, str) else ""
        call_id = item.get("id")
        call_id = call_id if isinstance(call_id, str) else ""
        index = item.get("index")
        if index is None:
            key = (None, call_id, len(self._places)) if name else self._last
        else:
            key = (index, call_id) if (index, call_id) in self._places else (index, "")
        known = self._places.get(key)
        if isinstance(known, Wanted) and call_id and known.call_id not in ("", call_id):
            known, key = None, (index, call_id)  # another call, which has the same index
        self._last = key
        if isinstance(known, Wanted) and name and not known.name:
            known.name = name
        if known is None:
            if self._is_ours(name):
                known = Wanted(call_id, name)
                self._size += len(call_id) + len(name)
                self.calls.append(known)
            else:
                known = self._theirs
                self._theirs += 1
            self._places[key] = known
        return known

    # --- chunks -----------------------------------------------------------------------------

    def _as_it_came(
        self,
        event: ChunkReceived,
        run: ParsedChunk,
        delta: Mapping[str, Any],
        reason: str | None,
    ) -> list[ChunkReceived]:
        says = [key for key, value in delta.items() if key != "role" and value]
        if "content" in says:
            return [*self._blank_line(run.payload), event]
        if not self._is_first and not says and reason is None and find_usage(run.payload) is None:
            return []  # a role, which was told before
        return [event]

    def _stripped(
        self,
        payload: JsonObject,
        choice: Mapping[str, Any],
        delta: Mapping[str, Any],
        items: list[Any] | None,
    ) -> list[ChunkReceived]:
        left = {key: value for key, value in delta.items() if key != "tool_calls"}
        if items:
            left["tool_calls"] = items
        elif items is None and delta.get("tool_calls"):
            left["tool_calls"] = delta["tool_calls"]
        says = any(value for key, value in left.items() if key != "role")
        if says or (self._is_first and "role" in left):
            chunk = _with_choice(payload, {**choice, "delta": left, "finish_reason": None})
            before = self._blank_line(payload) if left.get("content") else []
            return [*before, ChunkReceived(chunk)]
        if find_usage(payload) is not None:
            return [ChunkReceived({**payload, "choices": []})]
        return []

    def _blank_line(self, payload: JsonObject) -> list[ChunkReceived]:
        """What goes between the text of two turns, once."""
        is_due = self._follows_text and not self.has_text
        self.has_text = True
        if not is_due:
            return []
        choice = {"index": 0, "delta": {"content": "\n\n"}, "finish_reason": None}
        kept = {key: payload[key] for key in ("id", "object", "created", "model") if key in payload}
        return [ChunkReceived({**kept, "choices": [choice]})]


def _grow(call: Wanted, item: Mapping[str, Any]) -> int:
    """Take a piece in; how many characters of arguments it brought."""
    function = item.get("function")
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if isinstance(arguments, Mapping):  # Ollama's own form
        arguments = json.dumps(arguments)
    if isinstance(arguments, str):
        call.pieces.append(arguments)
        return len(arguments)
    return 0


def _with_choice(payload: JsonObject, choice: Mapping[str, Any]) -> JsonObject:
    return {**payload, "choices": [choice]}
