"""Simulates what doesn't fit one machine: a replica or a machine dies with very many streams.

    python -m benchmarks.storms
    python -m benchmarks.storms --streams 1000000 --die 8 --jitter 2 --seed 7

An event simulation in pure Python, seeded: nothing is measured here. Each replica is one server with a
queue, as busy before as the arithmetic of docs/scaling.md allows; its work is done in the order in which
it comes. When replicas die,

- their readers come back to a living replica that the balancer draws, each within the jitter of its client;
  a reader takes a join there, and is answered when that is done;
- after a lease each dead replica is adopted by one living one, which stores its streams one after the
  other, a part at a time, between the work of its own.

Costs are flags. Their defaults come from docs/benchmarks.md: a reader that comes back takes 0.9 ms, a chunk
that is played from a journal 10 µs (here 200 of them), an answer that is recovered and saved 2.7 ms.
What isn't simulated: the network, PostgreSQL's and Redis's own queues, clients that give up.
"""

import argparse
import random
from collections.abc import Sequence

from attrs import define, frozen

from benchmarks.scaling import Assumptions, Units, replicas_in_cells


@frozen
class Storm:
    """What happens.

    Attributes:
        streams: of all replicas, spread evenly.
        die: how many replicas die at once.
        readers: who comes back, for each stream that was lost.
        jitter: seconds within which they do.
        join_ms, adopt_ms: CPU of a replica for a reader that comes back, and for a stream that is adopted.
        part: how many streams are adopted before other work gets its turn.
        seed: of all that is drawn.
    """

    streams: int
    die: int = 1
    readers: float = 1.0
    jitter: float = 2.0
    join_ms: float = 2.9
    adopt_ms: float = 2.7
    part: int = 20
    seed: int = 1


@frozen
class Outcome:
    """Seconds after the death, of the living replicas.

    Attributes:
        join_p50, join_p99, join_last: until a reader that came back was answered, from its coming.
        adopted_first, adopted_last: until a dead replica's last stream was stored.
        joins: a second, while they come.
    """

    replicas: int
    lost: int
    join_p50: float
    join_p99: float
    join_last: float
    adopted_first: float
    adopted_last: float
    joins: float


@define
class Server:
    """One living replica's queue: when it will be free, given that a share of it is taken already."""

    share_left: float
    free_at: float = 0.0

    def do(self, at: float, seconds: float) -> float:
        """When work that comes at this time is done."""
        self.free_at = max(at, self.free_at) + seconds / self.share_left
        return self.free_at


def simulate(storm: Storm, units: Units, given: Assumptions) -> Outcome:
    """What becomes of it; the same each time for the same seed."""
    chance = random.Random(storm.seed)
    replicas = replicas_in_cells(units, given, storm.streams)
    each = storm.streams / replicas
    alive = replicas - storm.die
    if alive < 1:
        raise ValueError(f"{storm.die} of {replicas} replicas can't die")
    servers = [Server(1.0 - given.use) for _ in range(alive)]
    lost = round(each * storm.die)
    events: list[tuple[float, int, int]] = [
        (chance.uniform(0.0, storm.jitter), chance.randrange(alive), 0)
        for _ in range(round(lost * storm.readers))
    ]
    for _ in range(storm.die):
        # It was renewed up to a sixth of a lease before, and each replica looks every half a second
        # (db/fleet/membership.py, db/fleet/adoption.py).
        renewal = given.lease_seconds / 6
        begins = given.lease_seconds - chance.uniform(0.0, renewal)
        begins += chance.uniform(0.0, given.look_seconds)
        events.append((begins, chance.randrange(alive), round(each)))
    waits, ends = _run(events, servers, storm)
    waits.sort()
    return Outcome(
        replicas=replicas,
        lost=lost,
        join_p50=waits[len(waits) // 2],
        join_p99=waits[len(waits) * 99 // 100],
        join_last=waits[-1],
        adopted_first=min(ends),
        adopted_last=max(ends),
        joins=len(waits) / storm.jitter,
    )


def _run(
    events: Sequence[tuple[float, int, int]], servers: Sequence[Server], storm: Storm
) -> tuple[list[float], list[float]]:
    """How long each reader waited, and when each dead replica's last stream was stored."""
    waits: list[float] = []
    ends: list[float] = []
    ahead = sorted(events, reverse=True)
    while ahead:
        at, place, streams = ahead.pop()
        if not streams:
            waits.append(servers[place].do(at, storm.join_ms / 1e3) - at)
            continue
        part = min(streams, storm.part)
        done = servers[place].do(at, part * storm.adopt_ms / 1e3)
        if part == streams:
            ends.append(done)
        else:
            _insert(ahead, (done, place, streams - part))
    return waits, ends


def _insert(ahead: list[tuple[float, int, int]], event: tuple[float, int, int]) -> None:
    """Keep what is to come in its order, the next at the end."""
    low, high = 0, len(ahead)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if ahead[middle] > event else (low, middle)
    ahead.insert(low, event)


CASES: Sequence[tuple[str, Storm]] = (
    ("10,000 streams, one replica dies", Storm(10_000)),
    ("100,000 streams, a machine of 8 dies", Storm(100_000, die=8)),
    ("1,000,000 streams, a machine of 8 dies", Storm(1_000_000, die=8)),
    ("1,000,000 streams, a tenth of all dies", Storm(1_000_000, die=750)),
    ("the same, clients come back within 0.2 s", Storm(1_000_000, die=750, jitter=0.2)),
)


def printed(cases: Sequence[tuple[str, Storm]] = CASES) -> str:
    """Markdown, as it stands in docs/scaling.md."""
    lines = [
        "| simulated | replicas | streams lost | readers answered after, p50 / p99 / last s "
        "| stored after, first / last s | joins a second |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for title, storm in cases:
        found = simulate(storm, Units(), Assumptions())
        lines.append(
            f"| {title} | {found.replicas:,} | {found.lost:,} "
            f"| {found.join_p50:.3f} / {found.join_p99:.3f} / {found.join_last:.2f} "
            f"| {found.adopted_first:.1f} / {found.adopted_last:.1f} | {found.joins:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, help="instead of the cases of docs/scaling.md")
    parser.add_argument("--die", type=int, default=1)
    parser.add_argument("--readers", type=float, default=1.0)
    parser.add_argument("--jitter", type=float, default=2.0)
    parser.add_argument("--join-ms", type=float, default=2.9)
    parser.add_argument("--adopt-ms", type=float, default=2.7)
    parser.add_argument("--seed", type=int, default=1)
    options = vars(parser.parse_args())
    if options.pop("streams") is None:
        print(printed())
        return
    storm = Storm(**{**options, "streams": parser.parse_args().streams})
    print(printed([(f"{storm.streams:,} streams, {storm.die} replicas die", storm)]))


if __name__ == "__main__":
    main()
