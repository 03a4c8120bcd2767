"""Estimates tokens for upstreams that don't count them, from the texts within a JSON value. Pure."""

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any

_UTF8_BYTES_PER_TOKEN = 4
"""OpenAI's rule of thumb for English ("1 token is about 4 characters"); counted in UTF-8 bytes
it also comes near for scripts such as Chinese, where a character is 3 bytes and about a token."""

_MOST_MEASURED = 1_000_000
"""Megabytes take milliseconds to encode, in which no other stream moves."""


def estimate_tokens(value: Any) -> int:
    """Estimate the tokens of the texts within a JSON value: their UTF-8 bytes over 4, rounded up."""
    size = 0.0
    for text in texts_of(value):
        size += len(text) if text.isascii() else _utf8_size(text)
    return ceil(size / _UTF8_BYTES_PER_TOKEN)


def _utf8_size(text: str) -> float:
    """A text's bytes in UTF-8; of one over `_MOST_MEASURED` characters, as its beginning has it."""
    measured = text[:_MOST_MEASURED]
    size = len(measured.encode("utf-8", "surrogatepass"))
    return size * (len(text) / len(measured))


def texts_of(value: Any) -> list[str]:
    """List the texts within a JSON value, in no order; no keys."""
    texts: list[str] = []
    todo = [value]
    while todo:
        item = todo.pop()
        kind = type(item)
        if kind is str:
            texts.append(item)
        elif kind is dict:
            todo.extend(item.values())
        elif kind is list or kind is tuple:
            todo.extend(item)
    return texts


def plain_characters(messages: Iterable[Mapping[str, Any]]) -> int | None:
    """The characters that these messages say, if each is a role and a text, as nearly all are: quicker
    than by `texts_of`. None if one of them is more than that."""
    characters = 0
    for message in messages:
        content = message.get("content")
        if type(content) is not str or len(message) > 2:
            return None
        characters += len(content)
    return characters
