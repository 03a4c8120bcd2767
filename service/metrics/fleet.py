"""Figures of a fleet: what is now, and what its parts have counted since the last look: `FleetCounting`.

The parts count in plain numbers (`service.fleet.standing`); what they have counted more is added here, so
that a successor of this process goes on from there. Never here: what the parts do.
"""

from typing import Protocol

from attrs import frozen

from db.fleet import Replica
from service.fleet.standing import Standing
from service.metrics.counts import Counts, Figures, Labels

_PATIENCE_SECONDS = 0.5
"""How long a scrape waits to be told who is in the fleet."""
_COUNTED = (
    # attribute of a `Standing`, metric, labels
    ("calls_failed", "verbatim_fleet_calls_failed_total", ()),
    ("answered", "verbatim_fleet_commands_total", ("answered",)),
    ("unanswered", "verbatim_fleet_commands_total", ("unanswered",)),
    ("adopted", "verbatim_fleet_adopted_total", ()),
    ("fenced", "verbatim_fleet_fenced_total", ()),
    ("fallbacks", "verbatim_fleet_limit_fallbacks_total", ()),
)


class Fleet(Protocol):
    """As much of a fleet as is read; `service.fleet.parts.Fleet` is one."""

    def standing(self) -> Standing:
        """How this replica stands now."""

    async def seen(self, seconds: float) -> tuple[Replica, ...] | None:
        """Who is there; None if nobody says so within so many seconds."""


@frozen
class _Watched:
    fleet: Fleet
    last: dict[str, int]


class FleetCounting:
    """Counts what a fleet's parts have counted.

    Args:
        counts: where to.
    """

    def __init__(self, counts: Counts) -> None:
        self._append = counts.histogram("verbatim_fleet_append_seconds")
        self._counters = {metric: counts.counter(metric) for _, metric, _ in _COUNTED}
        self._watched: _Watched | None = None

    def watch(self, fleet: Fleet) -> None:
        """Have this one's figures; once."""
        self._watched = _Watched(fleet, {name: 0 for name, _, _ in _COUNTED})

    def appended(self, seconds: float) -> None:
        """A call that added lines to logs took so long."""
        self._append.observe(seconds)

    def count(self) -> None:
        """Add what was counted since the last time."""
        if self._watched is None:
            return
        standing, last = self._watched.fleet.standing(), self._watched.last
        for name, metric, labels in _COUNTED:
            value: int = getattr(standing, name)
            if value != last[name]:
                self._counters[metric].add(labels, value - last[name])
                last[name] = value

    async def gauges(self, worker: str) -> Figures:
        """What is now. Takes half a second at most.

        Args:
            worker: the process's label.
        """
        if self._watched is None:
            return {}
        replicas = await self._watched.fleet.seen(_PATIENCE_SECONDS)
        standing = self._watched.fleet.standing()
        now: dict[str, float] = {
            "verbatim_fleet_engine_up": standing.failure is None,
            "verbatim_fleet_lag_lines": standing.lag_lines,
            "verbatim_fleet_lag_seconds": standing.lag_seconds,
            "verbatim_fleet_mirrors": standing.mirrors,
            "verbatim_fleet_mirror_readers": standing.mirror_readers,
            "verbatim_fleet_listener_silent_seconds": standing.silent_seconds,
            "verbatim_fleet_adopting": standing.adopting,
        }
        figures: Figures = {name: {(): float(value)} for name, value in now.items()}
        figures["verbatim_fleet_lease_held"] = {(worker,): float(standing.is_held)}
        if replicas is not None:
            alive = sum(each.is_alive for each in replicas)
            states: dict[Labels, float] = {("alive",): alive, ("dead",): len(replicas) - alive}
            figures["verbatim_fleet_replicas"] = states
        return figures
