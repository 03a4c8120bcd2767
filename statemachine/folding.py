"""Folds JSON values that arrive in pieces into one, and counts what is held.

Knows nothing of choices and chunks: `statemachine.transcript` calls it for each field of a delta.
Never raises on odd values, and never changes one that it was given. Every fold takes time for what
is new alone, whatever arrived before it. The rules:

1. Text joins text; None changes nothing; of other values the latest wins.
2. Objects fold field by field. In them names (`COME_ONCE`) come once: the first that isn't empty
   stays. A text of `TEXTS` grows; any other text that comes again as it stands is a label said
   twice, and stays once.
3. A list's object with an `index` folds into the one with the same index, unless it is another
   thing: its `id`, or else its `type`, is a different one.
4. A list's object without an index folds into the last one if they are pieces of one thing: the same
   `type`, the same labels, and text. All else is appended.
5. Values of different kinds are kept side by side in a list, text as a part of type `text`.

What is given is kept as it came until something folds into it: one `_Object`, `_Items` or `Text`
for each value that grows, none for those that come whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

COME_ONCE = frozenset(("id", "type", "name", "role", "index"))
"""Fields of an object that name it."""

TEXTS = frozenset(
    (
        "arguments",
        "code",
        "content",
        "data",
        "input",
        "output",
        "partial_json",
        "reasoning",
        "reasoning_content",
        "refusal",
        "summary",
        "text",
        "thinking",
        "transcript",
    )
)
"""Fields of an object within a delta that are known to come in pieces: "ha" and "ha" are "haha"."""

_WEIGHT = 16
"""What a number, an object, a list or a field counts for, in bytes."""
_PIECES = 1024
"""As many pieces of a text wait to be joined: each takes some 60 bytes more than its text."""


class Follower(Protocol):
    """Is told how the pieces of a text came, before they are joined."""

    def note(self, pieces: Sequence[str]) -> None:
        """These pieces, the next ones, are about to be joined."""


class Text(list[str]):
    """Text still arriving: its pieces, joined at the end; before that many small ones into a large.

    `bytes_packed` is the UTF-8 size of the pieces that are joined already. `follower` is told of those
    that are joined, from `be_followed` to `end_following`.
    """

    __slots__ = ("_packed", "bytes_packed", "follower")

    def __init__(self, pieces: Iterable[str] = ()) -> None:
        super().__init__(pieces)
        self._packed = 0
        self.bytes_packed = 0
        self.follower: Follower | None = None

    def add(self, piece: str) -> None:
        self.append(piece)
        if len(self) - self._packed > _PIECES:
            self.pack()

    def pack(self) -> None:
        """Join the pieces that came since the last time; and the joined ones, when they are as large as
        the one before: a hundred megabytes are a few pieces then, whose memory goes back at once."""
        if len(self) > self._packed:
            fresh = self[self._packed :]
            if self.follower is not None:
                self.follower.note(fresh)
            self[self._packed :] = ("".join(fresh),)
            del fresh
            self.bytes_packed += utf8_size(self[-1])
            while len(self) > 1 and len(self[-2]) < 2 * len(self[-1]):
                self[-2:] = (self[-2] + self[-1],)
            self._packed = len(self)

    def joined(self) -> str:
        """The text. Its pieces are given up for it, so that a large one isn't held twice."""
        if self.follower is not None:
            self.pack()
        if len(self) > 1:
            is_packed = self._packed == len(self)
            self[:] = ("".join(self),)
            self._packed = int(is_packed)
            if not is_packed:
                self.bytes_packed = 0
        return self[0] if self else ""

    # --- for a follower ---------------------------------------------------------------------

    def be_followed(self) -> int:
        """Join what has come; how many characters that are. The follower is told of what comes next."""
        self.pack()
        return sum(map(len, self))

    def end_following(self) -> None:
        """Join what has come, and tell the follower of no more."""
        self.pack()
        self.follower = None

    @property
    def unjoined(self) -> int:
        """How many pieces came since the last joining."""
        return len(self) - self._packed

    def pieces(self, start: int, most: int) -> list[str]:
        """Those pieces, from this one on, at most so many."""
        start += self._packed
        return self[start : start + most]

    def cut(self, start: int, end: int) -> str:
        """The text from one character to another, of what is joined."""
        parts = list[str]()
        for piece in self:
            if start < len(piece):
                parts.append(piece[max(start, 0) : end])
            start -= len(piece)
            end -= len(piece)
            if end <= 0:
                break
        return parts[0] if len(parts) == 1 else "".join(parts)


class _Object(dict[str, Any]):
    """An object that something folded into."""

    __slots__ = ()


class _Items(list[Any]):
    """A list that something folded into.

    `places` has the position of the latest item with an index, and of each with an index and an id.
    """

    __slots__ = ("places",)

    def __init__(self, items: Iterable[Any] = ()) -> None:
        super().__init__(items)
        self.places: dict[Any, int] = {}
        for position, item in enumerate(self):
            if isinstance(item, Mapping):
                self.note(item, position)

    def note(self, item: Mapping[str, Any], position: int) -> None:
        index, name = _index_of(item), item.get("id")
        if index is not None:
            self.places[index] = position
            if isinstance(name, str) and name:
                self.places[index, name] = position


class Folder:
    """Folds the values of one answer.

    Attributes:
        size: about how many bytes its values hold: texts in UTF-8, and some for each other value.
        items: how many items its lists hold.
    """

    __slots__ = ("items", "size")

    def __init__(self) -> None:
        self.size = 0
        self.items = 0

    def fold(self, old: Any, new: Any) -> Any:
        """Return the value after `new` arrived on top of `old` (None: nothing yet), which must not be
        used any more."""
        if new is None:
            return old
        if isinstance(new, str):
            return self._fold_text(old, new)
        if isinstance(new, Mapping):
            return self._fold_object(old, new)
        if isinstance(new, list):
            return self._fold_list(old, new)
        if isinstance(old, (str, Mapping, list)):
            return self._beside(old, new)
        if old is None:
            self.size += _WEIGHT
        return new

    def fold_apart(self, old: Any, new: Any) -> Any:
        """Do the same for a value whose items don't count."""
        items = self.items
        folded = self.fold(old, new)
        self.items = items
        return folded

    def put(self, fields: dict[str, Any], key: str, value: Any) -> None:
        """Set a field whose latest value wins."""
        known = fields.get(key)
        if known is None or known != value:
            known_weight = -len(key) if known is None else weight_of(known)
            self.size += weight_of(value) - known_weight
            fields[key] = value

    def _fold_text(self, old: Any, new: str) -> Any:
        if isinstance(old, str):
            old = Text((old,))
        if old is None or type(old) is Text:
            self.size += utf8_size(new)
            if old is None:
                return Text((new,))
            old.add(new)
            return old
        return self._beside(old, new) if new else old

    def _fold_object(self, old: Any, new: Mapping[str, Any]) -> Any:
        if old is None:
            self.size += weight_of(new)
            return new
        if not isinstance(old, Mapping):
            return self._beside(old, new)
        folded = old if type(old) is _Object else _Object(old)
        for key, value in new.items():
            self._fold_member(folded, key, value)
        return folded

    def _fold_member(self, folded: _Object, key: str, value: Any) -> None:
        known = folded.get(key)
        if known is None and key not in folded:
            self.size += len(key)
        if key in COME_ONCE:
            if known is None or known == "":
                folded[key] = value
                self.size += weight_of(value)
        elif key in TEXTS or not isinstance(value, str) or known != value:
            folded[key] = self.fold(known, value)

    def _fold_list(self, old: Any, new: list[Any]) -> _Items:
        items = self._items(old)
        for item in new:
            if isinstance(item, Mapping):
                self._fold_item(items, item)
            else:
                self._append(items, item)
        return items

    def _fold_item(self, items: _Items, new: Mapping[str, Any]) -> None:
        index = _index_of(new)
        if index is not None:
            place = _place_of(items, index, new)
        else:
            place = len(items) - 1 if items and _goes_on(items[-1], new) else None
        if place is not None:
            items[place] = self._fold_object(items[place], new)
            return
        self._append(items, new)
        items.note(new, len(items) - 1)

    def _append(self, items: _Items, item: Any) -> None:
        items.append(item)
        self.items += 1
        self.size += weight_of(item)

    def _beside(self, old: Any, new: Any) -> _Items:
        """Both, one after the other. `old` is no list of ours yet, or `new` is none."""
        items = self._items(old)
        if isinstance(new, str):
            self._fold_item(items, {"type": "text", "text": new})
        else:
            self._append(items, new)
        return items

    def _items(self, value: Any) -> _Items:
        """The value as a list that may grow."""
        if type(value) is _Items:
            return value
        if value is None:
            return _Items()
        if type(value) is Text:
            value = value.joined()
            self.size += utf8_size(value)
        if isinstance(value, str):
            value = [{"type": "text", "text": value}] if value else []
        return _Items(value if isinstance(value, list) else [value])


def plain(value: Any) -> Any:
    """A folded value as JSON, with its texts joined. What came whole is in it as it came."""
    kind = type(value)
    if kind is Text:
        return value.joined()
    if kind is _Object:
        return {key: plain(held) for key, held in value.items()}
    if kind is _Items:
        return [plain(item) for item in value]
    return value


def utf8_size(text: str) -> int:
    """A text's bytes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def weight_of(value: Any) -> int:
    """About how many bytes a JSON value holds."""
    if type(value) is str:
        return utf8_size(value)
    size, todo = 0, [value]
    while todo:
        item = todo.pop()
        kind = type(item)
        if kind is str:
            size += utf8_size(item)
            continue
        size += _WEIGHT
        if kind is dict:
            size += sum(map(len, item))
            todo.extend(item.values())
        elif kind is list:
            todo.extend(item)
    return size


def _index_of(item: Mapping[str, Any]) -> Any:
    """What an item is found by; None if it has no index that could be one."""
    index = item.get("index")
    return index if isinstance(index, (int, float, str)) else None


def _place_of(items: _Items, index: Any, new: Mapping[str, Any]) -> int | None:
    """Where an item with this index is; None if this is a new one."""
    name, places = new.get("id"), items.places
    named = isinstance(name, str) and name != ""
    if named and (place := places.get((index, name))) is not None:
        return place
    place = places.get(index)
    if place is None:
        return None
    known = items[place]
    if named and known.get("id"):
        return None
    kinds = (known.get("type"), new.get("type"))
    if kinds[0] != kinds[1] and all(isinstance(kind, str) and kind for kind in kinds):
        return None
    if named:
        places[index, name] = place  # its id came late
    return place


def _goes_on(last: Any, new: Mapping[str, Any]) -> bool:
    """True if `new` is the next piece of `last`; neither has an index."""
    kind = new.get("type")
    if not isinstance(kind, str) or not isinstance(last, Mapping) or last.get("type") != kind:
        return False
    if _index_of(last) is not None:
        return False
    has_text = False
    for key, value in new.items():
        if key in TEXTS and isinstance(value, (str, list)):
            has_text = True
        elif value is not None and last.get(key, value) != value:
            return False
    return has_text
