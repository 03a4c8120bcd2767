"""Takes our secrets out of foreign words: what a backend says of an error, on its way to clients,
rows and logs.

Some backends quote the key that they refuse, whole or cut, in any field, in any writing. Answers are
not looked at: what a model says is passed on as it is.
"""

import html
import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

MASK = "***"
_TELLING_LENGTH = 12
"""As many characters of a secret in a row give it away; OpenAI's own `sk-…abcd` are fewer."""
_SHORTEST_SECRET = 4
"""A shorter one occurs in any text."""
_SECRET_NAMES = ("key", "token", "secret", "password", "passwd", "signature", "credential")
_SHORT_SECRET_NAMES = frozenset(("auth", "authorization", "code", "sig"))


class Redactor:
    """Masks some secrets wherever they stand, in the writings that texts on the web have: as they
    are, percent-encoded, escaped as in JSON or HTML, in Base64; capitals don't count."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._pieces: dict[int, set[str]] = {}
        for secret in secrets:
            if len(secret) >= _SHORTEST_SECRET:
                for writing in {writing.lower() for writing in _writings(secret)}:
                    length = min(len(writing), _TELLING_LENGTH)
                    self._pieces.setdefault(length, set()).update(_pieces(writing, length))

    def text(self, text: str) -> str:
        """The text with `***` for each stretch of it that is part of a secret. Takes some
        microseconds per ten characters, so cut it first."""
        lowered = text.lower()
        if len(lowered) != len(text):  # a letter that is two in lower case
            lowered = text
        spans = sorted(
            (start, start + length)
            for length, pieces in self._pieces.items()
            for start, piece in enumerate(_pieces(lowered, length))
            if piece in pieces
        )
        parts: list[str] = []
        end = 0
        for span_start, span_end in spans:
            if span_start > end or not parts:
                parts += (text[end:span_start], MASK)
            end = max(end, span_end)
        return "".join((*parts, text[end:]))

    def value(self, value: Any) -> Any:
        """A JSON value with all texts in it redacted, keys included."""
        match value:
            case str():
                return self.text(value)
            case list():
                return [self.value(item) for item in value]
            case dict():
                return {self.text(key): self.value(item) for key, item in value.items()}
        return value


NOTHING_SECRET = Redactor()


def secrets_of(
    key: str | None, base_url: str, parameters: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """What a backend is sent that only it may know.

    Args:
        key: its API key.
        base_url: may hold a password, or a key in its query.
        parameters: request fields, of which some may be called `api_key` or the like.
    """
    if key:
        yield key
    parts = urlsplit(base_url)
    if parts.password:
        yield unquote(parts.password)
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
        yield b64encode(pair.encode()).decode()
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if is_secret_name(name):
            yield unquote(value)
    yield from _secret_texts(parameters or {})


def is_secret_name(name: str) -> bool:
    """True if what is called so is most likely a secret."""
    name = name.lower()
    return name in _SHORT_SECRET_NAMES or name.replace("-", "_").rsplit("_", 1)[-1] in _SECRET_NAMES


def _secret_texts(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secret_texts(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _secret_texts(item, name)
    elif isinstance(value, str) and is_secret_name(name):
        yield value.removeprefix("Bearer ")


def _writings(secret: str) -> Iterator[str]:
    in_json = json.dumps(secret)[1:-1]
    data = secret.encode("utf-8", "surrogatepass")
    yield from (secret, quote(data), quote(data, safe=""), quote_plus(data), html.escape(secret))
    yield from (in_json, in_json.replace("/", "\\/"), b64encode(data).decode().rstrip("="))
    yield "".join(f"%{byte:02x}" for byte in data)
    yield "".join(f"\\u{ord(character):04x}" for character in secret)


def _pieces(text: str, length: int) -> list[str]:
    return [text[start : start + length] for start in range(len(text) - length + 1)]
