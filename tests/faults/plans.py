"""What one stream is to say, how it is to break, and which ends of it would be the truth.

Pure. A plan is made by a scenario, played by `tests.faults.upstream`, watched by
`tests.faults.client` and judged by `tests.faults.oracle`.

Every word names its stream and its place (`w17.4 ` is the fifth word of stream 17), so that a
word that is missing, twice there, out of order or in the wrong stream is visible in any text.
"""

import asyncio
from typing import Any

from attrs import Factory, define, frozen

from tests.faults.seen import Seen

NASTY = ("", "é😀", "\0", "\ud800", "␛", '\\"\n\r\u2028')
"""Endings of words: what text columns, JSON, SSE and UTF-8 are known to stumble over."""


@frozen
class Outcome:
    """How a completion may truthfully end: its state, and its error's code if it has one."""

    state: str
    code: str | None = None

    def __str__(self) -> str:
        return f"{self.state}/{self.code}" if self.code else self.state


COMPLETED = Outcome("completed")
LEFT = Outcome("client_gone", "client_left")
STOPPED = Outcome("client_gone", "stopped")
DIED = Outcome("failed", "process_died")
DRAINED = Outcome("failed", "draining")


def failed(*codes: str) -> frozenset[Outcome]:
    """Failures with any of these codes."""
    return frozenset(Outcome("failed", code) for code in codes)


@define(eq=False)
class Reader:
    """Somebody who reads a stream that another asked for.

    Attributes:
        kind: in words.
        position: how many chunks it says that it has had.
        leaves_at: after so many chunks it goes; 0: never.
        has_left, hung: it went; no end came.
    """

    kind: str
    position: int
    leaves_at: int = 0
    has_left: bool = False
    hung: bool = False
    seen: Seen = Factory(Seen)

    @property
    def is_last(self) -> bool:
        """True if it came after the fault."""
        return "after the fault" in self.kind


@define(kw_only=True, eq=False)
class Plan:
    """One stream. The first block is set by a scenario, the second one found out on the way.

    Attributes:
        fault, moment: the row of the table that it counts in.
        expected: the ends that would be true; all others are wrong states.
        refusals: codes with which it may be refused; a refused request has no row.
        may_vanish: True if the service may be killed before it has read the request.
        loses: words (by choice and place) that a damaged disk may have taken; set by scenarios
            that do damage.
        completion_id: its id where a scenario learned it otherwise than the client.
        history, ballast: how many messages come before the question, and how many bytes in a
            field that nobody knows.
        extra: further fields of the request.
        has_key: it is asked for with an `Idempotency-Key`.
        is_followed: two others read it, too; the second joins after `joins_at` chunks.
        told, finished: how many words, and whether all finish reasons, the upstream began to
            send.
        asks: how often the upstream was asked.
        readers, whole: who else read it; the one who read all of it after the fault.
    """

    number: int
    fault: str
    moment: str
    expected: frozenset[Outcome] = frozenset((COMPLETED,))
    refusals: frozenset[str] = frozenset()
    may_vanish: bool = False
    words: int = 20
    interval_seconds: float = 0.02
    choices: int = 1
    padding: int = 0
    model: str = "cancel"
    stream: bool = True
    misdeed: Any = None
    breaks_at: int = 0
    first_pause_seconds: float = 0.0
    last_pause_seconds: float = 0.0
    history: int = 0
    ballast: int = 0
    extra: dict[str, Any] = Factory(dict)
    has_key: bool = False
    is_followed: bool = True
    joins_at: int = 3

    asked: asyncio.Event = Factory(asyncio.Event)
    asks: int = 0
    told: int = 0
    finished: bool = False
    client_left: bool = False
    took_seconds: float = 0.0
    loses: set[str] | None = None
    completion_id: str | None = None
    seen: Seen = Factory(Seen)
    readers: list[Reader] = Factory(list)
    whole: Reader | None = None

    @property
    def key(self) -> str:
        """The conversation's key: unique, so it finds the row of a stream that never saw its id."""
        return f"stream-{self.number}"

    @property
    def is_plain(self) -> bool:
        """True if its words are ASCII; every fifth stream's are nasty."""
        return self.number % 5 != 0

    def word(self, place: int) -> str:
        """The word at a place, counted over all choices."""
        ending = "" if self.is_plain else NASTY[(self.number + place) % len(NASTY)]
        return f"w{self.number}.{place}{ending}{'x' * self.padding} "

    def said(self, choice: int, words: int | None = None) -> list[str]:
        """A choice's words, in order: all, or those among the first `words` of the stream."""
        total = self.words if words is None else words
        return [self.word(place) for place in range(choice, total, self.choices)]
