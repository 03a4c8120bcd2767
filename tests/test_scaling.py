"""The arithmetic and the simulation of docs/scaling.md do what they say."""

from attrs import evolve

from benchmarks.scaling import Assumptions, Units, limits, need, replicas_in_cells
from benchmarks.storms import Storm, simulate

UNITS, GIVEN = Units(), Assumptions()


def test_chunks_take_the_cores_that_their_cost_says() -> None:
    """What is computed by hand for one case."""
    units = evolve(UNITS, chunk_us=100.0, request_ms=0.0)
    given = evolve(GIVEN, journal="off", use=0.5, chunks_per_second=10.0)
    assert 20 == need(units, given, 10_000).replicas


def test_a_copy_costs_more_the_surer_it_is() -> None:
    """And nothing where there is none."""
    costs = [
        need(UNITS, evolve(GIVEN, journal=journal), 3000).chunk_us
        for journal in ("off", "follow", "before_send")
    ]
    assert sorted(costs) == costs
    assert UNITS.chunk_us == costs[0] < costs[1] < costs[2]


def test_more_nodes_make_a_chunk_dearer_and_cells_do_not() -> None:
    """Calls that are spread over many nodes have few lines each."""
    small, big = (need(UNITS, GIVEN, streams) for streams in (10_000, 1_000_000))
    assert big.nodes > small.nodes and big.chunk_us > small.chunk_us
    assert replicas_in_cells(UNITS, GIVEN, 1_000_000) < big.replicas


def test_a_limit_that_is_doubled_is_reached_half() -> None:
    """Shares are of one thing."""
    name = "PostgreSQL's cores"
    twice = evolve(GIVEN, postgres_cores=2 * GIVEN.postgres_cores)
    found = need(UNITS, GIVEN, 10_000)
    assert limits(found, GIVEN)[name] == 2 * limits(found, twice)[name]


def test_a_storm_is_the_same_for_the_same_seed() -> None:
    """And nobody is adopted before the lease can have ended, or answered before being read to."""
    storm = Storm(10_000, die=2)
    first, again = (simulate(storm, UNITS, GIVEN) for _ in range(2))
    assert first == again != simulate(evolve(storm, seed=2), UNITS, GIVEN)
    soonest = GIVEN.lease_seconds * 5 / 6  # it was renewed up to a sixth of a lease before
    assert first.adopted_last >= first.adopted_first > soonest
    assert first.join_last >= first.join_p50 > 0.99 * storm.join_ms / 1e3 / (1 - GIVEN.use)


def test_who_comes_at_once_waits_longer() -> None:
    """A queue is longer where the same work comes in less time."""
    slow, fast = (
        simulate(Storm(10_000, die=30, jitter=jitter), UNITS, GIVEN) for jitter in (5.0, 0.05)
    )
    assert fast.join_p99 > slow.join_p99
