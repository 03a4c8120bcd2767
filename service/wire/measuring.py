"""Measures a JSON text without reading it: how many keys and values it has, and how deep they lie.

A body of ten megabytes can hold millions of them, and whatever goes through them, the parser first,
takes seconds. Here only bytes are counted, piece by piece, so that other threads get their turns.
What the text means is read elsewhere; of one that isn't JSON the measures mean nothing.
"""

from collections.abc import Iterator
from itertools import accumulate

MOST_VALUES = 30_000
"""Keys and values of what a model's backend says at once: an event, or a call's arguments. Whatever goes
through more of them would hold up everybody else. A chunk of a hundred tokens, each with the probabilities of
twenty others, has some 25,000."""
_PIECE_BYTES = 256 * 1024
_OPENING = b"[{,:"
"""Before each key and each value but the outermost stands one of these, and nowhere else."""
_NO_OPENING = bytes(set(range(256)) - {*_OPENING, *b'"'})
_NO_BRACKET = bytes(set(range(256)) - {*b"[]{}", *b'"'})
_FLAT = 8
"""Levels that are taken away in one go each; few texts have more."""
_STEP = tuple({ord("["): 1, ord("]"): -1}.get(byte, 0) for byte in range(256))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


def has_more_values(data: bytes | bytearray, most: int) -> bool:
    """True if a JSON text has more than this many keys and values, counting an empty object or array
    as if something were in it."""
    if len(data) <= most:
        return False  # nearly always: each takes a byte at least
    if len(data) - len(data.translate(None, _OPENING)) < most:
        return False  # however many of these bytes are within strings
    count = 1
    for piece in _outside_strings(data, _NO_OPENING):
        count += len(piece)
        if count > most:
            return True
    return False


def is_nested_deeper(data: bytes | bytearray, most: int) -> bool:
    """True if objects and arrays lie in each other more than this many levels deep."""
    if data.count(b"[") + data.count(b"{") <= most:
        return False
    brackets = b"".join(_outside_strings(data, _NO_BRACKET)).translate(_ONE_KIND)
    levels = most
    for _ in range(min(_FLAT, most)):
        if len(brackets) <= 2 * levels:
            return False
        brackets = brackets.replace(b"[]", b"")
        levels -= 1
    depth = 0
    for start in range(0, len(brackets), _PIECE_BYTES):
        deepest, depth = _walk(brackets[start : start + _PIECE_BYTES], depth)
        if deepest > levels:
            return True
    return False


def _walk(brackets: bytes, depth: int) -> tuple[int, int]:
    """How deep it gets from this depth on, and how deep it is at the end."""
    depths = list(accumulate(map(_STEP.__getitem__, brackets), initial=depth))
    return max(depths), depths[-1]


def _outside_strings(data: bytes | bytearray, unwanted: bytes) -> Iterator[bytes]:
    """The bytes outside strings but for these, in pieces."""
    rest, is_inside = b"", False
    for start in range(0, len(data), _PIECE_BYTES):
        piece = rest + data[start : start + _PIECE_BYTES]
        rest = b""
        if b"\\" in piece:
            if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # it escapes what comes next
                piece, rest = piece[:-1], piece[-1:]
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        # Of a string with nothing of interest in it two quotes are left, which change nothing.
        parts = piece.translate(None, unwanted).replace(b'""', b"").split(b'"')
        yield b"".join(parts[is_inside::2])
        is_inside ^= len(parts) % 2 == 0
