"""Figures: what a histogram holds, how processes' figures become one, what a successor takes over."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.metrics.counts import BOUNDS, Counts, merged, read, written
from service.metrics.families import families

FAMILIES = families()
SAVE = "verbatim_save_seconds"
SAVES = "verbatim_saves_total"


def figures(**values: Any) -> Any:
    return {f"verbatim_{name}": value for name, value in values.items()}


def test_buckets_double_from_5_ms_to_11_minutes() -> None:
    """Reasoning models think for minutes, so the bounds go far; each is twice the last."""
    assert (0.005, 655.36) == (BOUNDS[0], BOUNDS[-1])
    assert {2.0} == {above / below for below, above in pairwise(BOUNDS)}


@given(st.floats(0, 1e6))
def test_a_duration_is_in_the_bucket_of_the_first_bound_that_it_is_not_above(
    seconds: float,
) -> None:
    """`le` means at most, and what is above all bounds is counted too."""
    counts = Counts(FAMILIES)
    counts.histogram(SAVE).observe(seconds)
    (*buckets, total) = counts.figures[SAVE][()]
    place = buckets.index(1)
    below = (-math.inf, *BOUNDS)[place]
    above = (*BOUNDS, math.inf)[place]
    assert below < seconds <= above
    assert (1, seconds) == (sum(buckets), total)


def test_workers_figures_become_one() -> None:
    """Counters, histograms and most gauges add up; the worst counts of an age and of the database."""
    one = figures(
        saves_total={("saved",): 2.0},
        save_seconds={(): [1.0] * 20},
        journal_oldest_unsaved_seconds={(): 3.0},
        dead_letters={(): 4},
        database_up={(): 1},
        streams={("waiting",): 5},
        unheard_of={(): 1},
    )
    other = figures(
        saves_total={("saved",): 1.0, ("not_kept",): 1.0},
        save_seconds={(): [2.0] * 20},
        journal_oldest_unsaved_seconds={(): 1.0},
        dead_letters={(): 4},
        database_up={(): 0},
        streams={("waiting",): 6},
    )
    expected = figures(
        saves_total={("saved",): 3.0, ("not_kept",): 1.0},
        save_seconds={(): [3.0] * 20},
        journal_oldest_unsaved_seconds={(): 3.0},
        dead_letters={(): 4},
        database_up={(): 0},
        streams={("waiting",): 11},
    )
    found = {name: values for name, values in merged(FAMILIES, [one, other]).items() if values}
    assert expected == found
    assert [2.0] * 20 == other["verbatim_save_seconds"][()]


def test_a_successor_goes_on_where_its_predecessor_ended() -> None:
    """What grows is taken over, what is now isn't, and nothing whose labels have changed."""
    left = figures(
        saves_total={("saved",): 2.0},
        save_seconds={(): [1.0] * 20},
        streams={("waiting",): 5},
        attempts_total={("demo",): 1.0},
        gone_total={(): 1.0},
    )
    counts = Counts(FAMILIES)
    counts.go_on_from(read(written(left)))
    counts.counter(SAVES).add(("saved",))
    counts.histogram(SAVE).observe(0.001)
    assert 3.0 == counts.figures[SAVES][("saved",)]
    assert [2.0, 1.0] == counts.figures[SAVE][()][:2]
    assert {} == counts.figures["verbatim_streams"]
    assert {} == counts.figures["verbatim_attempts_total"]
    assert "verbatim_gone_total" not in counts.figures


@pytest.mark.parametrize("name", ["verbatim_made_up_total", SAVES])
def test_only_what_is_listed_is_counted(name: str) -> None:
    """A misspelt name, or a counter taken for a histogram, fails at the start and not at a scrape."""
    with pytest.raises((KeyError, AssertionError)):
        Counts(FAMILIES).histogram(name)
