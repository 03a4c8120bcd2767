"""What one caller or one backend might send to hold everybody else up: each is made of harmless bytes
and tries a guard of ours.

A *request* is sent by a client to the agent `demo`; an *answer* comes from a backend that was asked
properly.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from attrs import field, frozen

MEGABYTE = 1 << 20
QUESTION = [{"role": "user", "content": "Say hello."}]
_DONE = b"data: [DONE]\n\n"


@frozen
class Request:
    """A body, with the headers that go with it. `codes` are what may be said to it."""

    name: str
    body: Callable[[], bytes]
    codes: frozenset[str]
    headers: dict[str, str] = field(factory=dict)


@frozen
class Answer:
    """What a backend answers, piece by piece, for as long as anybody reads it.

    `codes` are the errors that the client may be told, `""` if none.
    """

    name: str
    pieces: Callable[[], Iterable[bytes]]
    codes: frozenset[str]
    status: int = 200
    headers: dict[str, str] = field(factory=dict)


def _event(delta: Any, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"id": "h", "choices": [choice]}).encode() + b"\n\n"


def _told(*codes: str) -> frozenset[str]:
    return frozenset(codes)


# --- requests -------------------------------------------------------------------------------


def _question(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "stream": True, "messages": QUESTION, **fields}


def _deep() -> bytes:
    deep = "[" * 190 + "]" * 190
    return json.dumps(_question(x=0)).replace("0", f"[{','.join([deep] * 25_000)}]").encode()


def _many() -> bytes:
    empty = ",".join(["{}"] * 3_300_000)
    return json.dumps(_question(x=0)).replace("0", f"[{empty}]").encode()


def _long_number() -> bytes:
    return json.dumps(_question(x=0)).replace("0", "7" * (4 * MEGABYTE)).encode()


REQUESTS = (
    Request(
        "a small body that unpacks to 300 MB",
        lambda: gzip.compress(bytes(300 * MEGABYTE), 9),
        _told("unsupported_encoding"),
        {"Content-Encoding": "gzip"},
    ),
    Request("25,000 arrays, 190 deep", _deep, _told("invalid_request")),
    Request("3.3 million empty objects", _many, _told("invalid_request")),
    Request("a number of 4 million digits", _long_number, _told("invalid_request")),
)


# --- answers --------------------------------------------------------------------------------


def _tool_calls() -> Iterator[bytes]:
    calls = [
        {"index": index, "id": f"c{index}", "type": "function", "function": {"arguments": ""}}
        for index in range(20_000)
    ]
    yield _event({"tool_calls": calls})
    yield _event({}, "tool_calls")
    yield _DONE


def _new_indexes() -> Iterator[bytes]:
    for index in range(100_000):
        yield _event({"tool_calls": [{"index": index, "function": {"arguments": "x"}}]})
    yield _event({}, "tool_calls")
    yield _DONE


def _new_choices() -> Iterator[bytes]:
    for index in range(50_000):
        choice = {"index": index, "delta": {"content": "x"}, "finish_reason": None}
        yield b"data: " + json.dumps({"id": "h", "choices": [choice]}).encode() + b"\n\n"
    yield _DONE


def _text_behind_parts() -> Iterator[bytes]:
    yield _event({"content": [{"type": "text", "text": "a"}]})
    for _ in range(40_000):
        yield _event({"content": "b"})
        yield _event({"content": [{"type": "image_url", "image_url": {"url": "c"}}]})
    yield _event({}, "stop")
    yield _DONE


def _large_text() -> Iterator[bytes]:
    words = _event({"content": "word " * 3_000})
    for _ in range(3_000):
        yield words
    yield _event({}, "stop")
    yield _DONE


def _empty_deltas() -> Iterator[bytes]:
    nothing = _event({}) * 100
    for _ in range(10_000):
        yield nothing
    yield _DONE


def _large_error() -> Iterator[bytes]:
    yield b'{"error": {"message": "'
    for _ in range(200):
        yield b"x" * MEGABYTE
    yield b'"}}'


def _packed(size: int) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield gzip.compress(b'{"error": {"message": "' + bytes(size), 9)

    return pieces


def _one_large_event() -> Iterator[bytes]:
    yield b'data: {"choices": [{"index": 0, "delta": {"content": "'
    for _ in range(100):
        yield b"x" * MEGABYTE


def _line_ends() -> Iterator[bytes]:
    for _ in range(2_000):
        yield b"\n" * 65_536


JSON = {"Content-Type": "application/json"}
GZIP = {"Content-Encoding": "gzip"}
FAILED = _told(
    *("upstream_error", "upstream_malformed", "upstream_incomplete"),
    *("answer_too_large", "first_token_timeout"),
)

ANSWERS = (
    Answer("20,000 tool calls in one event", _tool_calls, FAILED),
    Answer("ever new tool calls", _new_indexes, FAILED),
    Answer("ever new choices", _new_choices, FAILED),
    Answer("text behind lists of parts", _text_behind_parts, FAILED | {""}),
    Answer("45 MB of text", _large_text, FAILED),
    Answer("a million empty deltas", _empty_deltas, FAILED),
    Answer("an event of 100 MB", _one_large_event, FAILED),
    Answer("125 MB of empty lines", _line_ends, FAILED),
    Answer("an error of 200 MB", _large_error, FAILED, 500, JSON),
    Answer("a packed error of 300 MB", _packed(300 * MEGABYTE), FAILED, 400, {**JSON, **GZIP}),
    Answer("a packed answer of 300 MB", _packed(300 * MEGABYTE), FAILED, 200, GZIP),
)
ATTACKS: tuple[Request | Answer, ...] = (*REQUESTS, *ANSWERS)
