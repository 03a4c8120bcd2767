"""Waits between tries."""

from itertools import islice

import pytest

from statemachine.backoff import backoff


def test_each_wait_is_twice_the_one_before_up_to_the_longest() -> None:
    """Without jitter: first, twice that, four times, and so on, never over the longest."""
    assert [1, 2, 4, 5, 5] == [*islice(backoff(1.0, 5.0, lambda: 0.0), 5)]


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_jitter_adds_at_most_the_first_wait(chance: float) -> None:
    """Chance moves a wait by a part of the first wait, and never past the longest."""
    waits = [*islice(backoff(1.0, 8.0, lambda: chance), 4)]
    assert [1 + chance, 2 + chance, 4 + chance, 8] == waits


def test_waits_never_end_and_never_overflow() -> None:
    """After thousands of tries the wait is still a number, and still the longest."""
    assert {8.0} == {*islice(backoff(0.1, 8.0, lambda: 0.0), 2000, 2010)}
