"""Does an outage of PostgreSQL slow streams down, and is anything missing afterwards?

    python -m benchmarks.outage                # a minute's outage under 50 streams a second
    python -m benchmarks.outage --seconds 10 --json

Streams arrive at a steady rate before, during and after the outage (`pg_ctl stop` and `start`).
For each phase: time to first token, and how long after the last word `[DONE]` came; it waits for
the commit, at most `database.commit_timeout_seconds`. Afterwards the rows are counted.
"""

import argparse
import asyncio
import json
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg2

from benchmarks.arrival import upstream
from benchmarks.running import Stream, agent, percentiles, print_table, service
from db.embedded import EmbeddedPostgres

_CATCH_UP_SECONDS = 60.0


async def _arrive(port: int, phase: str, rate: float, seconds: float) -> list[Stream]:
    """Start streams at this rate for so long; wait for none."""
    streams, started = [], time.monotonic()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        stream = Stream(f"{phase}-{number}")
        stream.task = asyncio.create_task(stream.run(port))  # type: ignore[attr-defined]
        streams.append(stream)
    return streams


async def _measure(
    options: argparse.Namespace, port: int, server: "Server"
) -> tuple[dict[str, list[Stream]], float]:
    """The streams of each phase, and how many seconds after the outage all rows were there."""
    phases: dict[str, list[Stream]] = {}
    phases["before"] = await _arrive(port, "before", options.rate, options.around)
    await asyncio.to_thread(server.stop)
    phases["during"] = await _arrive(port, "during", options.rate, options.seconds)
    await asyncio.to_thread(server.start)
    back_at = time.monotonic()
    phases["after"] = await _arrive(port, "after", options.rate, options.around)
    tasks = [stream.task for streams in phases.values() for stream in streams if stream.task]
    await asyncio.wait(tasks, timeout=30)
    expected, found = sum(map(len, phases.values())), {}
    while len(found) < expected and time.monotonic() < back_at + _CATCH_UP_SECONDS:
        await asyncio.sleep(0.1)
        found = await asyncio.to_thread(_stored, server.dsn)
    for streams in phases.values():
        for stream in streams:
            stream.stored = found.get(stream.key)
    caught_up = await asyncio.to_thread(_last_commit, server.dsn) - back_at_wall
    return phases, caught_up


def _stored(dsn: str, phase: str) -> dict[str, tuple[str, str | None]]:
    """Key → state and content of what was asked in a phase."""
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT client_key, c.state, m.content FROM completions c"
            " JOIN conversations USING (conversation_id) LEFT JOIN messages m USING (completion_id)"
            " WHERE client_key LIKE %s",
            (f"{phase}-%",),
        )
        return {key: (state, content) for key, state, content in cursor.fetchall()}


def _count(dsn: str, phase: str) -> int:
    return len(_stored(dsn, phase))


def _row(streams: list[Any]) -> dict[str, Any]:
    ttft = percentiles([stream.ttft_ms for stream in streams])
    waits = percentiles(
        [
            None if stream.done_at is None else (stream.done_at - stream.asked_at) * 1000
            for stream in streams
        ]
    )
    shown = {stream.key: stream.body.count(b'"content":"word ') for stream in streams}
    lost = sum(
        max(0, shown[stream.key] - ((stream.stored or ("", ""))[1] or "").count("word "))
        for stream in streams
    )
    return {
        "streams": len(streams),
        "no [DONE]": waits["missing"],
        "TTFT p50": ttft["p50"],
        "TTFT p99": ttft["p99"],
        "whole p50": waits["p50"],
        "whole p99": waits["p99"],
        "rows missing": sum(stream.stored is None for stream in streams),
        "words shown": sum(shown.values()),
        "words lost": lost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the outage lasts")
    parser.add_argument("--around", type=float, default=10.0, help="seconds before and after")
    parser.add_argument("--rate", type=float, default=50.0, help="streams per second")
    parser.add_argument("--words", type=int, default=10, help="chunks per answer")
    parser.add_argument("--interval", type=float, default=0.02, help="seconds between chunks")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        server = Server(directory / "postgres")
        stack.callback(server.stop)
        backend_port = stack.enter_context(upstream(options.words, options.interval))
        config = {"database": {"url": server.dsn}, "agents": [agent(backend_port)]}
        port, _ = stack.enter_context(service(directory / "service", config))
        phases, caught_up = asyncio.run(_measure(options, port, server))
    rows = {name: _row(streams) for name, streams in phases.items()}
    if options.json:
        result = {"outage_seconds": options.seconds, "rate": options.rate, "phases": rows}
        print(json.dumps({**result, "caught_up_seconds": round(caught_up, 2)}, indent=2))
        return
    print_table(
        f"PostgreSQL stopped for {options.seconds:g} s under {options.rate:g} streams/s of "
        f"{options.words} chunks; times in ms",
        rows,
    )
    print(f"every row was there {caught_up:.1f} s after PostgreSQL was back")


if __name__ == "__main__":
    main()
