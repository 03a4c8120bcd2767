"""The rows of a fleet's replicas, and what is said of those that tell nothing."""

from attrs import evolve

from db.fleet import Replica
from service.fleet.others import Told
from service.page.replicas import missing_text, replica_rows, told_of
from service.page.running import Running
from tests.service.metrics.test_fleet import WELL


def test_each_replica_has_one_row() -> None:
    """What it says of itself, else what is known of it; in the order of names."""
    here = told_of(evolve(WELL, replica="b", token="bbbbbb"), 3)
    there = told_of(evolve(WELL, replica="a", token="aaaaaa"), 0)
    known = [
        Replica("a", "aaaaaa" + "0" * 10, 1, lease_seconds=9),
        Replica("b", "bbbbbb" + "0" * 10, 1, lease_seconds=9),
        Replica("c", "cccccc" + "0" * 10, 1, lease_seconds=9),
        Replica("a", "dddddd" + "0" * 10, 1, lease_seconds=0),
    ]
    rows = replica_rows([here], Told((("a", there),), ("c",)), known)
    told = [(row["replica"], row["token"], row["state"], row.get("streams")) for row in rows]
    assert [
        ("a", "aaaaaa", "alive", 0),
        ("a", "dddddd", "dead", None),
        ("b", "bbbbbb", "alive", 3),
        ("c", "cccccc", "silent", None),
    ] == told


def test_what_is_missing_is_a_sentence() -> None:
    """By the names of who is silent; none if all is there. Viewers are told when it changes."""
    assert "" == missing_text(Told((("a", {}),)))
    silent = missing_text(Told((), ("c", "b")))
    assert "What runs at b, c can't be told now." == silent
    assert "the engine is away" in missing_text(Told(is_known=False))
    before, after = Running(1.0), Running(2.0, missing=silent)
    assert {"missing": silent} == after.change_from(before)
    assert {} == after.change_from(after)
    assert {"missing": ""} == Running(3.0).change_from(after)
