"""Encodes what a client asks of the stand-in backend, and when each chunk was sent.

The plan stands in the user's message and the stamp in the answer's text: the two things that every
service in between passes on untouched. Shared by the backend and the client; no I/O.
"""

import json
import re
from typing import Literal

from attrs import frozen

Shape = Literal["paced", "unlike", "big", "small", "held"]

_PLAN = re.compile(rb"plan shape=([a-z]+) chunks=(\d+) interval_us=(\d+)")
_STREAMED = re.compile(rb'"stream": ?true')

STAMP = re.compile(rb"@(\d{7}) (\d{19})([;!])")
"""A chunk's text: its number from 0, `time.monotonic_ns` when it was sent, `!` on the last."""

MORE, LAST = b";", b"!"


@frozen
class Plan:
    """One answer.

    Attributes:
        chunks: how many, the first at once.
        interval_us: microseconds between two chunks of a `paced` answer.
        shape: `paced`; `unlike`, the same with another `obfuscation` in each chunk; `big` or
            `small`, as fast as the reader takes it, many chunks to a write or one; `held`, one
            chunk and then silence until the backend is told to end it.
        history_bytes: about how much earlier messages say.
    """

    chunks: int
    interval_us: int = 0
    shape: Shape = "paced"
    history_bytes: int = 0

    def request(self, key: str | None = None, is_streamed: bool = True) -> bytes:
        """The HTTP request that asks for it, in the conversation of that key."""
        text = f"plan shape={self.shape} chunks={self.chunks} interval_us={self.interval_us}"
        messages = [*_history(self.history_bytes), {"role": "user", "content": text}]
        asked = {"model": "bench", "stream": is_streamed, "messages": messages}
        body = json.dumps(asked).encode()
        conversation = f"X-Conversation-Id: {key}\r\n" if key else ""
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            "Content-Type: application/json\r\nAccept: text/event-stream\r\n"
            f"{conversation}Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    @classmethod
    def found_in(cls, body: bytes) -> "Plan | None":
        """The plan in a request's body, wherever the services in between have put it."""
        found = _PLAN.search(body)
        if found is None:
            return None
        shape, chunks, interval_us = found.groups()
        return cls(int(chunks), int(interval_us), shape.decode())  # type: ignore[arg-type]


def _history(size: int) -> list[dict[str, str]]:
    """Messages of a kilobyte each, of which no two are the same."""
    rows = [
        " ".join([f"word{number * 150 + place}" for place in range(100)])[:1000]
        for number in range(size // 1000)
    ]
    return [
        {"role": ("user", "assistant")[number % 2], "content": row}
        for number, row in enumerate(rows)
    ]


def is_streamed(body: bytes) -> bool:
    """Whether a request asks for chunks; who doesn't say gets one object, as from OpenAI."""
    return _STREAMED.search(body) is not None
