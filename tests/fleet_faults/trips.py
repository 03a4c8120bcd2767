"""Clients that read an answer to its end over as many connections, and at as many replicas, as it takes.

They do what docs/api.md says: after a cut they count the chunks that they have, and go on from there, at
another replica; who has no answer asks again with the same `Idempotency-Key`. Each keeps every byte. None
raises because of what the service does: that is for `tests.fleet_faults.oracle` to judge.
"""

import asyncio
import json
import time
from collections.abc import Callable

from attrs import Factory, define

from tests.faults.plans import Plan
from tests.faults.seen import Seen
from tests.fleet_faults.wires import Address

KEY = "sk-vb-of-the-matrix"
"""What callers say who they are with."""
PATIENCE_SECONDS = 45.0
"""For one client, from its first connection on; whoever sees no end by then hangs."""
SILENCE_SECONDS = 3.0
"""Without a word or a keep-alive, of which there are four a second: the connection is dead."""
_CONNECT_SECONDS = 2.0
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 1.0
_AHEAD_TRIES = 20
"""So often a client says that it is ahead of everybody before it takes what it had for lost: as long as
examples/resuming.py would."""

COME_BACK = frozenset(
    (
        "answer_unavailable",
        "database_unavailable",
        "fleet_unavailable",
        "idempotency_pending",
        "journal_full",
        "runs_elsewhere",
        "too_many_readers",
    )
)
"""Codes after which an answer may be had all the same. `draining` is one before the answer has begun."""

OF_PROXIES = frozenset(("status_502", "status_503", "status_504"))
"""What a proxy says by itself, in HTML: the replica was gone."""


@define(eq=False)
class Trip:
    """One client's reading of one answer.

    Attributes:
        plan: what is read.
        kind: in words.
        at: the replicas it was at.
        start: how many chunks it says that it has had before.
        completion_id: once it is known.
        seens: what each connection brought.
        chunks: all of them.
        done: it saw `[DONE]`.
        code: the error that it took for the end.
        bare: it saw a clean end with neither.
        told: codes after which it came back.
        hung, gave_up: no end in time; it could not know whether it was asked.
        began_at, ended_at: on the monotonic clock.
    """

    plan: Plan
    kind: str
    start: int = 0
    completion_id: str | None = None
    at: list[str] = Factory(list)
    seens: list[Seen] = Factory(list)
    chunks: list[bytes] = Factory(list)
    done: bool = False
    code: str | None = None
    bare: bool = False
    told: list[str] = Factory(list)
    hung: bool = False
    gave_up: bool = False
    began_at: float = Factory(time.monotonic)
    ended_at: float = 0.0

    @property
    def position(self) -> int:
        """How many chunks it has had, those before its start included; grows as they come."""
        return self.start + len(self.chunks) + self._coming

    @property
    def _coming(self) -> int:
        seen = self.seens[-1] if self.seens else None
        return 0 if seen is None or seen.chunks else seen.raw.count(b'"choices"')

    @property
    def is_over(self) -> bool:
        return self.done or self.code is not None or self.bare or self.hung or self.gave_up

    def take(self, seen: Seen) -> None:
        """Take what a connection brought, now that it has ended."""
        try:
            seen.read()
        except ValueError:  # a proxy's own page
            seen.error = {"code": f"status_{seen.status}"}
        self.chunks += seen.chunks
        if self.completion_id is None:
            self.completion_id = seen.completion_id
        if seen.done:
            self.done = True
        elif seen.error is not None:
            self._hear(seen)
        elif seen.whole and seen.status == 200:
            self.bare = True

    def _hear(self, seen: Seen) -> None:
        code, is_refusal = str(seen.code), seen.status != 200
        is_ahead = is_refusal and code == "position_ahead"
        comes_back = code in COME_BACK or code in OF_PROXIES or (is_refusal and code == "draining")
        if comes_back or (is_ahead and self.told.count(code) < _AHEAD_TRIES):
            self.told.append(code)
        else:
            self.code = code


class Doors:
    """Where clients go: to the replicas in turn, past those that a balancer would know to be down.

    Args:
        addresses: gives each replica that is up, with its address.
    """

    def __init__(self, addresses: Callable[[], dict[str, Address]]) -> None:
        self._addresses = addresses
        self._turn = 0

    def at(self, name: str) -> tuple[str, Address] | None:
        """This replica, if it is up, else another; None if none is."""
        known = self._addresses()
        return (name, known[name]) if name in known else self.another(name)

    def another(self, name: str) -> tuple[str, Address] | None:
        """Another one than this, if there is one that is up."""
        known = self._addresses()
        names = [each for each in known if each != name] or list(known)
        if not names:
            return None
        self._turn += 1
        chosen = names[self._turn % len(names)]
        return chosen, known[chosen]


async def travel(trip: Trip, doors: Doors, first: str, *, once: bool = False) -> None:
    """Read to the end, beginning at this replica, however often it takes another connection.

    Args:
        once: a client that knows nothing of coming back: it has one connection, and takes what comes.
    """
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await _travel(trip, doors, first, once=once)
    except TimeoutError:
        trip.hung = True
        if trip.seens:
            trip.take(trip.seens[-1])
    trip.ended_at = time.monotonic()


async def _travel(trip: Trip, doors: Doors, first: str, *, once: bool) -> None:
    door, pause = doors.at(first), _PAUSE_SECONDS
    while True:
        if door is not None:
            name, address = door
            seen, had = Seen(), trip.position
            trip.at.append(name)
            trip.seens.append(seen)
            request = asking(trip) if trip.completion_id is None else _reading(trip)
            was_sent = await exchange(address, request, seen)
            trip.take(seen)
            if trip.completion_id is None and was_sent and seen.status == 0:
                trip.gave_up = not trip.plan.has_key
            if trip.is_over or once:
                return
            pause = (
                _PAUSE_SECONDS if trip.position > had else min(2 * pause, _LONGEST_PAUSE_SECONDS)
            )
        await asyncio.sleep(pause)
        door = doors.another(trip.at[-1] if trip.at else first)


async def exchange(address: Address, request: bytes, seen: Seen) -> bool:
    """Send a request, and keep what comes until the end or too long a silence. True if it may have been
    read by somebody."""
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            source, sink = await asyncio.open_connection(*address)
    except (OSError, TimeoutError):
        return False
    try:
        sink.write(request)
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                data = await source.read(65536)
            seen.raw += data
            if not data:
                return True
    except (OSError, TimeoutError):
        return True
    finally:
        sink.transport.abort()


def asking(trip: Trip) -> bytes:
    """The request's bytes. The backend finds the plan by the number in the question."""
    plan = trip.plan
    question = [{"role": "user", "content": f"stream {plan.number}"}]
    asked = {"model": plan.model, "stream": True, "messages": question}
    body = json.dumps(asked, separators=(",", ":")).encode()
    key = f"Idempotency-Key: {plan.key}\r\n" if plan.has_key else ""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {KEY}\r\nX-Conversation-Id: {plan.key}\r\n{key}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _reading(trip: Trip) -> bytes:
    path = f"/v1/chat/completions/{trip.completion_id}?stream=true&starting_after={trip.position}"
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {KEY}\r\n\r\n"
    ).encode()
