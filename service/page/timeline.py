"""Lays a completion's life out along a time axis, in per mille of its width. Pure."""

from collections.abc import Sequence
from typing import Any

from attrs import Factory, define, frozen

WIDTH = 1000
_SHORTEST = 5.0
"""So wide what took no time is drawn, to be seen."""


@frozen
class Span:
    """A stretch of a lane: `kind` says its colour, `title` what it is."""

    kind: str
    x: float
    width: float
    title: str


@define
class Timeline:
    """What is drawn.

    Attributes:
        seconds: from the left edge to the right one.
        ticks: the axis's labels, in seconds, evenly apart.
        states: the lane of states; attempts, calls, readers: the lanes of these.
        moments: (seconds since it was asked, what happened), in order; the same as words.
    """

    seconds: float
    ticks: Sequence[float] = ()
    states: list[Span] = Factory(list)
    attempts: list[Span] = Factory(list)
    calls: list[Span] = Factory(list)
    readers: list[Span] = Factory(list)
    moments: list[tuple[float, str]] = Factory(list)


@frozen
class Stretch:
    """Something that went on beside: `ended_at` is None while it does. Times are POSIX seconds."""

    kind: str
    began_at: float
    ended_at: float | None
    title: str


@frozen
class Asked:
    """What is known of a life from its row, or from the running session. Times are POSIX seconds."""

    at: float
    first_token_at: float | None
    ended_at: float | None
    client_left_at: float | None
    state: str
    error: str | None
    agent: str


def timeline_of(
    asked: Asked, life: dict[str, Any] | None, now: float, calls: Sequence[Stretch] = ()
) -> Timeline:
    """The picture of a life.

    Args:
        asked: what is known for sure.
        life: what is remembered (`Lives.of`); None: nothing is.
        now: the right edge of one that runs.
        calls: of tools.
    """
    life = life or {"attempts": [], "gaps": [], "absences": [], "saved_at": None}
    end = now if asked.ended_at is None else asked.ended_at
    right = max(end, life["saved_at"] or 0.0, asked.at + 0.001)
    drawn = Timeline(right - asked.at)
    drawn.ticks = [drawn.seconds * part / 4 for part in range(5)]
    lane = _Lane(asked.at, drawn.seconds)
    _draw_states(drawn, lane, asked, life, end)
    turn = 1
    for number, attempt in enumerate(life["attempts"], 1):
        # What follows an answer is no retry: the model was told what its tools brought.
        _draw_attempt(drawn, lane, f"attempt {number}" if turn == 1 else f"turn {turn}", attempt)
        turn += not attempt["error"]
    for call in calls:
        until = end if call.ended_at is None else call.ended_at
        drawn.calls.append(lane.span(call.kind, call.began_at, until, call.title))
        drawn.moments.append((call.began_at - asked.at, f"called {call.title}"))
    absences = life["absences"]
    if not absences and asked.client_left_at is not None:
        absences = [(asked.client_left_at, None)]
    _draw_readers(drawn, lane, asked, absences, end)
    if life["saved_at"] is not None:
        drawn.states.append(lane.span("saved", life["saved_at"], life["saved_at"], "saved"))
        drawn.moments.append((life["saved_at"] - asked.at, "saved"))
    drawn.moments.sort(key=lambda moment: moment[0])
    return drawn


@frozen
class _Lane:
    began_at: float
    seconds: float

    def span(self, kind: str, begin: float, end: float, title: str) -> Span:
        left = self._x(begin)
        width = max(self._x(end) - left, _SHORTEST)
        return Span(kind, round(min(left, WIDTH - width), 1), round(width, 1), title)

    def _x(self, at: float) -> float:
        return min(max((at - self.began_at) / self.seconds, 0.0), 1.0) * WIDTH


def _draw_states(
    drawn: Timeline, lane: _Lane, asked: Asked, life: dict[str, Any], end: float
) -> None:
    first = asked.first_token_at
    drawn.moments.append((0.0, f"asked of {asked.agent}"))
    waited = end if first is None else first
    drawn.states.append(lane.span("pending", asked.at, waited, "pending: no token yet"))
    if first is not None:
        drawn.states.append(lane.span("streaming", first, end, "streaming"))
        drawn.moments.append((first - asked.at, "first token"))
    for begin, until in life["gaps"]:
        drawn.states.append(lane.span("gap", begin, until, f"nothing for {until - begin:.0f} s"))
        drawn.moments.append((begin - asked.at, f"nothing came for {until - begin:.0f} s"))
    if asked.ended_at is not None:
        word = asked.state.replace("_", " ") + (f": {asked.error}" if asked.error else "")
        drawn.states.append(lane.span(asked.state, asked.ended_at, asked.ended_at, word))
        drawn.moments.append((asked.ended_at - asked.at, word))


def _draw_attempt(drawn: Timeline, lane: _Lane, name: str, attempt: dict[str, Any]) -> None:
    began, seconds = attempt["began_at"], attempt["seconds"]
    error, agent = attempt["error"], attempt["agent"]
    became = f"failed: {error}" if error else "first token"
    title = f"{name}, {agent}, {seconds:.2f} s, {became}"
    kind = "failed" if error else "completed"
    drawn.attempts.append(lane.span(kind, began, began + seconds, title))
    if name != "attempt 1" or error:
        told = f"{name} at {agent} " + (f"failed: {error}" if error else "answered")
        drawn.moments.append((began + seconds - lane.began_at, told))


def _draw_readers(
    drawn: Timeline, lane: _Lane, asked: Asked, absences: Sequence[Any], end: float
) -> None:
    here = asked.at
    for left_at, back_at in absences:
        drawn.readers.append(lane.span("reading", here, left_at, "somebody reads"))
        until = end if back_at is None else back_at
        drawn.readers.append(lane.span("away", left_at, until, "nobody reads"))
        drawn.moments.append((left_at - asked.at, "the last reader left"))
        if back_at is not None:
            drawn.moments.append((back_at - asked.at, "a reader came back"))
        here = until
    if here < end:
        drawn.readers.append(lane.span("reading", here, end, "somebody reads"))
