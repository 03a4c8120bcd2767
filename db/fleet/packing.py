"""Writes commands as a Redis reads them (RESP, https://redis.io/docs/latest/develop/reference/protocol-spec/).

The client's own way does it too, for four times the CPU (`python -m benchmarks.questions.packing`). Never
here: sending them.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any


def packed(commands: Sequence[Sequence[Any]]) -> bytes:
    """The commands, one after the other.

    Args:
        commands: each its words: text, bytes or whole numbers. A name of two words is split.
    """
    parts: list[bytes] = []
    for name, *arguments in commands:
        words = [*name.split(" "), *arguments]
        parts.append(b"*%d\r\n" % len(words))
        for word in words:
            if type(word) is bytes:
                parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
            else:
                parts.append(_told(word))
    return b"".join(parts)


@lru_cache(maxsize=4096)
def _told(word: str | int) -> bytes:
    """A word that is likely to come again: a command's name, a number, a running completion's key."""
    data = word.encode() if isinstance(word, str) else b"%d" % word
    return b"$%d\r\n%b\r\n" % (len(data), data)
