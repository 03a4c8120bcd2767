"""Figures of a fleet: what its parts have counted, and what is now."""

import pytest
from attrs import evolve

from db.fleet import Replica
from service.fleet.standing import Standing
from service.metrics.counts import Counts
from service.metrics.families import families
from service.metrics.fleet import FleetCounting
from tests.service.conftest import ServiceMaker
from tests.service.metrics.conftest import scraped

WELL = Standing(
    replica="a",
    token="0123ab",
    version=1,
    journal="follow",
    failure=None,
    is_held=True,
    has_rival=False,
    lag_lines=0,
    lag_seconds=0.0,
    mirrors=2,
    mirror_readers=3,
    answered=0,
    unanswered=0,
    silent_seconds=0.5,
    calls_failed=0,
    adopted=0,
    adopting=0,
    fenced=0,
    fallbacks=0,
)
COUNTED = {
    "verbatim_fleet_calls_failed_total",
    "verbatim_fleet_commands_total",
    "verbatim_fleet_adopted_total",
    "verbatim_fleet_fenced_total",
    "verbatim_fleet_limit_fallbacks_total",
}


class Told:
    """A fleet that says what a test wants."""

    def __init__(self) -> None:
        self.now = WELL
        self.replicas: tuple[Replica, ...] | None = ()

    def standing(self) -> Standing:
        return self.now

    async def seen(self, seconds: float) -> tuple[Replica, ...] | None:
        return self.replicas


def test_what_parts_have_counted_is_added_once() -> None:
    """Each time what is more than the last time; a predecessor's figures stay."""
    counts, fleet = Counts(families()), Told()
    counts.go_on_from({"verbatim_fleet_adopted_total": {(): 10.0}})
    counting = FleetCounting(counts)
    counting.count()
    counting.watch(fleet)
    fleet.now = evolve(WELL, adopted=2, answered=5, unanswered=1)
    for _ in range(2):
        counting.count()
    assert {(): 12.0} == counts.figures["verbatim_fleet_adopted_total"]
    expected = {("answered",): 5.0, ("unanswered",): 1.0}
    assert expected == counts.figures["verbatim_fleet_commands_total"]
    fleet.now = evolve(fleet.now, adopted=3)
    counting.count()
    assert {(): 13.0} == counts.figures["verbatim_fleet_adopted_total"]


async def test_what_is_now_is_read() -> None:
    """Nobody is said to be alive or dead who isn't seen."""
    counting, fleet = FleetCounting(Counts(families())), Told()
    assert {} == await counting.gauges("0")
    counting.watch(fleet)
    fleet.replicas = (
        Replica("a", "1", 1, lease_seconds=9),
        Replica("b", "2", 1, lease_seconds=9),
        Replica("c", "3", 1, lease_seconds=0),
    )
    figures = await counting.gauges("1")
    assert {("alive",): 2, ("dead",): 1} == figures["verbatim_fleet_replicas"]
    assert {("1",): 1.0} == figures["verbatim_fleet_lease_held"]
    assert {(): 1.0} == figures["verbatim_fleet_engine_up"]
    fleet.replicas, fleet.now = None, evolve(WELL, failure="gone", is_held=False, lag_seconds=7.0)
    figures = await counting.gauges("1")
    assert "verbatim_fleet_replicas" not in figures
    assert {("1",): 0.0} == figures["verbatim_fleet_lease_held"]
    assert {(): 0.0} == figures["verbatim_fleet_engine_up"]
    assert {(): 7.0} == figures["verbatim_fleet_lag_seconds"]


def test_each_metric_of_a_fleet_has_a_figure() -> None:
    """Counters are there from the start, histograms once something was measured."""
    counts = Counts(families())
    FleetCounting(counts).appended(0.001)
    with_figures = {name for name, values in counts.figures.items() if "fleet" in name and values}
    assert {*COUNTED, "verbatim_fleet_append_seconds"} == with_figures


@pytest.mark.parametrize("kind", [True, False])
def test_a_single_machine_has_none_of_them(kind: bool) -> None:
    """They are only there with a fleet."""
    assert kind is any("fleet" in name for name in families(has_fleet=kind))


async def test_nothing_of_a_fleet_is_scraped_without_one(make_service: ServiceMaker) -> None:
    """Not even its names."""
    assert "fleet" not in (await scraped(await make_service())).text
