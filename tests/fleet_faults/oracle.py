"""Compares what all clients of a fleet saw with what PostgreSQL holds and with what can be read later at
each replica, stream by stream. Pure.

Called once the faults are over and everything has settled. For each stream:

1. *Lost*: words that any client was shown, and that the row, or a later reader at any replica, hasn't got;
   or that a client passed over. `allowed` says how many of these the mode allows.
2. *Doubled*: a client had a word twice or out of order, or the row has.
3. *States*: the row's is one that the scenario expects; `[DONE]` means completed, with every word; an error
   is the row's; the words stored are a beginning of what the backend said.
4. *No row*: something was shown, and nothing is stored.
5. *Owners*: the backend was asked twice, there are two rows, or two clients had different bytes at one
   position.
6. *Hung*: a client saw no end in time.
7. *Errors*: a client was told something that the scenario doesn't excuse.
"""

import json
from collections.abc import Iterable, Sequence

from attrs import Factory, define

from tests.faults.oracle import Row
from tests.faults.plans import COMPLETED, Plan
from tests.fleet_faults.trips import Trip


@define(eq=False, kw_only=True)
class Stream:
    """One answer and all who read it.

    Attributes:
        plan: what was to be said, and the ends that would be true.
        at: the replica that was asked.
        trips: its clients; the first asked for it.
        finals: those who read it from the start once all was over, one at each replica.
        due: codes after which a client may have had to come back, and with which it may have been
            refused.
        may_lose: how many words may be lost.
        takes: how many words the machine may take with it until it comes back.
        may_grow: the row may have become longer, and have another end, after a client saw one.
    """

    plan: Plan
    at: str
    trips: list[Trip] = Factory(list)
    finals: list[Trip] = Factory(list)
    due: frozenset[str] = frozenset()
    may_lose: int = 0
    takes: int = 0
    may_grow: bool = False

    @property
    def completion_id(self) -> str | None:
        return next((trip.completion_id for trip in self.trips if trip.completion_id), None)


_AHEAD_OF_ALL = frozenset(("position_ahead", "invalid_request", "not_found"))
"""What whoever has seen words is told that nobody else has."""

NUMBERS = ("shown", "lost", "doubled", "states", "no row", "owners", "hung", "errors")


@define
class Verdict:
    """What is wrong with one stream; nothing if all but the first three are zero.

    Attributes:
        readers: how many clients there were.
        shown: words, to the one who saw most.
        allowed: how many words may be lost.
        said: what is wrong, in words.
    """

    stream: Stream
    readers: int = 0
    shown: int = 0
    allowed: int = 0
    lost: int = 0
    doubled: int = 0
    states: int = 0
    no_row: int = 0
    owners: int = 0
    hung: int = 0
    errors: int = 0
    said: list[str] = Factory(list)

    @property
    def is_clean(self) -> bool:
        wrong = (self.doubled, self.states, self.no_row, self.owners, self.hung, self.errors)
        return self.lost <= self.allowed and not any(wrong)

    @property
    def numbers(self) -> tuple[int, ...]:
        """In the order of `NUMBERS`."""
        mine = (self.shown, self.lost, self.doubled, self.states, self.no_row)
        return (*mine, self.owners, self.hung, self.errors)

    def note(self, number: str, what: str, count: int = 1) -> None:
        setattr(self, number, getattr(self, number) + count)
        self.said.append(what)

    def __str__(self) -> str:
        stream = self.stream
        lost = f"{self.lost} of {self.shown} words lost ({self.allowed} may be)"
        said = [*([lost] if self.lost > self.allowed else []), *self.said[:6]]
        name = stream.completion_id or "no id seen"
        plan = stream.plan
        return f"{plan.fault} × {plan.moment}, stream {plan.number} at {stream.at} ({name}): " + (
            "; ".join(said)
        )


def judge(streams: Sequence[Stream], rows: Iterable[Row]) -> list[Verdict]:
    """A verdict for each stream. `rows` are all that `tests.faults.oracle.QUERY` finds of them."""
    found = list(rows)
    return [_judge(stream, *_rows_of(stream, found)) for stream in streams]


def _rows_of(stream: Stream, rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Its rows, the one that was shown first; and how many more there are of answers that ended before
    their first word: a repeat gets a new one then."""
    names = {trip.completion_id for trip in stream.trips}
    mine = [row for row in rows if row.key == stream.plan.key or row.completion_id in names]
    shown = [row for row in mine if row.completion_id in names or any(_texts_of(row))] or mine[:1]
    shown.sort(key=lambda row: row.completion_id not in names)
    return shown, len(mine) - len(shown)


def _texts_of(row: Row) -> list[str]:
    return [message.text for message in row.messages]


def _judge(stream: Stream, rows: Sequence[Row], unsaid: int) -> Verdict:
    verdict = Verdict(stream, allowed=stream.may_lose)
    everybody = [*stream.trips, *stream.finals]
    verdict.readers = len(everybody)
    seen = [_words_seen(trip, verdict) for trip in everybody]
    verdict.shown = max([0, *seen[: len(stream.trips)]])
    _judge_owners(stream, rows, unsaid, verdict)
    kept = _judge_row(stream, rows, verdict)
    later = min([kept, *seen[len(stream.trips) :]])
    if verdict.shown > later:
        finals = seen[len(stream.trips) :]
        verdict.note("lost", f"{kept} words stored, {finals} read later", verdict.shown - later)
    for trip in everybody:
        _judge_trip(trip, stream, rows, verdict)
    return verdict


# --- words ---------------------------------------------------------------------------------------


def _words_seen(trip: Trip, verdict: Verdict) -> int:
    """How many of the backend's words a client has, those before its start included. Notes what is out
    of order."""
    plan = trip.plan
    place = max(0, trip.start - 1)  # the first chunk has no word
    for chunk in trip.chunks:
        content = _content(chunk)
        if not content:
            continue
        if place < plan.words and content == plan.word(place):
            place += 1
            continue
        found = next((n for n in range(plan.words) if plan.word(n) == content), None)
        if found is None:
            verdict.note("doubled", f"{trip.kind}: nobody said {content[-40:]!r}")
        elif found > place:
            verdict.note(
                "lost", f"{trip.kind}: words {place} to {found} passed over", found - place
            )
            place = found + 1
        else:
            verdict.note("doubled", f"{trip.kind}: word {found} again, at {place}")
    return place


def _content(chunk: bytes) -> str:
    choices = json.loads(chunk)["choices"]
    return (choices[0]["delta"].get("content") or "") if choices else ""


def _judge_owners(stream: Stream, rows: Sequence[Row], unsaid: int, verdict: Verdict) -> None:
    if stream.plan.asks > 1 + unsaid:
        verdict.note("owners", f"the backend was asked {stream.plan.asks} times")
    if len(rows) > 1:
        verdict.note("owners", f"{len(rows)} rows")
    at: dict[int, bytes] = {}
    for trip in (*stream.trips, *stream.finals):
        for place, chunk in enumerate(trip.chunks, start=trip.start):
            if at.setdefault(place, chunk) != chunk:
                what = f"{trip.kind}: {chunk[-60:]!r} at {place}, others had {at[place][-60:]!r}"
                verdict.note("owners", what)
                return


# --- the row -------------------------------------------------------------------------------------


def _judge_row(stream: Stream, rows: Sequence[Row], verdict: Verdict) -> int:
    """How many words are kept."""
    plan = stream.plan
    if not rows:
        if verdict.shown > stream.may_lose:
            verdict.note("no_row", "no row")
        return 0
    row, said = rows[0], plan.said(0)
    text = "".join(_texts_of(row))
    if not "".join(said).startswith(text):
        verdict.note("states", f"what is stored is not what was said: …{text[-60:]!r}")
    kept, left = 0, text
    while kept < len(said) and left.startswith(said[kept]):
        left = left[len(said[kept]) :]
        kept += 1
    if row.outcome not in plan.expected:
        expected = ", ".join(sorted(map(str, plan.expected)))
        verdict.note("states", f"{row.outcome} instead of {expected}")
    if row.outcome == COMPLETED and kept < plan.words:
        verdict.note("states", f"completed with {kept} of {plan.words} words")
    return kept


# --- what a client was told ----------------------------------------------------------------------


def _judge_trip(trip: Trip, stream: Stream, rows: Sequence[Row], verdict: Verdict) -> None:
    is_last = trip in stream.finals
    outcome = rows[0].outcome if rows else None
    for seen in trip.seens:
        if seen.broken:
            verdict.note("errors", f"{trip.kind}: {seen.broken[0]}")
    if trip.hung:
        verdict.note("hung", f"{trip.kind}: no end, at {trip.at}, told {trip.told}")
        return
    excused = frozenset() if is_last else stream.due
    for code in {*trip.told} - excused:
        verdict.note("errors", f"{trip.kind}: told {code} {trip.told.count(code)} times")
    if trip.done and outcome != COMPLETED:
        verdict.note("states", f"{trip.kind}: [DONE] of what is {outcome}")
    elif trip.bare:
        verdict.note("errors", f"{trip.kind}: a bare end of what is {outcome}")
    elif trip.code is not None:
        _judge_code(trip, stream, outcome, verdict, is_last=is_last)


def _judge_code(
    trip: Trip, stream: Stream, outcome: object, verdict: Verdict, *, is_last: bool
) -> None:
    code = trip.code
    of_row = getattr(outcome, "code", None)
    if code == of_row:
        return
    if not is_last and stream.may_grow and code in {each.code for each in stream.plan.expected}:
        return
    is_ahead = code in _AHEAD_OF_ALL and (code != "not_found" or verdict.shown <= stream.takes)
    if is_ahead and stream.takes and (stream.may_lose or not is_last):
        return  # nobody else has seen so much of it, or any of it
    if outcome is None and not any(each.chunks for each in stream.trips) and code in stream.due:
        return
    verdict.note("errors", f"{trip.kind}: told {code} of what is {outcome}")
