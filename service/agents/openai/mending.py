"""Mends an answer's chunks: what real backends send otherwise than OpenAI, as OpenAI would.

Here, where chunks come in, so that client, row and journal see the same, and whoever folds the stream
as the official SDKs do has what is kept. No chunk is changed in place. The rules:

1. A `message`, or the `text` of a completion, where a `delta` should be is the delta; but not one that
   sums up what came in deltas.
2. A finish reason that is none (`""`, `"null"`, `false`, `{}`) is null. One of those that mean "cut
   off" is null too, and the answer ends as failed.
3. Empty lists and objects leave the delta.
4. Content in parts: their text becomes `content`, their thinking `reasoning_content`, and any other
   part goes into `content_parts`.
5. What a list's items are called comes once: roles, ids, names, and whatever text of an item says the
   same again, unless it is known to grow (`statemachine.folding.TEXTS`).
6. Each item has an index of its own. Tool calls are numbered from 0 on in the order in which they
   begin; one begins with a new id, or, where there are none, with a name and whole arguments.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from statemachine.chunks import finish_reason_of
from statemachine.folding import COME_ONCE, TEXTS
from statemachine.transcript import MOST_CHOICES, MOST_ITEMS

JsonObject = dict[str, Any]

_CALLS = "tool_calls"
_IMAGES = "images"
_THINKING = frozenset(("thinking", "reasoning"))
_SAID_ANEW = frozenset(("type", "index"))
"""Names that the SDKs expect in each piece of an item."""
_MISSING = object()


class TooManyItems(Exception):
    """A chunk has more items than a whole answer may have."""


class ChunkMender:
    """Mends the chunks of one answer, one after the other.

    Args:
        cut_off_reasons: finish reasons that mean "cut off", in lower case.

    Attributes:
        cut_off: the reason for which the answer was cut off; None if it wasn't.
        has_spoken: text came in a proper delta. Whoever leaves chunks out here says so.
    """

    __slots__ = ("_choices", "_cut_off_reasons", "cut_off", "has_spoken")

    def __init__(self, cut_off_reasons: frozenset[str] = frozenset()) -> None:
        self.cut_off: str | None = None
        self.has_spoken = False
        self._cut_off_reasons = cut_off_reasons
        self._choices: dict[Any, _Choice] = {}

    def mend(self, payload: JsonObject) -> JsonObject:
        """The chunk as OpenAI would send it: this very one if nothing is to be mended.

        Raises TooManyItems.
        """
        choices = payload.get("choices")
        if not choices:
            return payload
        if len(choices) > MOST_CHOICES:
            raise TooManyItems
        mended = [self._mend_choice(choice) for choice in choices]
        if all(map(_is, mended, choices)):
            return payload
        return {**payload, "choices": mended}

    def _mend_choice(self, choice: JsonObject) -> JsonObject:
        choice = self._mend_reason(choice)
        is_foreign = choice.get("delta") is None and ("message" in choice or "text" in choice)
        if is_foreign:
            choice = self._with_delta(choice)
        delta = choice.get("delta")
        if not delta:
            return choice
        index = choice.get("index") or 0
        state = self._choices.get(index)
        if state is None:
            state = self._choices[index] = _Choice()
        mended = state.mend(delta)
        self.has_spoken = self.has_spoken or (state.has_spoken and not is_foreign)
        return choice if mended is delta else {**choice, "delta": mended}

    def _mend_reason(self, choice: JsonObject) -> JsonObject:
        said = choice.get("finish_reason")
        if said is None:
            return choice
        reason = finish_reason_of(said)
        if reason is not None and (name := reason.strip().lower()) in self._cut_off_reasons:
            self.cut_off, reason = name, None
        return choice if reason == said else {**choice, "finish_reason": reason}

    def _with_delta(self, choice: JsonObject) -> JsonObject:
        message, text = choice.get("message"), choice.get("text")
        rest = {key: value for key, value in choice.items() if key not in ("message", "text")}
        if isinstance(message, Mapping):
            return {**rest, "delta": {} if self.has_spoken else dict(message)}
        return {**rest, "delta": {"content": text}} if isinstance(text, str) else choice


class _Choice:
    """One choice's deltas."""

    __slots__ = ("_labels", "_lists", "_parts", "_role", "has_spoken")

    def __init__(self) -> None:
        self.has_spoken = False
        self._role: str | None = None
        self._labels: JsonObject = {}
        self._lists: dict[str, _Items] = {}
        self._parts = 0

    def mend(self, delta: JsonObject) -> JsonObject:
        changed: JsonObject = {}
        for key, value in delta.items():
            kind = type(value)
            if kind is str:
                if key == "role":
                    if value == self._role:
                        changed[key] = _MISSING
                    self._role = value
                elif value:
                    self.has_spoken = True
            elif kind is list:
                self._mend_list(key, value, delta, changed)
            elif kind is dict:
                mended = _said_once(self._labels.setdefault(key, {}), value)
                if mended is not value or not value:
                    changed[key] = mended or _MISSING
        if not changed:
            return delta
        mended = {**delta, **changed}
        return {key: value for key, value in mended.items() if value is not _MISSING}

    def _mend_list(
        self, key: str, value: list[Any], delta: JsonObject, changed: JsonObject
    ) -> None:
        if len(value) > MOST_ITEMS:
            raise TooManyItems
        if not value:
            changed[key] = _MISSING
        elif key == "content":
            self._spread(value, delta, changed)
        else:
            items = self._lists.get(key)
            if items is None:
                items = self._lists[key] = _Items(key)
            mended = [items.mend(item) if type(item) is dict else item for item in value]
            if not all(map(_is, mended, value)):
                changed[key] = mended

    def _spread(self, parts: Sequence[Any], delta: JsonObject, changed: JsonObject) -> None:
        """Put content in parts where readers look for it."""
        texts: dict[str, list[str]] = {}
        others: list[Any] = []
        for part in parts:
            field, text, rest = _read_part(part)
            if field is not None:
                texts.setdefault(field, []).append(text)
            if rest is not None:
                others.append({"index": self._parts + len(others), **rest})
        self._parts += len(others)
        changed["content"] = _MISSING
        for field, pieces in texts.items():
            before = delta.get(field)
            changed[field] = "".join([before, *pieces] if isinstance(before, str) else pieces)
            self.has_spoken = self.has_spoken or changed[field] != ""
        if others:
            changed["content_parts"] = others


def _read_part(part: Any) -> tuple[str | None, str, JsonObject | None]:
    """The field that a part of the content belongs to, its text there, and what else it says."""
    if isinstance(part, str):
        return "content", part, None
    if not isinstance(part, Mapping):
        return None, "", {"type": "unknown", "value": part}
    kind = part.get("type")
    if kind in _THINKING:
        key = next((key for key in ("thinking", "reasoning") if key in part), "text")
        field = "reasoning_content"
    elif kind in ("text", "output_text"):
        key, field = "text", "content"
    else:
        return None, "", dict(part)
    text = _text_within(part.get(key))
    if text is None:
        return None, "", dict(part)
    rest = {
        name: value
        for name, value in part.items()
        if name not in ("type", "closed", key) and value not in (None, "", [], {})
    }
    return field, text, {"type": kind, **rest} if rest else None


def _text_within(value: Any) -> str | None:
    """A text, also one in parts of its own."""
    if not isinstance(value, list):
        return value if isinstance(value, str) else None
    said = [part.get("text") if isinstance(part, Mapping) else part for part in value]
    texts = [text for text in said if isinstance(text, str)]
    return "".join(texts) if len(texts) == len(said) else None


class _Item:
    """One item of a list: where our readers find it, and what it has said of itself."""

    __slots__ = ("id", "index", "is_whole", "kind", "labels", "name", "url")

    def __init__(self, index: Any) -> None:
        self.index = index
        self.id = self.kind = self.name = self.url = ""
        self.is_whole = False
        self.labels: JsonObject = {}


class _Items:
    """One list of a choice's deltas."""

    __slots__ = ("_are_calls", "_are_images", "_by_id", "_by_index", "_last", "_next", "_taken")

    def __init__(self, key: str) -> None:
        self._are_calls = key == _CALLS
        self._are_images = key == _IMAGES
        self._by_index: dict[Any, _Item] = {}
        self._by_id: dict[Any, _Item] = {}
        self._last: _Item | None = None
        self._next = 0
        self._taken: set[Any] = set()

    def mend(self, piece: JsonObject) -> JsonObject:
        """An item's next piece, under its index and without what it has said already."""
        said = piece.get("index")
        index = _whole(said)
        if index is None and not self._are_calls:
            return piece
        new = _Piece(piece, self._are_calls, self._are_images)
        item = self._find(index, new)
        if item is None:
            item = _Item(self._number(index))
        self._note(index, item, new)
        mended = _said_once(item.labels, piece)
        return (
            mended if said == item.index and type(said) is int else {**mended, "index": item.index}
        )

    def _find(self, index: Any, new: "_Piece") -> _Item | None:
        if new.id:
            known = self._by_id.get((index, new.id))
            if known is not None:
                return known
        known = self._by_index.get(index) if index is not None else self._last
        return None if known is None or new.is_other_than(known) else known

    def _note(self, index: Any, item: _Item, new: "_Piece") -> None:
        new.add_to(item)
        self._last = self._by_index[index] = item
        if new.id:
            self._by_id[index, new.id] = self._by_id[None, new.id] = item

    def _number(self, index: Any) -> Any:
        """The index of a new item: its own, unless another has it."""
        is_good = type(index) is int and 0 <= index < MOST_ITEMS and index not in self._taken
        if self._are_calls or not is_good:
            while self._next in self._taken:
                self._next += 1
            index = self._next
        self._taken.add(index)
        return index


class _Piece:
    """What a piece says of the item that it belongs to."""

    __slots__ = ("id", "is_whole", "kind", "name", "url")

    def __init__(self, piece: JsonObject, is_call: bool, is_image: bool) -> None:
        self.id, self.kind = _text(piece.get("id")), _text(piece.get("type"))
        self.name = self.url = ""
        self.is_whole = False
        if is_call and isinstance(function := piece.get("function"), Mapping):
            self.name = _text(function.get("name"))
            self.is_whole = self.name != "" and _is_object(function.get("arguments"))
        if is_image:
            self.url = _url_of(piece)

    def is_other_than(self, item: _Item) -> bool:
        """True if this can't be a piece of that item."""
        if self.id and item.id:
            return self.id != item.id
        if self.kind and item.kind and self.kind != item.kind:
            return True
        if self.is_whole and item.is_whole:
            return True
        return self.url != "" and item.url != "" and self.url != item.url

    def add_to(self, item: _Item) -> None:
        item.id = item.id or self.id
        item.kind = item.kind or self.kind
        item.name = item.name or self.name
        item.url = item.url or self.url
        item.is_whole = item.is_whole or self.is_whole


def _whole(index: Any) -> Any:
    """What an item is found by: its index, as a whole number if it can be read as one."""
    if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) < 10:
        return int(index)
    if isinstance(index, (int, float)) and index == int(index):
        return int(index)
    return index if isinstance(index, (float, str)) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _url_of(image: JsonObject) -> str:
    """An image's address, if it begins here."""
    held = image.get("image_url")
    url = held.get("url") if isinstance(held, Mapping) else held or image.get("url")
    return url if isinstance(url, str) and url.startswith(("data:", "http")) else ""


def _is_object(arguments: Any) -> bool:
    """True if a call's arguments are whole by themselves."""
    if not isinstance(arguments, str) or not arguments.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def _said_once(labels: JsonObject, value: JsonObject) -> JsonObject:
    """An object without what the pieces before it said in the same words: labels and names."""
    changed: JsonObject = {}
    for key, held in value.items():
        if type(held) is dict:
            within = labels.setdefault(key, {})
            if type(within) is dict and (mended := _said_once(within, held)) is not held:
                changed[key] = mended
        elif type(held) is str and held and key not in TEXTS and key not in _SAID_ANEW:
            known = labels.get(key)
            if known is None:
                labels[key] = held
            elif known == held or key in COME_ONCE:
                changed[key] = _MISSING
    if not changed:
        return value
    return {key: held for key, held in {**value, **changed}.items() if held is not _MISSING}


def _is(one: Any, other: Any) -> bool:
    return one is other
