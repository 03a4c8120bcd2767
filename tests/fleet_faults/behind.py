"""Three replicas behind a real proxy, and thirty people who read: what each of them saw.

    python -m tests.fleet_faults.behind killed              # one replica is killed in the middle
    python -m tests.fleet_faults.behind rolling             # each is restarted in turn, under load
    python -m tests.fleet_faults.behind killed --proxy haproxy --journal before_send

The proxy runs with its recipe of `deploy/proxies/replicas/`. Half of the people resume as docs/api.md
says, the others just read (`rolling`); all resume where a machine dies (`killed`). Prints a line for each,
and exits with 1 if anybody was hurt.
"""

import argparse
import asyncio
import json
import random
import secrets
import sys
import time
from collections.abc import Mapping, Sequence

import redis
from attrs import Factory, define

from tests.faults.oracle import Row
from tests.faults.plans import DIED
from tests.faults.seen import Seen
from tests.fleet_faults.balancers import balancer, installed
from tests.fleet_faults.oracle import Stream, judge
from tests.fleet_faults.scenarios.deploys import STOPPING
from tests.fleet_faults.scenarios.replicas import AFTER_A_DEATH, NAMES
from tests.fleet_faults.servers import EngineServers
from tests.fleet_faults.stage import Stage, ground, stage
from tests.fleet_faults.trips import OF_PROXIES, Doors, Trip, travel
from tests.proxies.running import free_port

PEOPLE = 30
_STORED = {True: "yes", False: "NO"}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fleet_faults.behind",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("killed", "rolling"))
    parser.add_argument("--proxy", default="nginx", help="nginx, haproxy, apache, caddy, …")
    parser.add_argument("--journal", choices=("follow", "before_send"), default="before_send")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    if options.proxy not in installed():
        print(f"{options.proxy} is not installed; here are: {', '.join(installed())}")
        return 2
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    show = _killed if options.what == "killed" else _rolling
    with ground() as made:
        chance = random.Random(f"{seed}/{options.what}")

        async def play() -> None:
            place = stage(made, chance, mode=options.journal, run=f"seed {seed}")
            async with place as on_it:
                await show(on_it, options.proxy)

        asyncio.run(play())
        for wrong in (*made.table.failures, *made.table.complaints):
            print(f"WRONG  {wrong}")
        print(f"repeat with --seed {seed} --proxy {options.proxy} --journal {options.journal}")
    return 0 if made.table.is_clean else 1


async def _raise(stage: Stage) -> Sequence[int]:
    """Three replicas at ports that they keep."""
    ports = [free_port() for _ in NAMES]
    made = [await stage.make(name, port=port) for name, port in zip(NAMES, ports, strict=True)]
    await asyncio.gather(*(replica.start() for replica in made))
    return ports


# --- one replica dies -----------------------------------------------------------------------------


async def _killed(stage: Stage, proxy: str) -> None:
    """Thirty people read through the proxy; a replica is killed; each goes on where the answer broke."""
    ports = await _raise(stage)
    with balancer(proxy, ports, stage.directory / "proxy") as door:
        doors = Doors(lambda: {proxy: ("127.0.0.1", door)})
        for _ in range(PEOPLE):
            words = stage.chance.randint(60, 110)
            stream = stage.stream(
                "killed", proxy, words=words, also=(DIED,), due=AFTER_A_DEATH | OF_PROXIES
            )
            stream.trips.append(Trip(stream.plan, "asks"))
        people = [
            asyncio.create_task(travel(stream.trips[0], doors, proxy)) for stream in stage.streams
        ]
        await stage.begun(1.0)
        await asyncio.sleep(1)
        ran_at = await asyncio.to_thread(_where_they_run, stage.engine)
        victim = stage.chance.choice(NAMES)
        killed_at = time.monotonic()
        stage.replicas[victim].kill(for_good=True)
        await asyncio.gather(*people)
    await stage.settle()
    for stream in stage.streams:
        stream.at = ran_at.get(stream.completion_id or "", "?")
        stream.may_lose = 10 if stream.at == victim and stage.mode == "follow" else 0
    rows = await stage.rows()
    verdicts = judge(stage.streams, rows)
    stage.table.add(verdicts, stage.mode, stage.run)
    _print_killed(stage, proxy, victim, rows, killed_at)
    await stage.stop()


def _where_they_run(engine: EngineServers) -> Mapping[str, str]:
    """Each running completion's replica, as the engine knows it."""
    with redis.Redis(port=engine.servers[0].port) as client:
        keys = list(client.scan_iter("verbatim:*:run:*", count=1000))
        told = client.mget(keys) if keys else []
    return {
        key.decode().partition("{")[2][:-1]: json.loads(value)[1]
        for key, value in zip(keys, told, strict=True)
        if value
    }


def _print_killed(
    stage: Stage, proxy: str, victim: str, rows: Sequence[Row], killed_at: float
) -> None:
    print(f"\n{PEOPLE} people read through {proxy}; replica {victim} is killed with SIGKILL\n")
    names = ("replica", "before", "was told", "after", "total", "end", "seconds", "stored", "equal")
    print(
        "reader  " + "  ".join(f"{name:>18}" if "told" in name else f"{name:>8}" for name in names)
    )
    stored = {row.completion_id: row for row in rows}
    for number, stream in enumerate(stage.streams, start=1):
        trip = stream.trips[0]
        row = stored.get(stream.completion_id or "")
        text = "".join(message.text for message in row.messages) if row else ""
        seen = "".join(each.texts.get(0, "") for each in trip.seens)
        was_cut = len(trip.seens) > 1
        cells = (
            f"{stream.at:>8}",
            f"{trip.seens[0].word_count:>8}",
            f"{_how(trip.seens[0]) if was_cut else '-':>18}",
            f"{sum(each.word_count for each in trip.seens[1:]) if was_cut else '-':>8}",
            f"{seen.count(' '):>8}",
            f"{'[DONE]' if trip.done else trip.code or 'none':>8}"[-12:],
            f"{trip.ended_at - killed_at:>8.1f}",
            f"{text.count(' '):>8}",
            f"{_STORED[seen == text]:>8}",
        )
        print(f"{number:6}  " + "  ".join(cells))


def _how(seen: Seen) -> str:
    """How a connection's client was told that it was not the end."""
    if seen.error is not None:
        return str(seen.code)
    if seen.status not in (0, 200):
        return f"status {seen.status}"
    return "clean end" if seen.whole else "connection cut"


# --- a rolling restart ----------------------------------------------------------------------------


@define
class Person:
    """One who asks again and again, and what that came to."""

    resumes: bool
    streams: list[Stream] = Factory(list)


async def _rolling(stage: Stage, proxy: str) -> None:
    """Thirty people ask again and again through the proxy, while each replica is restarted in turn."""
    ports = await _raise(stage)
    people = [Person(resumes=number % 2 == 0) for number in range(PEOPLE)]
    with balancer(proxy, ports, stage.directory / "proxy") as door:
        address = ("127.0.0.1", door)
        is_over = asyncio.Event()
        tasks = [
            asyncio.create_task(_ask_again(stage, each, proxy, address, is_over)) for each in people
        ]
        await asyncio.sleep(3)
        for replica in list(stage.replicas.values()):
            if status := await replica.drain():
                stage.complain(f"{replica.name}: exit status {status} after SIGTERM")
            await replica.start()
            await asyncio.sleep(6)  # until the proxy sends people there again
        is_over.set()
        await asyncio.gather(*tasks)
    await stage.settle()
    verdicts = judge(stage.streams, await stage.rows())
    stage.table.add(verdicts, stage.mode, stage.run)
    _print_rolling(proxy, people)
    await stage.stop()


async def _ask_again(
    stage: Stage, person: Person, proxy: str, address: tuple[str, int], is_over: asyncio.Event
) -> None:
    while not is_over.is_set():
        due = STOPPING | OF_PROXIES if person.resumes else ()
        stream = stage.stream(
            "rolling", proxy, words=stage.chance.randint(20, 80), has_key=person.resumes, due=due
        )
        trip = Trip(stream.plan, "asks" if person.resumes else "just reads")
        stream.trips.append(trip)
        person.streams.append(stream)
        doors = Doors(lambda: {proxy: address})
        await travel(trip, doors, proxy, once=not person.resumes)
        await asyncio.sleep(stage.chance.uniform(0, 0.3))


def _print_rolling(proxy: str, people: Sequence[Person]) -> None:
    print(
        f"\n{PEOPLE} people ask again and again through {proxy}; each replica is restarted in turn\n"
    )
    names = ("asked", "whole", "words", "missing", "refused", "cut", "resumed", "hurt")
    print("person  resumes  " + "  ".join(f"{name:>8}" for name in names))
    for number, person in enumerate(people, start=1):
        trips = [stream.trips[0] for stream in person.streams]
        words = sum(stream.plan.words for stream in person.streams)
        seen = sum(each.word_count for trip in trips for each in trip.seens)
        whole = sum(trip.done for trip in trips)
        every = [each for trip in trips for each in trip.seens]
        cells = (
            len(trips),
            whole,
            seen,
            words - seen,
            sum(each.status not in (0, 200) for each in every),
            sum(not each.whole for each in every),
            sum(len(trip.seens) > 1 for trip in trips),
            len(trips) - whole,
        )
        print(
            f"{number:6}  {'yes' if person.resumes else 'no':7}  "
            + "  ".join(f"{cell:>8}" for cell in cells)
        )


if __name__ == "__main__":
    sys.exit(main())
