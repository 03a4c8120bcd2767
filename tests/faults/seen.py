"""What a client got, byte by byte, and whether every byte of it is as it should be. Pure.

The rules of a stream that are held against it here:

1. The body is made of events, `data: ` and one line of JSON and a blank line, and of pings, a
   comment that ends in ONE newline, between events. Only a broken connection may cut it.
2. Every chunk carries one and the same id.
3. It ends with `[DONE]` or with an error event, never both, and nothing follows. Without either
   it ends only if somebody stopped it, or the connection broke.
4. Words come in order, each once.
"""

import json
from typing import Any

from attrs import Factory, define

PING = b": keep-alive\n"


@define(eq=False)
class Seen:
    """A response as it came in. `read` is called once, when no more will come.

    Attributes:
        raw: every byte.
        whole: the HTTP body came to its own end.
        texts: choice → text shown.
        chunks: the JSON of each chunk.
        error: the error object that the client was told, in either way.
        broken: rules that were broken, in words.
    """

    raw: bytearray = Factory(bytearray)
    status: int = 0
    whole: bool = False
    completion_id: str | None = None
    texts: dict[int, str] = Factory(dict)
    chunks: list[bytes] = Factory(list)
    reasons: dict[int, str] = Factory(dict)
    done: bool = False
    error: dict[str, Any] | None = None
    pings: int = 0
    broken: list[str] = Factory(list)
    _read: bool = False

    def read(self) -> None:
        """Take the bytes apart."""
        if self._read:
            return
        self._read = True
        head, found, rest = bytes(self.raw).partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        body = self._body(headers, rest)
        if headers.get("content-type", "").startswith("text/event-stream"):
            self._read_events(body)
        elif self.whole:
            self._read_object(json.loads(body))

    @property
    def code(self) -> str | None:
        """The error's code."""
        return None if self.error is None else str(self.error.get("code"))

    @property
    def word_count(self) -> int:
        return sum(text.count(" ") for text in self.texts.values())

    def _body(self, headers: dict[str, str], rest: bytes) -> bytes:
        if "content-length" in headers:
            length = int(headers["content-length"])
            self.whole = len(rest) == length
            if len(rest) > length:
                self.broken.append("bytes after the body")
            return rest
        if headers.get("transfer-encoding") != "chunked":
            self.broken.append("a body without length or chunks")
            return rest
        return self._dechunked(rest)

    def _dechunked(self, rest: bytes) -> bytes:
        pieces: list[bytes] = []
        position = 0
        while True:
            line_end = rest.find(b"\r\n", position)
            if line_end < 0:
                break
            size = int(rest[position:line_end], 16)
            start, end = line_end + 2, line_end + 2 + size
            pieces.append(rest[start:end])
            if size == 0:
                self.whole = rest[start:] == b"\r\n"
                if len(rest) > start + 2:
                    self.broken.append("bytes after the body")
                break
            if len(rest) < end + 2:
                break  # cut here
            position = end + 2
        return b"".join(pieces)

    # --- a stream ---------------------------------------------------------------------------

    def _read_events(self, body: bytes) -> None:
        position = 0
        while position < len(body):
            if self.done or self.error is not None:
                self.broken.append(f"bytes after the end: {body[position:][:60]!r}")
                return
            if body.startswith(b":", position):
                end = self._read_ping(body, position)
            elif body.startswith(b"data: "[: len(body) - position], position):
                end = self._read_event(body, position)
            else:
                self.broken.append(f"neither event nor ping: {body[position:][:60]!r}")
                return
            if end is None:
                if self.whole:
                    self.broken.append("a body that ends within an event")
                return
            position = end

    def _read_ping(self, body: bytes, start: int) -> int | None:
        if not body.startswith(PING, start):
            if len(body) - start >= len(PING) or self.whole:
                self.broken.append(f"an odd comment: {body[start:][:60]!r}")
            return None
        self.pings += 1
        return start + len(PING)

    def _read_event(self, body: bytes, start: int) -> int | None:
        end = body.find(b"\n\n", start)
        if end < 0:
            return None
        data = body[start + len(b"data: ") : end]
        if b"\n" in data or b"\r" in data:
            self.broken.append(f"more than one line: {data[:60]!r}")
        if data == b"[DONE]":
            self.done = True
        else:
            try:
                payload = json.loads(data.decode("utf-8"))
                if "error" not in payload:
                    self.chunks.append(data)
                self._read_payload(payload)
            except ValueError as error:
                self.broken.append(f"bad JSON: {error}: {data[:60]!r}")
        return end + 2

    def _read_payload(self, payload: dict[str, Any]) -> None:
        if "error" in payload:
            self._read_error(payload)
            return
        if self.completion_id is None:
            self.completion_id = payload["id"]
        if payload["id"] != self.completion_id:
            self.broken.append("a second id")
        if payload["object"] != "chat.completion.chunk":
            self.broken.append(f"object is {payload['object']!r}")
        for choice in payload["choices"]:
            index = choice["index"]
            content = choice["delta"].get("content") or ""
            if content and index in self.reasons:
                self.broken.append("text after its finish reason")
            self.texts[index] = self.texts.get(index, "") + content
            if choice["finish_reason"] is not None:
                self.reasons[index] = choice["finish_reason"]

    def _read_error(self, payload: dict[str, Any]) -> None:
        self.error = payload["error"]
        if set(payload) != {"error"}:
            self.broken.append("an error event with more in it")
        if not {"message", "type", "param", "code"} <= set(payload["error"]):
            self.broken.append("an error with fields missing")

    # --- a plain answer ---------------------------------------------------------------------

    def _read_object(self, body: dict[str, Any]) -> None:
        if "error" in body:
            self._read_error(body)
            if self.status < 400:
                self.broken.append(f"an error with status {self.status}")
            return
        self.completion_id = body["id"]
        self.done = True
        for choice in body["choices"]:
            self.texts[choice["index"]] = choice["message"].get("content") or ""
            self.reasons[choice["index"]] = choice["finish_reason"]
