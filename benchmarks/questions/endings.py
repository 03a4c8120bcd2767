"""Ends many streams within a second: how are they committed, and how long does `[DONE]` wait?

    python -m benchmarks.questions.endings                       # 2,000 streams
    python -m benchmarks.questions.endings --streams 500 --json

All streams are opened and have said a word when the backend, a process of its own, is told to end
them, evenly over `--within` seconds. The last chunk of each carries the moment at which the backend
sent it together with `[DONE]` (the system's monotonic clock, which all processes share); the delay is
from there to the moment at which the client has read `[DONE]`. Transactions are counted by the
rows' own transaction ids, the time until all are committed is PostgreSQL's own.
"""

import argparse
import asyncio
import json
import time
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.stand.client import Answer, connect, steer, wait_all
from benchmarks.stand.figures import percentiles, print_table
from benchmarks.stand.machine import settle
from benchmarks.stand.plan import Plan
from benchmarks.stand.running import Server, scene, service

_OPEN_AT_ONCE = 50
_PATIENCE_SECONDS = 60.0


async def _run(port: int, upstream_port: int, count: int, within_seconds: float) -> list[Answer]:
    connections = await connect(port, count, array("q"))
    answers: list[Answer] = []
    for start in range(0, count, _OPEN_AT_ONCE):
        some = connections[start : start + _OPEN_AT_ONCE]
        asked = [connection.ask(Plan(2, shape="held")) for connection in some]
        await asyncio.gather(*(answer.started.wait() for answer in asked))
        answers += asked
    await steer(upstream_port, f"/end?within_ms={within_seconds * 1000:.0f}")
    await wait_all(answers, _PATIENCE_SECONDS)
    return answers


def _result(answers: Sequence[Answer], server: Server) -> dict[str, Any]:
    offset = time.time() - time.monotonic()
    sent = [answer.sent_ns / 1e9 + offset for answer in answers if answer.has_last]
    batches = server.query(
        "SELECT count(*), extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
        " FROM completions GROUP BY xmin ORDER BY 2"
    )
    sizes = sorted(size for size, _ in batches)
    first, last = min(sent), max(sent)
    return {
        "streams": len(answers),
        "rows": sum(sizes),
        "ended_within_seconds": round(last - first, 2),
        "transactions": len(sizes),
        "records_per_transaction": {
            "mean": round(sum(sizes) / len(sizes), 1),
            "p50": sizes[len(sizes) // 2],
            "max": sizes[-1],
        },
        "all_committed_after_first_end_seconds": round(batches[-1][1] - first, 2),
        "all_committed_after_last_end_seconds": round(batches[-1][1] - last, 2),
        "done_delay_ms": percentiles([answer.done_delay_ms for answer in answers]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--within", type=float, default=1.0, help="seconds in which they end")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    settle()
    with ExitStack() as stack:
        on = stack.enter_context(scene())
        config = {**on.config, "server": {"max_concurrent_streams": options.streams + 10}}
        port, _ = stack.enter_context(service(on.directory / "service", config))
        answers = asyncio.run(_run(port, on.backend_port, options.streams, options.within))
        result = _result(answers, on.server)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    each = result["records_per_transaction"]
    print(
        f"{result['streams']} streams ended within {result['ended_within_seconds']} s: "
        f"{result['rows']} rows in {result['transactions']} transactions\n"
        f"records per transaction: mean {each['mean']}, p50 {each['p50']}, max {each['max']}\n"
        f"all committed {result['all_committed_after_last_end_seconds']} s after the last end, "
        f"{result['all_committed_after_first_end_seconds']} s after the first"
    )
    print_table("from the backend's [DONE] to the client's, ms", {"": result["done_delay_ms"]})


if __name__ == "__main__":
    main()
