"""Measures what a hundred more readers of one stream cost, and whether the first one notices.

    python -m benchmarks.questions.readers                     # 100 readers, 5 rounds of 10 seconds
    python -m benchmarks.questions.readers --readers 30 --rounds 3 --seconds 5 --json

One stream of 50 chunks a second, alone and with the others beside it, in turns. The others read in a
process of their own, from the first chunk on, and check every chunk. CPU time is the service's (user
and system, from /proc) while nobody comes or goes. The delay is from the backend's write to the first
client's read; `lag` is by how much the backend itself was late at most. Don't compare with other
machines.
"""

import argparse
import asyncio
import json
from array import array
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe
from statistics import median

from benchmarks.contenders import Target
from benchmarks.stand.client import Answer, connect, steer, wait_all
from benchmarks.stand.figures import percentile, print_table
from benchmarks.stand.machine import cpu_seconds, settle
from benchmarks.stand.plan import Plan
from benchmarks.stand.reading import beside, read_request
from benchmarks.stand.running import scene, service

_ENDLESS = 9_000_000
_INTERVAL_US = 20_000
_CALM_SECONDS = 1.0
_PATIENCE_SECONDS = 120.0

Turn = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readers", type=int, default=100, help="besides the first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="that a turn is counted")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    settle()
    alone, beside_others = _turns(options)
    result = _result(alone, beside_others, options.readers)
    if options.json:
        print(json.dumps({**result, "alone": alone, "with readers": beside_others}, indent=2))
        return
    print_table(
        f"one stream; medians of {options.rounds} rounds of {options.seconds:g} s",
        {"alone": _medians(alone), f"with {options.readers} readers": _medians(beside_others)},
    )
    for name, value in result.items():
        print(f"{name}: {value}")


def _turns(options: argparse.Namespace) -> tuple[list[Turn], list[Turn]]:
    alone: list[Turn] = []
    beside_others: list[Turn] = []
    with ExitStack() as stack:
        on = stack.enter_context(scene())
        config = {**on.config, "readers": {"max_per_completion": options.readers + 1}}
        target = Target("ours", *stack.enter_context(service(on.directory / "ours", config)))
        asyncio.run(_turn(target, on.backend_port, options.readers, 1.0))  # gets warm
        for _ in range(options.rounds):
            for readers, turns in ((0, alone), (options.readers, beside_others)):
                turn = _turn(target, on.backend_port, readers, options.seconds)
                turns.append(asyncio.run(turn))
    return alone, beside_others


async def _turn(target: Target, backend_port: int, readers: int, seconds: float) -> Turn:
    assert target.pid is not None
    delays = array("q")
    (connection,) = await connect(target.port, 1, delays)
    answer = connection.ask(Plan(_ENDLESS, _INTERVAL_US))
    await answer.started.wait()
    with ExitStack() as stack:
        pipe = None
        if readers:
            crowd = beside(_crowd, target.port, answer.completion_id, readers)
            pipe = stack.enter_context(crowd)
            await asyncio.to_thread(pipe.recv)
        await asyncio.sleep(_CALM_SECONDS)
        await steer(backend_port, "/lag")
        del delays[:]
        cpu = cpu_seconds(target.pid)
        await asyncio.sleep(seconds)
        cpu = cpu_seconds(target.pid) - cpu
        in_ms = [value / 1e6 for value in delays]
        lag_ms = float(json.loads(await steer(backend_port, "/lag"))["lag_ms"])
        await steer(backend_port, "/end")
        await wait_all((answer,), _PATIENCE_SECONDS)
        others = {} if pipe is None else await asyncio.to_thread(pipe.recv)
        if not answer.is_complete or others.pop("complete", readers) < readers:
            raise SystemExit("a stream broke off, or lost a chunk")
    connection.close()
    return {
        "cpu_us_per_chunk": cpu / len(in_ms) * 1e6,
        "delay_p50_ms": percentile(in_ms, 50) or 0.0,
        "delay_p99_ms": percentile(in_ms, 99) or 0.0,
        "lag_ms": lag_ms,
        **others,
    }


def _crowd(pipe: Pipe, port: int, completion_id: str, count: int) -> None:
    asyncio.run(_read(pipe, port, completion_id, count))


async def _read(pipe: Pipe, port: int, completion_id: str, count: int) -> None:
    """Say when all have had a chunk, and how they fared at the end."""
    delays = array("q")
    connections = await connect(port, count, delays)
    answers: list[Answer] = [
        connection.send(read_request(completion_id)) for connection in connections
    ]
    for answer in answers:
        await answer.started.wait()
    del delays[:]
    pipe.send(None)
    await wait_all(answers, 2 * _PATIENCE_SECONDS)
    in_ms = [value / 1e6 for value in delays]
    pipe.send(
        {
            "complete": sum(answer.is_complete for answer in answers),
            "readers_delay_p50_ms": percentile(in_ms, 50),
            "readers_delay_p99_ms": percentile(in_ms, 99),
        }
    )


def _medians(turns: list[Turn]) -> dict[str, float]:
    return {key: round(median(turn[key] for turn in turns), 2) for key in turns[0]}


def _result(alone: list[Turn], beside_others: list[Turn], readers: int) -> dict[str, float]:
    """Ratios, each the median of the rounds' own."""
    pairs = [*zip(alone, beside_others, strict=True)]
    key = "cpu_us_per_chunk"
    return {
        "a reader's CPU, of a first one's": round(
            median((more[key] - one[key]) / readers / one[key] for one, more in pairs), 3
        ),
        "first reader's delay p99, of that alone": round(
            median(more["delay_p99_ms"] / one["delay_p99_ms"] for one, more in pairs), 3
        ),
    }


if __name__ == "__main__":
    main()
