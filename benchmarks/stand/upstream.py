"""Stands in for a model's backend, cheaply enough not to be what is measured.

Run as its own process, `python -m benchmarks.stand.upstream` prints its port. It answers every chat
completion as the plan in its message says (`benchmarks.stand.plan`), and one that asks for no stream
at once with a single object. Two more calls steer it:

- `POST /end?within_ms=1000` ends every stream that is open, evenly over that time;
- `POST /lag` says by how many milliseconds a paced chunk was late at most since it was last asked,
  so that a measurement knows when it measured this process.

One timer of the kernel serves all paced streams: streams are spread over the slots of their
interval, so that chunks of different streams arrive apart.
"""

import asyncio
import ctypes
import json
import os
import time
from collections.abc import Callable
from itertools import cycle
from math import gcd
from typing import Any

from benchmarks.stand.plan import LAST, MORE, Plan, is_streamed

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"
)
_SHORTEST_SLOT_NS = 200_000
_MOST_SLOTS = 2_000
_BIG_WRITE = 300
"""Chunks in a write of a `big` answer: 64 KiB."""
_SMALL_WRITES = 50
"""Writes of a `small` answer before the event loop sees to the other connections."""


def _chunk(delta: str, finish_reason: str = "null", more: str = "") -> bytes:
    """An event in an HTTP chunk of its own; `%07d %019d%b` in the delta are filled in later, and a
    `%07d` in what more the chunk says."""
    event = (
        '{"id":"up","object":"chat.completion.chunk","created":1700000000,"model":"bench","choices":'
        f'[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish_reason}}}]{more}}}'
    )
    data = f"data: {event}\n\n".encode()
    length = len(data.replace(b"%07d %019d%b", b"." * 28).replace(b"%07d", b"." * 7))
    return b"%x\r\n%b\r\n" % (length, data)


_FIRST = _chunk('{"role":"assistant","content":"@%07d %019d%b"}')
_NEXT = _chunk('{"content":"@%07d %019d%b"}')
_UNLIKE = _chunk('{"content":"@%07d %019d%b"}', more=',"obfuscation":"%07d"')
_END = _chunk("{}", '"stop"') + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _whole(plan: Plan) -> dict[str, Any]:
    """An answer that isn't streamed, with the text that its chunks would have."""
    now, last = time.monotonic_ns(), plan.chunks - 1
    stamps = [b"@%07d %019d%b" % (n, now, LAST if n == last else MORE) for n in range(plan.chunks)]
    message = {"role": "assistant", "content": b"".join(stamps).decode()}
    return {
        "id": "up",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "bench",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": last + 1, "total_tokens": last + 10},
    }


class Pace:
    """Sends one chunk of each of its streams per interval, spread over the interval's slots.

    Args:
        interval_us: microseconds.
        note_lag: called with nanoseconds when chunks were sent late.
    """

    def __init__(self, interval_us: int, note_lag: Callable[[int], None]) -> None:
        interval_ns = interval_us * 1000
        count = max(1, min(interval_ns // _SHORTEST_SLOT_NS, _MOST_SLOTS))
        self._slots: list[dict[Connection, None]] = [{} for _ in range(count)]
        self._period_ns = interval_ns // count
        # A step that visits all slots and puts streams that come one after the other far apart.
        step = next(n for n in range(int(count * 0.618) | 1, 2 * count + 2) if gcd(n, count) == 1)
        self._places = cycle([number * step % count for number in range(count)])
        self._place_of: dict[Connection, int] = {}
        self._now = 0
        self._note_lag = note_lag
        self._timer: int | None = None

    def add(self, stream: "Connection") -> None:
        place = next(self._places)
        self._place_of[stream] = place
        self._slots[place][stream] = None
        if self._timer is None:
            self._timer = _every(self._period_ns)
            asyncio.get_running_loop().add_reader(self._timer, self._due)

    def remove(self, stream: "Connection") -> None:
        del self._slots[self._place_of.pop(stream)][stream]
        if not self._place_of and self._timer is not None:
            asyncio.get_running_loop().remove_reader(self._timer)
            os.close(self._timer)
            self._timer = None

    def _due(self) -> None:
        assert self._timer is not None
        expired = int.from_bytes(os.read(self._timer, 8), "little")
        if expired > 1:
            self._note_lag((expired - 1) * self._period_ns)
        for _ in range(expired):
            self._now = (self._now + 1) % len(self._slots)
            for stream in [*self._slots[self._now]]:
                stream.say()


def _every(period_ns: int) -> int:
    """A file descriptor that becomes readable once per period (timerfd_create(2)): the event
    loop's own timers know whole milliseconds only."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
    period = (ctypes.c_long * 4)(*divmod(period_ns, 10**9), *divmod(period_ns, 10**9))
    if descriptor < 0 or libc.timerfd_settime(descriptor, 0, period, None) < 0:
        raise OSError(ctypes.get_errno(), "timerfd")
    return int(descriptor)


class Upstream:
    """What the connections share."""

    def __init__(self) -> None:
        self.open: dict[Connection, None] = {}
        self._paces: dict[int, Pace] = {}
        self._latest_ns = 0

    def pace(self, interval_us: int) -> Pace:
        if interval_us not in self._paces:
            self._paces[interval_us] = Pace(interval_us, self._note_lag)
        return self._paces[interval_us]

    def _note_lag(self, nanoseconds: int) -> None:
        self._latest_ns = max(self._latest_ns, nanoseconds)

    def lag_ms(self) -> float:
        """The latest chunk's; begins anew."""
        latest, self._latest_ns = self._latest_ns, 0
        return latest / 1e6

    async def end(self, within_seconds: float) -> int:
        streams, started = [*self.open], time.monotonic()
        for number, stream in enumerate(streams):
            ahead = started + within_seconds * number / len(streams) - time.monotonic()
            if ahead > 0.001:
                await asyncio.sleep(ahead)
            stream.end()
        return len(streams)


class Connection(asyncio.Protocol):
    """One connection, one answer at a time."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._received = b""
        self._plan = Plan(0)
        self._said = 0
        self._pace: Pace | None = None
        self._is_full = False
        self._ending: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        if self in self._upstream.open and self._plan.shape in ("big", "small"):
            self._pour()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        fields = head.lower().split(b"\r\n")
        lengths = [int(f.partition(b":")[2]) for f in fields if f.startswith(b"content-length:")]
        if len(body) >= sum(lengths):
            self._received = b""
            self._asked(head.split(b" ")[1], body)

    def _asked(self, path: bytes, body: bytes) -> None:
        plan = Plan.found_in(body)
        if path.startswith(b"/end"):
            within = int(path.partition(b"within_ms=")[2] or 0) / 1000
            self._ending = asyncio.create_task(self._end_all(within))
        elif path.startswith(b"/lag"):
            self._answer({"lag_ms": self._upstream.lag_ms()})
        elif plan is None:
            self._answer({"object": "list", "data": [{"id": "bench", "object": "model"}]})
        elif not is_streamed(body):
            self._answer(_whole(plan))
        else:
            self._begin(plan)

    async def _end_all(self, within_seconds: float) -> None:
        self._answer({"ended": await self._upstream.end(within_seconds)})

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)

    # --- an answer ----------------------------------------------------------------------------

    def _begin(self, plan: Plan) -> None:
        self._plan, self._said = plan, 1
        now = time.monotonic_ns()
        if plan.chunks == 1:
            self._transport.write(_HEAD + _FIRST % (0, now, LAST) + _END)
            return
        self._upstream.open[self] = None
        self._transport.write(_HEAD + _FIRST % (0, now, MORE))
        if plan.shape in ("paced", "unlike"):
            self._pace = self._upstream.pace(plan.interval_us)
            self._pace.add(self)
        elif plan.shape != "held":
            self._pour()

    def say(self) -> None:
        """The next chunk, in a write of its own; the end with the last."""
        if self._transport.is_closing():
            self._leave()
        elif self._said + 1 == self._plan.chunks:
            self.end()
        else:
            filled = (self._said, time.monotonic_ns(), MORE)
            if self._plan.shape == "unlike":
                self._transport.write(_UNLIKE % (*filled, self._said * 7_919_317 % 10**7))
            else:
                self._transport.write(_NEXT % filled)
            self._said += 1

    def end(self) -> None:
        """The last chunk, whichever it is, and the end."""
        if self in self._upstream.open:
            self._leave()
            self._transport.write(_NEXT % (self._said, time.monotonic_ns(), LAST) + _END)

    def _leave(self) -> None:
        self._upstream.open.pop(self, None)
        if self._pace is not None:
            self._pace.remove(self)
            self._pace = None

    def _pour(self) -> None:
        """As much as the reader takes now."""
        is_big = self._plan.shape == "big"
        for _ in range(1 if is_big else _SMALL_WRITES):
            if self._is_full or self not in self._upstream.open:
                return  # if it is full, `resume_writing` goes on
            if is_big:
                until, now = (
                    min(self._said + _BIG_WRITE, self._plan.chunks - 1),
                    time.monotonic_ns(),
                )
                numbers = range(self._said, until)
                self._transport.write(b"".join([_NEXT % (n, now, MORE) for n in numbers]))
                self._said = until
            if not is_big or self._said + 1 == self._plan.chunks:
                self.say()
        if not self._is_full:
            asyncio.get_running_loop().call_soon(self._pour)


async def _main() -> None:
    upstream = Upstream()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(upstream), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
