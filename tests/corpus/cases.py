"""Reads the corpus: how each backend speaks, and what is to be made of it, a small file a case.

A file `cases/BACKEND/WHAT.yaml` has these keys; no other is taken:

    backend, version   who sends it; no version where nobody says one
    seen               where that can be seen: run by us, or a public page, issue or source
    oddity             what it sends, in a sentence
    verdict            what we make of it, in a sentence
    request            further fields of the request
    response           status, headers, body: what it sends, see `Response`
    expect             what client and row are to show, see `Expected`

The values are our own; no text, key or id of anybody is in here.
"""

from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml
from attrs import define, field, frozen

DIRECTORY = Path(__file__).parent / "cases"


@frozen
class Wait:
    """Nothing is sent for so many seconds."""

    wait: float


@frozen
class Hex:
    """Bytes that are no text."""

    hex: str


@frozen
class Close:
    """The connection is closed in the middle of the body, or reset."""

    close: bool = False
    reset: bool = False


Piece = str | Wait | Hex | Close


@frozen
class Response:
    """What a backend sends.

    `body` is a text, or a list of texts and of mappings: `wait: SECONDS`, `hex: BYTES`,
    `close: true`, `reset: true`. It is sent in chunked transfer coding, each piece in a chunk, and
    ended as HTTP wants it unless a piece closed the connection.
    """

    body: list[Piece] = field(factory=list)
    status: int = 200
    headers: dict[str, str] = field(factory=dict)


@frozen
class Expected:
    """What everybody is to see of it.

    Attributes:
        status: of a response that isn't opened before the answer has failed; of a plain one always.
        message: the one choice's message without its role and without fields that are null.
        finish_reason: that choice's.
        choices: instead of these two, where there are several: each with `message`,
            `finish_reason`, and where it has them `logprobs` and fields of its own.
        choice: the one choice's further fields.
        extra: the top-level fields that OpenAI doesn't define.
        usage: what the backend counted, or `estimated`; nothing if nothing was there to count.
        error: why it failed: `code`, `message`, `type`, `param` and whatever else is told; `kind` is
            our own code, in the row alone, where the backend's is another.
        stream: what only a streaming client sees differently: any of these fields.
        sdk_helper: why the official SDK's `stream()` can't fold it, if it can't; its plain iterator
            reads every case.
    """

    status: int = 200
    message: dict[str, Any] | None = None
    finish_reason: str | None = None
    choices: list[dict[str, Any]] = field(factory=list)
    choice: dict[str, Any] = field(factory=dict)
    extra: dict[str, Any] = field(factory=dict)
    usage: dict[str, Any] | str | None = None
    error: dict[str, Any] | None = None
    stream: dict[str, Any] = field(factory=dict)
    sdk_helper: str | None = None


@define(slots=False, eq=False)
class Case:
    """One file; `name` is its path without the ending."""

    name: str
    backend: str
    seen: str
    oddity: str
    verdict: str
    response: Response
    expect: Expected
    version: str = ""
    request: dict[str, Any] = field(factory=dict)

    def __str__(self) -> str:
        return self.name

    @cached_property
    def events(self) -> list[bytes]:
        """The body's events with the blank lines that end them; the last may lack its own."""
        return split_events(b"".join(to_bytes(piece) for piece in self.response.body))

    @property
    def is_stream(self) -> bool:
        return self.response.status == 200 and "Content-Type" not in self.response.headers


def to_bytes(piece: Piece) -> bytes:
    """What a piece puts on the wire."""
    if isinstance(piece, str):
        return piece.encode()
    return bytes.fromhex(piece.hex) if isinstance(piece, Hex) else b""


def split_events(body: bytes) -> list[bytes]:
    """A body's events, each with all line ends behind it."""
    blank = next((end for end in (b"\r\n\r\n", b"\n\n", b"\r\r") if end in body), b"\n\n")
    parts = body.split(blank)
    whole = [part + blank for part in parts[:-1]]
    return [*whole, parts[-1]] if parts[-1] else whole


def load(path: Path) -> Case:
    """A case. Raises TypeError or ValueError for a file that isn't of the form."""
    value = yaml.safe_load(path.read_text("utf-8"))
    response = dict(value.pop("response"))
    body = response.pop("body", [])
    pieces = [_piece(item) for item in (body if isinstance(body, list) else [body])]
    return Case(
        name=path.relative_to(DIRECTORY).with_suffix("").as_posix(),
        response=Response(pieces, **response),
        expect=Expected(**value.pop("expect")),
        **value,
    )


@cache
def load_all() -> tuple[Case, ...]:
    """Every case, by name."""
    return tuple(load(path) for path in sorted(DIRECTORY.rglob("*.yaml")))


def _piece(value: Any) -> Piece:
    match value:
        case str():
            return value
        case {"wait": float() | int()}:
            return Wait(**value)
        case {"hex": str()}:
            return Hex(**value)
        case {"close": True} | {"reset": True}:
            return Close(**value)
    raise ValueError(f"not a piece of a body: {value!r}")
