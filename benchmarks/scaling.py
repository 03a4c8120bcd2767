"""Computes what so many streams at once need, from measured unit costs: the table of docs/scaling.md.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --chunks-per-second 25 --answer-chunks 800 --journal before_send
    python -m benchmarks.scaling --streams 5000,20000 --cell 5000 --redis-gib 32

No I/O but printing. `printed` is what stands in the document; `make docs` puts it there.
"""

import argparse
import math
from collections.abc import Mapping, Sequence

from attrs import asdict, evolve, fields, frozen

JOURNALS = ("off", "follow", "before_send")


@frozen
class Units:
    """Unit costs, of `benchmarks.questions.units` and `.fleet`; the machine stands in docs/scaling.md.

    Attributes:
        chunk_us: CPU of a replica for a chunk that is shown, without a fleet's copy.
        line_us: for its way to the engine, in a call of many.
        call_us: for such a call.
        request_ms: CPU of a replica for a request with its save.
        stream_kib: memory of a replica for an open stream.
        redis_chunk_us, redis_request_us, redis_command_us: CPU of a Redis.
        redis_chunk_bytes, redis_run_bytes: what it holds of a chunk, and of a completion besides.
        save_ms: CPU of PostgreSQL for an answer.
        save_bytes, save_chunk_bytes: WAL for an answer, and for each chunk of its tape.
        pool, redis_connections: connections of a replica to PostgreSQL, and to each Redis.
    """

    chunk_us: float = 88.0
    line_us: float = 9.0
    call_us: float = 170.0
    request_ms: float = 2.2
    stream_kib: float = 31.0
    redis_chunk_us: float = 3.7
    redis_request_us: float = 190.0
    redis_command_us: float = 2.0
    redis_chunk_bytes: float = 170.0
    redis_run_bytes: float = 4_900.0
    save_ms: float = 0.67
    save_bytes: float = 4_040.0
    save_chunk_bytes: float = 21.0
    pool: float = 10.0
    redis_connections: float = 14.0


@frozen
class Assumptions:
    """What an operator knows better; each is a flag.

    Attributes:
        chunks_per_second, answer_chunks: of a typical answer.
        streaming_share: of the time that somebody is there, how much an answer of theirs is running.
        journal: `fleet.journal`.
        use: how much of a core may be busy on average.
        lease_seconds: `fleet.lease_seconds`.
        look_seconds: how often each replica looks which of the others live.
        keep_seconds: how long a log is kept after its end.
        replica_cores: processes of a machine, one for each core.
        redis_gib: memory of a node for logs.
        postgres_cores: of the machine that PostgreSQL has.
        postgres_connections: that it allows without a pooler.
        cell: how many streams a fleet of its own has where owners are spread over several.
    """

    chunks_per_second: float = 40.0
    answer_chunks: float = 400.0
    streaming_share: float = 0.1
    journal: str = "follow"
    use: float = 0.6
    lease_seconds: float = 15.0
    look_seconds: float = 0.5
    keep_seconds: float = 600.0
    replica_cores: int = 8
    redis_gib: float = 16.0
    postgres_cores: int = 16
    postgres_connections: int = 400
    cell: int = 20_000


@frozen
class Need:
    """What so many streams take.

    Attributes:
        calls: to the engine, of one replica a second.
        chunk_us: CPU of a replica for a chunk, its copy and its share of a call included.
        redis_by_cpu, redis_by_memory: nodes, the latter without spare ones.
        membership: cores of Redis that replicas take by looking at each other.
    """

    streams: int
    people: float
    chunks: float
    requests: float
    replicas: int
    machines: int
    calls: float
    chunk_us: float
    stream_gib: float
    redis_by_cpu: int
    redis_by_memory: int
    redis_gib: float
    redis_connections: float
    postgres_cores: float
    wal_mb: float
    postgres_connections: float
    membership: float

    @property
    def nodes(self) -> int:
        return max(self.redis_by_cpu, self.redis_by_memory)


def calls_a_second(chunks: float, nodes: int, journal: str) -> float:
    """Of one replica with so many chunks a second: a call to each node each 20 ms with `follow`
    (`db.fleet.outbox.PAUSE_SECONDS`), and with `before_send` as often as a call and its answer take,
    1 ms as measured; never more than there are chunks."""
    return 0.0 if journal == "off" else min(chunks, nodes * (50 if journal == "follow" else 1000))


def need(units: Units, given: Assumptions, streams: int) -> Need:
    """What this many take, all in one fleet."""
    chunks = streams * given.chunks_per_second
    requests = chunks / given.answer_chunks
    copies = given.journal != "off"
    redis_cpu = requests * units.redis_request_us / 1e6
    held = requests * units.redis_run_bytes * given.keep_seconds
    if copies:
        redis_cpu += chunks * units.redis_chunk_us / 1e6
        answer = given.answer_chunks * units.redis_chunk_bytes
        held += requests * given.keep_seconds * answer + streams * answer / 2
    by_cpu = max(1, math.ceil(redis_cpu / given.use))
    by_memory = max(1, math.ceil(held / 2**30 / given.redis_gib))
    replicas, calls, chunk_us = _replicas(units, given, chunks, requests, max(by_cpu, by_memory))
    return Need(
        streams=streams,
        people=streams / given.streaming_share,
        chunks=chunks,
        requests=requests,
        replicas=replicas,
        machines=math.ceil(replicas / given.replica_cores),
        calls=calls,
        chunk_us=chunk_us,
        stream_gib=streams * units.stream_kib / 2**20,
        redis_by_cpu=by_cpu,
        redis_by_memory=by_memory,
        redis_gib=held / 2**30,
        redis_connections=replicas * units.redis_connections,
        postgres_cores=requests * units.save_ms / 1e3 / given.use,
        wal_mb=requests * (units.save_bytes + given.answer_chunks * units.save_chunk_bytes) / 1e6,
        postgres_connections=replicas * units.pool,
        membership=replicas**2 * units.redis_command_us / 1e6 / given.look_seconds,
    )


def _replicas(
    units: Units, given: Assumptions, chunks: float, requests: float, nodes: int
) -> tuple[int, float, float]:
    """How many, how many calls each makes a second, and what a chunk then costs; each call has fewer lines
    the more nodes there are, so it is computed until it stays."""
    replicas, calls, chunk_us = 1, 0.0, units.chunk_us
    for _ in range(100):
        calls = calls_a_second(chunks / replicas, nodes, given.journal)
        copy_us = units.line_us + units.call_us * calls / (chunks / replicas)
        chunk_us = units.chunk_us + (copy_us if given.journal != "off" else 0.0)
        cores = (chunks * chunk_us / 1e6 + requests * units.request_ms / 1e3) / given.use
        if math.ceil(cores) == replicas:
            break
        replicas = max(1, math.ceil(cores))
    return replicas, calls, chunk_us


def limits(found: Need, given: Assumptions) -> Mapping[str, float]:
    """Each single thing's load, as a share of what one of it carries; above 1 there must be more."""
    return {
        "one core of a replica": float(found.replicas),
        "one machine of replicas": found.replicas / given.replica_cores,
        "one Redis's core": float(found.redis_by_cpu),
        "one Redis's memory": found.redis_gib / given.redis_gib,
        "PostgreSQL's connections": found.postgres_connections / given.postgres_connections,
        "PostgreSQL's cores": found.postgres_cores / given.postgres_cores,
        "connections to a Redis (maxclients 10,000)": found.redis_connections / 10_000,
        "replicas that look at each other": found.membership / given.use,
    }


DO: Mapping[str, str] = {
    "one core of a replica": "`server.workers`, or more replicas",
    "one machine of replicas": "more machines behind the balancer",
    "one Redis's core": "Redis Cluster: logs spread over slots by their id",
    "one Redis's memory": "Redis Cluster, or more memory: ended logs are kept for ten minutes",
    "PostgreSQL's connections": "PgBouncer (`deploy/`)",
    "PostgreSQL's cores": "a PostgreSQL for each cell",
    "connections to a Redis (maxclients 10,000)": "cells, or a higher `maxclients`",
    "replicas that look at each other": "cells: owners spread over fleets of their own",
}


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 and value != int(value) else f"{value:.3g}"


ROWS: Sequence[tuple[str, str]] = (
    ("people who are there", "people"),
    ("chunks a second", "chunks"),
    ("requests a second", "requests"),
    ("CPU of a replica for a chunk, µs", "chunk_us"),
    ("replicas: one process, one core each", "replicas"),
    ("machines for them", "machines"),
    ("memory of their open streams, GiB", "stream_gib"),
    ("calls to Redis, of one replica a second", "calls"),
    ("Redis nodes by CPU", "redis_by_cpu"),
    ("Redis nodes by memory", "redis_by_memory"),
    ("logs in Redis, GiB", "redis_gib"),
    ("connections to each Redis node", "redis_connections"),
    ("cores of PostgreSQL", "postgres_cores"),
    ("WAL, MB a second", "wal_mb"),
    ("connections to PostgreSQL", "postgres_connections"),
    ("Redis cores for leases that are looked at", "membership"),
)


def table(units: Units, given: Assumptions, streams: Sequence[int]) -> str:
    """Markdown: a column for each number of streams in one fleet, and which limits are passed."""
    found = [need(units, given, count) for count in streams]
    lines = ["| streams at once | " + " | ".join(f"{count:,}" for count in streams) + " |"]
    lines.append("| --- |" + " ---: |" * len(streams))
    for title, key in ROWS:
        cells = " | ".join(_short(float(asdict(each)[key])) for each in found)
        lines.append(f"| {title} | {cells} |")
    return "\n".join(lines)


def passed(units: Units, given: Assumptions, streams: Sequence[int]) -> str:
    """Markdown: the limits in the order in which they come, from how many streams on, and what to do."""
    rows = []
    for name in DO:
        at = _first(units, given, name)
        rows.append((at, name))
    lines = ["| passed from | what one of it carries no more | then |", "| ---: | --- | --- |"]
    for at, name in sorted(rows):
        lines.append(f"| {_rounded(at)} streams | {name} | {DO[name]} |")
    return "\n".join(lines)


def _first(units: Units, given: Assumptions, name: str) -> float:
    """The number of streams at which a limit is reached, to a percent."""
    low, high = 1.0, 1e8
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        is_passed = limits(need(units, given, round(middle)), given)[name] > 1
        low, high = (low, middle) if is_passed else (middle, high)
    return high


def _rounded(value: float) -> str:
    digits = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return f"{round(value / digits) * digits:,}"


def by_journal(units: Units, given: Assumptions, streams: Sequence[int]) -> str:
    """Markdown: replicas with each `fleet.journal`."""
    lines = ["| replicas with | " + " | ".join(f"{count:,}" for count in streams) + " |"]
    lines.append("| --- |" + " ---: |" * len(streams))
    for journal in JOURNALS:
        other = evolve(given, journal=journal)
        cells = " | ".join(_short(need(units, other, count).replicas) for count in streams)
        lines.append(f"| `{journal}` | {cells} |")
    in_cells = " | ".join(_short(replicas_in_cells(units, given, count)) for count in streams)
    lines.append(f"| `{given.journal}`, in cells of {given.cell:,} streams | {in_cells} |")
    return "\n".join(lines)


def replicas_in_cells(units: Units, given: Assumptions, streams: int) -> int:
    """How many, where owners are spread over as many fleets as it takes."""
    cells = math.ceil(streams / given.cell)
    return cells * need(units, given, math.ceil(streams / cells)).replicas


STREAMS = (1_000, 10_000, 100_000, 1_000_000)


def printed(
    units: Units | None = None, given: Assumptions | None = None, streams: Sequence[int] = STREAMS
) -> str:
    """All of it, as it stands in docs/scaling.md."""
    units, given = units or Units(), given or Assumptions()
    costs = ", ".join(f"{key} {value:g}" for key, value in asdict(units).items())
    assumed = ", ".join(f"{key} {value}" for key, value in asdict(given).items())
    parts = [
        f"Unit costs: {costs}.\n\nAssumed: {assumed}.",
        table(units, given, streams),
        by_journal(units, given, streams),
        passed(units, given, streams),
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ",".join(map(str, STREAMS))
    parser.add_argument("--streams", default=default, help="at once, with commas")
    for each in (*fields(Units), *fields(Assumptions)):
        flag = f"--{each.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(each.default), default=each.default)
    options = vars(parser.parse_args())
    units = Units(**{each.name: options[each.name] for each in fields(Units)})
    given = Assumptions(**{each.name: options[each.name] for each in fields(Assumptions)})
    print(printed(units, given, [int(count) for count in options["streams"].split(",")]))


if __name__ == "__main__":
    main()
