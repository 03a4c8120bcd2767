"""Cuts a thousand readers off at once, and measures how they catch up and who waits meanwhile.

    python -m benchmarks.questions.returns                      # 1,000 readers, 5 rounds
    python -m benchmarks.questions.returns --readers 200 --within 0.2 --rounds 3 --json

Each reads an answer of its own, which runs (`client_gone: wait`). All connections are cut at the same
moment; each client comes back once, evenly over `--within` seconds, with the position that it had.
It has caught up when it has every chunk that the backend sent before it asked again, or has been
answered, if there was none. Every chunk is checked, to the answer's end. New streams of one chunk are
asked for at a steady pace all the while, on connections that are open: the time to their first token,
before the cut, and from the cut until the last has caught up. The readers are a process of their own.
"""

import argparse
import asyncio
import json
import time
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection as Pipe
from typing import Any

from benchmarks.comparison.holding import open_streams
from benchmarks.contenders import Target
from benchmarks.stand.client import Answer, Connection, connect, steer, wait_all
from benchmarks.stand.figures import percentile, print_table
from benchmarks.stand.machine import cpu_seconds, settle
from benchmarks.stand.plan import Plan
from benchmarks.stand.reading import beside, read_request
from benchmarks.stand.running import scene, service

_ENDLESS = 9_000_000
_CONNECTIONS = 50
"""For new streams; one that is free is taken, or another is opened."""
_CALM_SECONDS = 2.0
_PATIENCE_SECONDS = 60.0

Round = dict[str, Any]


class Returning(Connection):
    """A reader that has come back.

    Attributes:
        caught_up_ns: when it had all that was sent before it asked.
    """

    caught_up_ns = 0

    def _read_head(self, head: bytes) -> None:
        super()._read_head(head)
        self.caught_up_ns = time.monotonic_ns()

    def _read_chunks(
        self, answer: Answer, found: list[tuple[bytes, bytes, bytes]], now: int
    ) -> None:
        if int(found[0][1]) < answer.asked_ns:
            self.caught_up_ns = now
        super()._read_chunks(answer, found, now)


# --- the readers, in a process of their own -------------------------------------------------------


def _readers(pipe: Pipe, port: int, options: argparse.Namespace) -> None:
    settle()
    asyncio.run(_read(pipe, port, options))


async def _read(pipe: Pipe, port: int, options: argparse.Namespace) -> None:
    target = Target("ours", port, None)
    plan = Plan(_ENDLESS, round(options.interval * 1e6))
    connections, answers = await open_streams(target, plan, options.readers)
    pipe.send(None)
    await asyncio.to_thread(pipe.recv)
    cut_ns = time.monotonic_ns()
    for connection in connections:
        connection.close()
    coming = (
        _come_back(port, answer, cut_ns / 1e9 + options.within * number / options.readers)
        for number, answer in enumerate(answers)
    )
    back = await asyncio.gather(*coming)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while left := [answer for connection, answer in back if not connection.caught_up_ns]:
        if time.monotonic() > deadline:
            raise SystemExit(f"{len(left)} readers that came back aren't answered: {left[0]}")
        await asyncio.sleep(0.01)
    catching_up = [(connection.caught_up_ns - now.asked_ns) / 1e6 for connection, now in back]
    last_ns = max(connection.caught_up_ns for connection, _ in back)
    pipe.send((cut_ns, last_ns, catching_up))
    again = [answer for _, answer in back]
    await wait_all(again, _PATIENCE_SECONDS)
    torn = [answer for answer in again if not (answer.is_complete and answer.status == 200)]
    pipe.send([repr(answer) for answer in torn])


async def _come_back(port: int, before: Answer, at: float) -> tuple[Returning, Answer]:
    delay = at - time.monotonic()
    if delay > 0:
        await asyncio.sleep(delay)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Returning(array("q")), "127.0.0.1", port)
    request = read_request(before.completion_id, before.chunks)
    return connection, connection.send(request, first=before.chunks)


# --- new streams ----------------------------------------------------------------------------------


async def _ask_steadily(port: int, pause: float, stop: asyncio.Event) -> list[Answer]:
    request, started, asked = Plan(1).request(), time.monotonic(), list[Answer]()
    connections = await connect(port, _CONNECTIONS, array("q"))
    latest: dict[Connection, Answer] = {}
    while not stop.is_set():
        free = (each for each in connections if _is_free(latest.get(each)))
        if (connection := next(free, None)) is None:
            (connection,) = extra = await connect(port, 1, array("q"))
            connections += extra
        asked.append(connection.send(request))
        latest[connection] = asked[-1]
        connections.remove(connection)
        connections.append(connection)
        await asyncio.sleep(max(0.0, started + len(asked) * pause - time.monotonic()))
    await wait_all(asked, _PATIENCE_SECONDS)
    for connection in connections:
        connection.close()
    return asked


def _is_free(answer: Answer | None) -> bool:
    return answer is None or answer.finished.is_set()


async def _round(target: Target, backend_port: int, options: argparse.Namespace) -> Round:
    assert target.pid is not None
    stop = asyncio.Event()
    with beside(_readers, target.port, options) as pipe:
        await asyncio.to_thread(pipe.recv)
        asking = asyncio.create_task(_ask_steadily(target.port, options.pause, stop))
        await asyncio.sleep(_CALM_SECONDS)
        began_ns, cpu = time.monotonic_ns(), cpu_seconds(target.pid)
        await asyncio.sleep(options.before)
        share_before = (cpu_seconds(target.pid) - cpu) / options.before
        cpu = cpu_seconds(target.pid)
        pipe.send(None)
        cut_ns, last_ns, catching_up = await asyncio.to_thread(pipe.recv)
        cpu = cpu_seconds(target.pid) - cpu
        await asyncio.sleep(_CALM_SECONDS)
        stop.set()
        news = await asking
        await steer(backend_port, "/end?within_ms=1000")
        torn = await asyncio.to_thread(pipe.recv)
    if torn:
        raise SystemExit(f"{len(torn)} readers lost a chunk or their end: {torn[0]}")
    seconds = (last_ns - cut_ns) / 1e9
    return {
        "before": [each.ttft_ms for each in news if began_ns <= each.asked_ns < cut_ns],
        "beside": [each.ttft_ms for each in news if cut_ns <= each.asked_ns <= last_ns],
        "catching_up": catching_up,
        "seconds": seconds,
        "share_before": share_before,
        "cpu_ms_per_return": (cpu - share_before * seconds) / options.readers * 1e3,
    }


async def _measure(target: Target, backend_port: int, options: argparse.Namespace) -> list[Round]:
    return [await _round(target, backend_port, options) for _ in range(options.rounds)]


# --- what is shown --------------------------------------------------------------------------------


def _row(times: Sequence[float | None]) -> dict[str, Any]:
    known = {f"p{which}": percentile(times, which) for which in (50, 99)}
    return {"count": len(times), **known, "max": max(filter(None, times))}


def _show(rounds: list[Round], options: argparse.Namespace) -> None:
    names = {
        "TTFT before": "before",
        "TTFT beside": "beside",
        "catching up": "catching_up",
    }
    rows = {
        name: _row([value for each in rounds for value in each[key]]) for name, key in names.items()
    }
    title = f"{options.readers:,} readers come back within {options.within:g} s"
    print_table(f"{title}; {options.rounds} rounds, ms", rows)
    for each in rounds:
        print(
            f"all caught up {each['seconds']:.2f} s after the cut, at "
            f"{each['cpu_ms_per_return']:.2f} ms of CPU each; all else took "
            f"{each['share_before']:.0%} of a core; TTFT p99 "
            f"{percentile(each['before'], 99):.1f} before, {percentile(each['beside'], 99):.1f} beside"
        )
    ratio = rows["TTFT beside"]["p99"] / rows["TTFT before"]["p99"]
    print(f"TTFT p99 beside, of that before: {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--within", type=float, default=1.0, help="seconds in which they return")
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between two chunks")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between new streams")
    parser.add_argument("--before", type=float, default=4.0, help="seconds counted before the cut")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    settle()
    with ExitStack() as stack:
        on = stack.enter_context(scene())
        (backend,) = on.config["agents"]
        config = {
            **on.config,
            "agents": [{**backend, "client_gone": "wait"}],
            "server": {"max_concurrent_streams": 2 * options.readers + 100},
        }
        target = Target("ours", *stack.enter_context(service(on.directory / "ours", config)))
        rounds = asyncio.run(_measure(target, on.backend_port, options))
    if options.json:
        print(json.dumps(rounds, indent=2))
        return
    _show(rounds, options)


if __name__ == "__main__":
    main()
