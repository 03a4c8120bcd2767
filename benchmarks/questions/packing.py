"""Measures what a line costs on its way to a Redis: redis-py's pipeline, ours, and packing alone.

    python -m benchmarks.questions.packing

One `XADD` for each record, so many to a pipeline, against a real Redis; CPU time of this process, the best
of the rounds. Don't compare with other machines.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.stand.figures import print_table
from db.fleet.packing import packed
from db.fleet.redis_link import RedisLink, Told
from tests.redis_servers import redis_server

_LINE = b'A1b2C3d4 {"n":12,"t":1767264752.25,"e":[[3," word"]]}\n'
_RECORDS = 400


def _commands(count: int, number: int) -> list[Told]:
    return [
        ("XADD", (f"verbatim:1:log:{{chatcmpl-{each}}}", f"1-{number}", "c", 1, "l", _LINE))
        for each in range(count)
    ]


async def _of_redis_py(link: RedisLink, commands: list[Told]) -> None:
    pipeline = link.client.pipeline(transaction=False)
    for name, arguments in commands:
        pipeline.execute_command(name, *arguments)
    await pipeline.execute(raise_on_error=False)


async def _ours(link: RedisLink, commands: list[Told]) -> None:
    await link.pipelined(commands)


async def _packed(_: RedisLink, commands: list[Told]) -> None:
    packed([(name, *arguments) for name, arguments in commands])


WAYS: dict[str, Callable[[RedisLink, list[Told]], Awaitable[None]]] = {
    "redis-py's pipeline": _of_redis_py,
    "ours": _ours,
    "packing alone": _packed,
}


async def _measure(url: str, sizes: list[int], rounds: int) -> dict[str, dict[str, Any]]:
    link, number = RedisLink(url), 0
    best: dict[str, dict[str, Any]] = {name: {} for name in WAYS}
    for _ in range(rounds):
        for size in sizes:
            for name, way in WAYS.items():
                turns = max(1, _RECORDS // size)
                started = time.process_time()
                for _ in range(turns):
                    number += 1
                    await way(link, _commands(size, number))
                cost = (time.process_time() - started) / turns / size * 1e6
                key = f"{size} in a call"
                best[name][key] = min(best[name].get(key, cost), cost)
    await link.close()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sizes", default="1,5,20,100", help="records in a call")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name)) as server:
        best = asyncio.run(_measure(server.url, sizes, options.rounds))
    print_table("CPU of this process, µs a record", best)


if __name__ == "__main__":
    main()
