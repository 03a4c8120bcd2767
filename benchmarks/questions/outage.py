"""Stops PostgreSQL under load: do streams slow down, and is anything missing afterwards?

    python -m benchmarks.questions.outage                # a minute's outage under 50 streams a second
    python -m benchmarks.questions.outage --seconds 10 --json

Streams arrive at a steady rate before, during and after the outage (`pg_ctl stop` and `start`).
For each phase: time to first token, and the time to `[DONE]`, which waits for the commit, at most
`database.commit_timeout_seconds`. Afterwards the rows are counted, and the chunks in them.
"""

import argparse
import asyncio
import json
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.stand.client import Answer, connect, wait_all
from benchmarks.stand.figures import percentiles, print_table
from benchmarks.stand.machine import settle
from benchmarks.stand.plan import Plan
from benchmarks.stand.running import Server, scene, service

_CATCH_UP_SECONDS = 60.0
_STORED = (
    "SELECT client_key, c.state, m.content FROM completions c"
    " JOIN conversations USING (conversation_id) LEFT JOIN messages m USING (completion_id)"
)

Stored = Mapping[str, tuple[str, str | None]]
"""Key → state and content."""


_LEAD_SECONDS = 1.0
"""Streams that begin so shortly before the outage end in it, and count in it."""


async def _arrive(
    port: int, phase: str, options: argparse.Namespace, seconds: float
) -> list[Answer]:
    """Start streams at the rate for so long; wait for none."""
    plan = Plan(options.words, round(options.interval * 1e6))
    found, delays, started = [], array("q"), time.monotonic()
    for number in range(round(options.rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / options.rate - time.monotonic()))
        (connection,) = await connect(port, 1, delays)
        found.append(connection.ask(plan, f"{phase}-{time.monotonic_ns()}"))
    return found


async def _measure(
    options: argparse.Namespace, port: int, server: Server
) -> tuple[dict[str, list[Answer]], Stored, float]:
    """The streams of each phase, what was stored, and how many seconds after the outage the last
    row of the outage was there."""
    phases: dict[str, list[Answer]] = {}
    phases["before"] = await _arrive(port, "before", options, options.around)
    phases["during"] = await _arrive(port, "during", options, _LEAD_SECONDS)
    await asyncio.to_thread(server.stop)
    phases["during"] += await _arrive(port, "during", options, options.seconds)
    await asyncio.to_thread(server.start)
    back_at = time.monotonic()
    catching_up = asyncio.create_task(_caught_up(server, len(phases["during"])))
    phases["after"] = await _arrive(port, "after", options, options.around)
    await wait_all([stream for streams in phases.values() for stream in streams], 30)
    caught_up_at = await catching_up
    await asyncio.sleep(1)
    stored = {key: (state, text) for key, state, text in server.query(_STORED)}
    return phases, stored, caught_up_at - back_at


async def _caught_up(server: Server, expected: int) -> float:
    """When so many rows of the outage were there."""
    count = "SELECT count(*) FROM conversations WHERE client_key LIKE 'during-%'"
    deadline = time.monotonic() + _CATCH_UP_SECONDS
    while time.monotonic() < deadline:
        if (await asyncio.to_thread(server.query, count))[0][0] >= expected:
            break
        await asyncio.sleep(0.05)
    return time.monotonic()


def _row(streams: Sequence[Answer], stored: Stored) -> dict[str, Any]:
    ttft = percentiles([stream.ttft_ms for stream in streams])
    whole = percentiles([stream.whole_ms for stream in streams])
    shown = {stream.key or "": stream.chunks for stream in streams}
    kept = {key: (stored.get(key, ("", ""))[1] or "").count("@") for key in shown}
    return {
        "streams": len(streams),
        "no [DONE]": whole["missing"],
        "TTFT p50": ttft["p50"],
        "TTFT p99": ttft["p99"],
        "[DONE] p50": whole["p50"],
        "[DONE] p99": whole["p99"],
        "rows missing": sum(stream.key not in stored for stream in streams),
        "chunks shown": sum(shown.values()),
        "chunks lost": sum(max(0, shown[key] - kept[key]) for key in shown),
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
    settle()
    with ExitStack() as stack:
        on = stack.enter_context(scene())
        port, _ = stack.enter_context(service(on.directory / "service", on.config))
        phases, stored, caught_up = asyncio.run(_measure(options, port, on.server))
    rows = {name: _row(streams, stored) for name, streams in phases.items()}
    if options.json:
        result = {"outage_seconds": options.seconds, "rate": options.rate, "phases": rows}
        print(json.dumps({**result, "caught_up_seconds": round(caught_up, 2)}, indent=2))
        return
    print_table(
        f"PostgreSQL stopped for {options.seconds:g} s under {options.rate:g} streams/s of "
        f"{options.words} chunks; times in ms",
        rows,
    )
    print(f"every row of the outage was there {caught_up:.1f} s after PostgreSQL was back")


if __name__ == "__main__":
    main()
