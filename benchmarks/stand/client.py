"""Asks for answers on bare sockets, cheaply, and checks and times every chunk.

A `Connection` asks for one answer at a time; an `Answer` is what came of it. Chunks carry their
number and the moment at which the backend sent them (`benchmarks.stand.plan`), so that every lost,
doubled or misplaced one is seen, and every one's delay is known. Knows no contender.
"""

import asyncio
import re
import time
from array import array
from collections.abc import Sequence

from attrs import define, field

from benchmarks.stand.plan import STAMP, Plan

_CONNECTIONS_PER_ADDRESS = 10_000
"""A pair of addresses has some 28,000 ports, and closed connections keep theirs for a minute."""
_OPEN_AT_ONCE = 500
_ID = re.compile(rb"x-completion-id: (\S+)", re.IGNORECASE)


@define
class Answer:
    """One answer, as far as it came. Times are nanoseconds of the monotonic clock, 0 for never.

    Attributes:
        asked_ns, first_ns, done_ns, ended_ns: asked for, first word, `[DONE]`, end of the body.
        sent_ns: when the backend sent the latest chunk.
        chunks: how many came; is_broken: one was lost, doubled or out of order.
        completion_id: what the server calls it; empty if it doesn't say.
        has_last, has_finish: the backend's last chunk is among them, and after it the one with
            the finish reason.
        pings: comment lines that came while nothing else did.
        delays: nanoseconds from backend to here, of each chunk, in the list of its `Connection`.
        trouble: the beginning of a body that was no stream.
    """

    key: str | None = None
    asked_ns: int = 0
    first_ns: int = 0
    done_ns: int = 0
    ended_ns: int = 0
    sent_ns: int = 0
    status: int = 0
    completion_id: str = ""
    chunks: int = 0
    is_broken: bool = False
    has_last: bool = False
    has_finish: bool = False
    pings: int = 0
    trouble: bytes = b""
    started: asyncio.Event = field(factory=asyncio.Event, repr=False)
    finished: asyncio.Event = field(factory=asyncio.Event, repr=False)

    @property
    def is_complete(self) -> bool:
        """Every chunk came, in its place, and `[DONE]` after them all."""
        return self.has_last and not self.is_broken and self.done_ns > 0

    @property
    def ttft_ms(self) -> float | None:
        """From the request to the first word."""
        return (self.first_ns - self.asked_ns) / 1e6 if self.first_ns else None

    @property
    def whole_ms(self) -> float | None:
        """From the request to `[DONE]`."""
        return (self.done_ns - self.asked_ns) / 1e6 if self.done_ns else None

    @property
    def done_delay_ms(self) -> float | None:
        """From the backend's end to `[DONE]` here, saving included."""
        return (self.done_ns - self.sent_ns) / 1e6 if self.done_ns and self.has_last else None


class Connection(asyncio.Protocol):
    """A connection that asks again and again; never raises for what a server sends."""

    def __init__(self, delays: "array[int]") -> None:
        self._delays = delays
        self._answer: Answer | None = None
        self._begin()

    def _begin(self) -> None:
        self._head: bytes | None = None
        self._received = b""
        self._left = 0  # bytes of the body, or of the HTTP chunk that is being read
        self._is_chunked = False
        self._text = b""
        self._next = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def ask(self, plan: Plan, key: str | None = None) -> Answer:
        """Send the request; the answer fills itself."""
        return self.send(plan.request(key), key)

    def send(self, request: bytes, key: str | None = None, first: int = 0) -> Answer:
        """The same with bytes made before.

        Args:
            first: the number of the first chunk that is to come.
        """
        self._begin()
        self._next = first
        self._answer = answer = Answer(key, time.monotonic_ns())
        if self._transport.is_closing():
            self._end()
        else:
            self._transport.write(request)
        return answer

    def close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if self._received:
            data = self._received + data
        if self._head is None:
            head, separator, data = data.partition(b"\r\n\r\n")
            if not separator:
                self._received = head
                return
            self._read_head(head)
        if self._is_chunked:
            self._read_chunked(data, now)
        else:
            self._received = b""
            self._left -= len(data)
            self._read_text(data, now)
            if self._left <= 0:
                self._end()

    def _read_head(self, head: bytes) -> None:
        self._head = head.lower()
        if self._answer is not None:
            self._answer.status = int(head[9:12])
            if found := _ID.search(head):
                self._answer.completion_id = found[1].decode()
        self._is_chunked = b"transfer-encoding: chunked" in self._head
        length = self._head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        self._left = 0 if self._is_chunked else int(length or 1 << 60)

    def _read_chunked(self, data: bytes, now: int) -> None:
        """Undo the chunked encoding; what is no whole size line is kept for the next read."""
        position, end, texts = 0, len(data), []
        while position < end:
            if self._left > 2:  # the rest of a chunk and its line end
                text = data[position : position + self._left - 2]
                texts.append(text)
                position += len(text)
                self._left -= len(text)
                if self._left > 2:
                    break
            if self._left:
                taken = min(self._left, end - position)
                position += taken
                self._left -= taken
                continue
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                break
            size = int(data[position:line_end], 16)
            position = line_end + 2
            self._left = size + 2
            if not size:
                self._read_text(b"".join(texts), now)
                self._end()
                return
        self._received = data[position:]
        self._read_text(b"".join(texts), now)

    def _read_text(self, text: bytes, now: int) -> None:
        answer = self._answer
        if answer is None or not text:
            return
        if self._text:
            text = self._text + text
        if text[-1] != 10:  # in the middle of a line
            cut = text.rfind(b"\n") + 1
            text, self._text = text[:cut], text[cut:]
        else:
            self._text = b""
        found = STAMP.findall(text)
        if found:
            self._read_chunks(answer, found, now)
        elif text[:1] == b":" or b"\n:" in text:
            answer.pings += text.count(b"\n:") + (text[:1] == b":")
        if answer.has_last and b'"stop"' in text:
            answer.has_finish = True
        if (place := text.find(b"data: [DONE]")) >= 0:
            answer.done_ns = now
            if not answer.has_finish or STAMP.search(text, place):
                answer.is_broken = True
        elif not found and len(answer.trouble) < 500:
            answer.trouble += (text or self._text)[:500]

    def _read_chunks(
        self, answer: Answer, found: list[tuple[bytes, bytes, bytes]], now: int
    ) -> None:
        append, expected = self._delays.append, self._next
        for number, sent, mark in found:
            if int(number) != expected or answer.has_last:
                answer.is_broken = True
            expected = int(number) + 1
            append(now - int(sent))
            if mark == b"!":
                answer.has_last = True
        self._next = expected
        answer.chunks += len(found)
        answer.sent_ns = int(found[-1][1])
        if not answer.first_ns:
            answer.first_ns = now
            answer.started.set()

    def _end(self) -> None:
        if self._answer is not None:
            self._answer.ended_ns = time.monotonic_ns()
            self._answer.started.set()
            self._answer.finished.set()
            self._answer = None


async def connect(port: int, count: int, delays: "array[int]") -> list[Connection]:
    """So many open connections, some hundred at a time."""
    loop = asyncio.get_running_loop()
    connections: list[Connection] = []
    while len(connections) < count:
        missing = min(_OPEN_AT_ONCE, count - len(connections))
        source = f"127.0.0.{2 + len(connections) // _CONNECTIONS_PER_ADDRESS}"
        opening = (
            loop.create_connection(
                lambda: Connection(delays), "127.0.0.1", port, local_addr=(source, 0)
            )
            for _ in range(missing)
        )
        connections += [protocol for _, protocol in await asyncio.gather(*opening)]
    return connections


async def wait_all(answers: Sequence[Answer], seconds: float) -> bool:
    """Until all have ended, or for so long; true if all have."""
    try:
        async with asyncio.timeout(seconds):
            for answer in answers:
                await answer.finished.wait()
    except TimeoutError:
        return False
    return True


async def steer(upstream_port: int, path: str) -> bytes:
    """Tell the backend something (`benchmarks.stand.upstream`); its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream_port)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    body = await reader.readexactly(length)
    writer.close()
    return body
