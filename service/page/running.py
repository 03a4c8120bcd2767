"""What runs, as rows for the page: of this worker, of all, and the difference between two looks. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import Factory, evolve, frozen

from service.stream.relay import Relay
from service.stream.running import RunningStreams
from statemachine import State, StreamSession

MOST_ROWS = 100
"""The newest of all are shown; the others are counted."""
Row = dict[str, Any]
_PHASES = ("waiting", "answering", "detached")


@frozen
class Running:
    """What was seen at one look.

    Attributes:
        at: when, in POSIX seconds.
        rows: the newest completions, the newest first.
        totals: how many wait for their first token, answer, and are read by nobody; and all.
        missing: what can't be told, as a sentence; empty if all is here.
    """

    at: float = 0.0
    rows: Sequence[Row] = ()
    totals: Mapping[str, int] = Factory(lambda: dict.fromkeys((*_PHASES, "streams"), 0))
    missing: str = ""

    def as_json(self) -> dict[str, Any]:
        """For another worker."""
        return {"at": self.at, "rows": self.rows, "totals": self.totals}

    def with_others(self, others: Iterable[Mapping[str, Any]]) -> "Running":
        """With what other workers saw."""
        rows, totals = list(self.rows), dict(self.totals)
        for other in others:
            rows += other["rows"]
            for name in totals:
                totals[name] += other["totals"][name]
        rows.sort(key=lambda row: (row["created_at"], row["id"]), reverse=True)
        return evolve(self, rows=rows[:MOST_ROWS], totals=totals)

    def with_rates(self, before: "Running") -> "Running":
        """With the tokens a second since the look before, where a row was in it: half of what they
        were then, half of what came since, so that they can be read."""
        old, seconds = {row["id"]: row for row in before.rows}, self.at - before.at
        rows = []
        for row in self.rows:
            last = old.get(row["id"])
            if last is not None and 0 < seconds < 5:
                fresh = (row["tokens"] - last["tokens"]) / seconds
                row = {**row, "rate": round((last["rate"] + fresh) / 2, 1)}
            rows.append(row)
        return evolve(self, rows=rows)

    def change_from(self, told: "Running") -> dict[str, Any]:
        """What somebody must be told who knows that; empty if nothing.

        Returns:
            `at`: when it was seen, the first time; `rows`: of each row its id and what of it is another
            now, all of it if it is new, in order of age; `gone`: ids; `totals` and `missing`, if they
            are others.
        """
        old = {row["id"]: row for row in told.rows}
        rows = []
        for row in reversed(self.rows):
            last = old.pop(row["id"], {})
            changed = {key: value for key, value in row.items() if last.get(key, _NONE) != value}
            if changed:
                rows.append({"id": row["id"], **changed})
        change: dict[str, Any] = {} if told.at else {"at": self.at}
        if rows:
            change["rows"] = rows
        if old:
            change["gone"] = list(old)
        if self.totals != told.totals:
            change["totals"] = self.totals
        if self.missing != told.missing:
            change["missing"] = self.missing
        return change


_NONE = object()


def running_here(streams: RunningStreams, now: float, replica: str = "") -> Running:
    """What runs in this worker.

    Args:
        replica: its name in a fleet.
    """
    relays = list(streams)
    totals = dict.fromkeys(_PHASES, 0)
    for relay in relays:
        totals[_phase(relay)] += 1
    newest = sorted(relays, key=lambda relay: relay.session.request.created_at, reverse=True)
    rows = [
        row_of(relay.session, relay.readers.count, now, replica) for relay in newest[:MOST_ROWS]
    ]
    return Running(now, rows, {**totals, "streams": len(relays)})


def row_of(session: StreamSession, readers: int, now: float, replica: str) -> Row:
    """One running completion. `tokens` are its chunks, of which nearly every backend sends one a
    token."""
    request, tokens = session.request, session.transcript.chunk_count
    first = session.first_token_at
    rate = 0.0 if first is None else round(tokens / max(now - first, 1.0), 1)
    return {
        "id": request.completion_id,
        "created_at": request.created_at,
        "owner": request.owner[:200],
        "model": request.model[:200],
        "agent": session.agent,
        "state": session.state.value,
        "tokens": tokens,
        "rate": rate,
        "readers": readers,
        "detached": not session.attached,
        "is_hidden": request.is_hidden,
        "replica": replica,
    }


def _phase(relay: Relay) -> str:
    if not relay.session.attached:
        return "detached"
    return "waiting" if relay.session.state is State.PENDING else "answering"
