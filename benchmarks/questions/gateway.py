"""Measures what is asked of gateways: requests a second, latency, memory, start.

    python -m benchmarks.questions.gateway                # 8,000 requests of each kind, 10 at a time
    python -m benchmarks.questions.gateway --quick --contenders ours,nginx,rust

Two cores, a backend that answers at once, 8,000 requests at a concurrency of 10, once as one object
and once as ten chunks: the shape in which gateways compare themselves. Beyond it, every answer is
checked to be whole, and who keeps answers keeps them.

All run at the same time and are asked in turns, rounds in another order each. A turn ends with its
share of the requests or after some seconds; the column `requests` says how many there were. The
start is timed the second time: from the command to the end of a first answer, with whatever had to
be installed, built or migrated in place, and the files in the system's cache.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from attrs import define, field

from benchmarks.comparison.compare import DIRECT, Bench, warm_up
from benchmarks.comparison.loads import Load, calm, counting
from benchmarks.contenders import CONTENDERS, Contender, Missing, Target
from benchmarks.stand.client import Answer, Connection, connect, wait_all
from benchmarks.stand.figures import percentile, print_table
from benchmarks.stand.machine import describe, memory_bytes, settle
from benchmarks.stand.plan import STAMP, Plan
from benchmarks.stand.running import DidNotStart, scene

_STREAMED, _PLAIN = "streamed", "plain"
_CHUNKS = 10
_TURN_SECONDS = 10.0
_FIRST_ANSWER_SECONDS = 30.0

Row = dict[str, float | int | None]


@define
class Entrant:
    """A contender that runs, and its turns."""

    target: Target
    kinds: Sequence[str] = (_PLAIN, _STREAMED)
    start_ms: float | None = None
    resting_mib: float | None = None
    turns: dict[str, list[Load]] = field(factory=dict)

    def row(self, kind: str) -> Row:
        """Percentiles over all its answers, and sums over its turns."""
        turns = self.turns[kind]
        answers = [answer for turn in turns for answer in turn.answers]
        whole = [(answer.ended_ns - answer.asked_ns) / 1e6 for answer in answers if answer.ended_ns]
        good = sum(is_good(answer, kind) for answer in answers)
        cpu = sum(turn.cpu for turn in turns) / max(1, len(answers)) * 1e3
        return {
            "requests": len(answers),
            "requests/s": good / sum(turn.seconds for turn in turns),
            "p50 ms": percentile(whole, 50),
            "p99 ms": percentile(whole, 99),
            "TTFT p50 ms": percentile([answer.ttft_ms for answer in answers], 50),
            "TTFT p99 ms": percentile([answer.ttft_ms for answer in answers], 99),
            "CPU ms/request": cpu if self.target.pid is not None else None,
            "failed": len(answers) - good,
        }


def is_good(answer: Answer, kind: str) -> bool:
    """Whether all of it came: each chunk in its place and the finish reason, or an object with the
    text. Not everybody says `[DONE]` (OGX doesn't), so here the end of the body will do."""
    if kind == _STREAMED:
        has_all = answer.has_last and answer.has_finish and not answer.is_broken
        return has_all and answer.ended_ns > 0
    return answer.status == 200 and STAMP.search(answer.trouble) is not None


def plan_of(kind: str) -> bytes:
    return Plan(_CHUNKS, shape="small").request(is_streamed=kind == _STREAMED)


async def turn(target: Target, kind: str, requests: int, concurrency: int) -> Load:
    """So many requests, one after the other on each connection; fewer if the time is over."""
    load, request = Load(target), plan_of(kind)
    connections = await connect(target.port, concurrency, load.delays)
    left = iter(range(requests))

    async def ask(connection: Connection, deadline: float) -> None:
        for _ in left:
            answer = connection.send(request)
            load.answers.append(answer)
            await answer.finished.wait()
            if time.monotonic() > deadline or not is_good(answer, kind):
                return

    async with counting(load):
        deadline = time.monotonic() + _TURN_SECONDS
        await asyncio.gather(*(ask(connection, deadline) for connection in connections))
    for connection in connections:
        connection.close()
    return load


async def _first_answer(port: int) -> None:
    """Returns when an answer has come; raises `DidNotStart` if none does."""
    connections = await connect(port, 1, Load(Target("", port, None)).delays)
    answer = connections[0].send(plan_of(_STREAMED))
    await wait_all([answer], _FIRST_ANSWER_SECONDS)
    connections[0].close()
    if not is_good(answer, _STREAMED):
        raise DidNotStart(f"no whole answer: {answer.status} {answer.trouble.decode()}")


def _started(bench: Bench, contender: Contender, stack: ExitStack) -> Entrant:
    """The second start's; what the first one leaves is what a program finds every other time."""
    with contender.running(bench.place()) as target:
        asyncio.run(_first_answer(target.port))
    began = time.monotonic()
    target = stack.enter_context(contender.running(bench.place()))
    asyncio.run(_first_answer(target.port))
    start_ms = (time.monotonic() - began) * 1e3
    asyncio.run(warm_up(target))
    assert target.pid is not None
    kinds = (_PLAIN, _STREAMED) if contender.has_plain else (_STREAMED,)
    return Entrant(target, kinds, start_ms, memory_bytes(target.pid) / 2**20)


def _entrants(bench: Bench, contenders: Sequence[Contender], stack: ExitStack) -> Iterator[Entrant]:
    yield Entrant(Target(DIRECT, bench.upstream_port, None))
    for contender in contenders:
        bench.tell(f"starting {contender.name} twice")
        try:
            yield _started(bench, contender, stack)
        except (DidNotStart, Missing) as missing:
            bench.tell(f"left out: {missing}")


def measure(
    bench: Bench, contenders: Sequence[Contender], options: argparse.Namespace
) -> dict[str, dict[str, Row]]:
    """Kind of request → contender → figures; `process` has those that belong to neither kind."""
    with ExitStack() as stack:
        entrants = [*_entrants(bench, contenders, stack)]
        for number in range(options.rounds):
            shift = number % len(entrants)
            for entrant in entrants[shift:] + entrants[:shift]:
                for kind in entrant.kinds:
                    share = options.requests // options.rounds
                    load = asyncio.run(turn(entrant.target, kind, share, options.concurrency))
                    entrant.turns.setdefault(kind, []).append(load)
                    asyncio.run(calm(entrant.target))
            bench.tell(f"round {number + 1} of {options.rounds} is done")
        found = {
            kind: {each.target.name: each.row(kind) for each in entrants if kind in each.kinds}
            for kind in (_PLAIN, _STREAMED)
        }
        found["process"] = {
            each.target.name: {
                "start ms": each.start_ms,
                "memory at rest MiB": each.resting_mib,
                "memory afterwards MiB": memory_bytes(each.target.pid) / 2**20,
            }
            for each in entrants
            if each.target.pid is not None
        }
        return found


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ",".join(name for name, each in CONTENDERS.items() if not each.is_on_demand)
    add = parser.add_argument
    add("--contenders", default=default, metavar="A,B", help=f"of {', '.join(CONTENDERS)}")
    add("--requests", type=int, default=8_000, help="of each kind")
    add("--concurrency", type=int, default=10)
    add("--rounds", type=int, default=4, help="turns of each contender")
    add("--quick", action="store_true", help="800 requests in two rounds")
    add("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    if unknown := set(options.contenders.split(",")) - {*CONTENDERS}:
        parser.error(f"unknown contender {min(unknown)}; there are {', '.join(CONTENDERS)}")
    if options.quick:
        options.requests, options.rounds = 800, 2
    return options


def main() -> None:
    options = _flags()
    asked = options.contenders.split(",")
    machine = describe()
    settle()
    with scene() as stage:
        began = time.monotonic()

        def tell(text: str) -> None:
            print(f"[{time.monotonic() - began:4.0f} s] {text}", file=sys.stderr, flush=True)

        bench = Bench(stage.directory, stage.backend_port, stage.server.dsn, tell)
        found = measure(bench, [CONTENDERS[name] for name in CONTENDERS if name in asked], options)
    if options.json:
        print(json.dumps({"machine": machine, **found}, indent=1))
        return
    print("\n".join(f"{name:10} {value}" for name, value in machine.items()))
    for kind, rows in found.items():
        print_table(f"\n{kind}", rows)


if __name__ == "__main__":
    main()
