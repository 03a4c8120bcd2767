"""Where a fleet's scenario plays: replicas, their engine, a backend, one PostgreSQL, clients.

`Ground` is shared by all scenarios of a run and holds what is slow to make; a `Stage` is one
scenario's own. Whatever a scenario started is ended with its stage, also when it fails.
"""

import asyncio
import hashlib
import random
import shutil
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.faults.database import Database
from tests.faults.oracle import QUERY, Row, rows_from
from tests.faults.plans import COMPLETED, Outcome, Plan
from tests.faults.upstream import Upstream
from tests.fleet_faults.namespaces import Namespaced
from tests.fleet_faults.oracle import Stream, judge
from tests.fleet_faults.replica import PLAIN, Replica
from tests.fleet_faults.servers import EngineServers, Kind, engine_servers
from tests.fleet_faults.table import Table
from tests.fleet_faults.trips import KEY, Doors, Trip, travel
from tests.fleet_faults.wires import Address, Ends, Loopback, Proxied, Wires

LEASE_SECONDS = 3.0
DRAIN_SECONDS = 12.0
SETTLE_SECONDS = 30.0
"""More than a lease and 5 s, in which a dead replica's answers are to be adopted."""
FOLLOW_SECONDS = 1.0
"""What a machine that dies may take with it under `follow`: what was said in so long. Mostly it is a word or
two; a second where all of this shares two cores with others."""
_FINALS_AT_ONCE = 12
_AHEAD = frozenset(("position_ahead",))


class Ground:
    """What all scenarios share. Streams are numbered through the whole run, so that no two rows of its
    one database can be confused.

    Attributes:
        has_namespaces: this is a network namespace of the run's own, so replicas can be hosts.
    """

    def __init__(self, directory: Path, *, has_namespaces: bool = False) -> None:
        self.directory = directory
        self.has_namespaces = has_namespaces
        self.table = Table()
        self.numbers = count(1)
        self.stages = count(1)
        self.database = Database(directory / "postgres")


@contextmanager
def ground(*, has_namespaces: bool = False) -> Iterator[Ground]:
    """A ground in a directory of its own, which is removed."""
    with TemporaryDirectory(prefix="fleet-faults-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL's user must get through
        made = Ground(directory, has_namespaces=has_namespaces)
        try:
            yield made
        finally:
            made.database.end()


class Stage:
    """One scenario's surroundings.

    Args:
        ground: what is shared.
        chance: the only source of randomness, so that a seed repeats everything we decide.
        mode: `fleet.journal`.
        engine: what replicas share.
        run: the name of this round, for the table.
        scale: how large to be; 1 is the default, less is quicker.
        cuts: its replicas' wires can be cut.
    """

    def __init__(
        self,
        ground: Ground,
        chance: random.Random,
        *,
        mode: str,
        engine: EngineServers,
        run: str,
        scale: float,
        cuts: bool,
    ) -> None:
        self.ground = ground
        self.chance = chance
        self.mode = mode
        self.engine = engine
        self.scale = scale
        self.run = run
        self.table = ground.table
        self.upstream = Upstream()
        self.directory = ground.directory / f"stage-{next(ground.stages)}"
        self.directory.mkdir()
        self.replicas: dict[str, Replica] = {}
        self.streams: list[Stream] = []
        self.doors = Doors(self._addresses)
        self.limits: dict[str, Any] = {}
        self._cuts = cuts
        self._wires: Wires | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def many(self, number: int, least: int = 1) -> int:
        """So many, scaled."""
        return max(least, round(number * self.scale))

    # --- replicas -----------------------------------------------------------------------------

    @property
    def wires(self) -> Wires:
        if self._wires is None:
            database = self.ground.database
            base = self.upstream.base_url
            ends = Ends(self.engine.url, database.dsn, database.sockets, base)
            if not self._cuts:
                self._wires = Loopback(ends)
            elif self.ground.has_namespaces:
                self._wires = Namespaced(ends)
            else:
                self._wires = Proxied(ends)
            if self._cuts:
                self.table.notes[f"cuts are made by {self._wires.how}"] = None
        return self._wires

    async def raise_replicas(self, *names: str, program: Sequence[str] = PLAIN) -> None:
        """Have replicas of these names serve, all at once."""
        made = [await self.make(name) for name in names]
        await asyncio.gather(*(replica.start(program) for replica in made))

    async def make(self, name: str, *, port: int = 0) -> Replica:
        """A replica that doesn't run yet."""
        place = await self.wires.place(name)
        directory = self.directory / name
        directory.mkdir()
        config = self.config(place.dsn, place.backend_url)
        config["server"]["host"] = place.host
        config["fleet"]["url"] = place.redis_url
        config["fleet"]["replica"] = name
        replica = Replica(name, directory, config, self.wires, command=place.command, port=port)
        self.replicas[name] = replica
        return replica

    def config(self, dsn: str, backend_url: str) -> dict[str, Any]:
        """What all replicas have in common."""
        seconds = {"connect_seconds": 5, "first_token_seconds": 20, "idle_seconds": 20}
        agent = {
            "kind": "openai",
            "base_url": backend_url,
            "api_key_env": None,
            "retries": 0,
            "circuit": None,  # what breaks for one stream is no reason to spare the others
            "timeouts": {**seconds, "total_seconds": 60},
            "name": "finish",
            "models": ["finish"],
        }
        caller = {"name": "matrix", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}
        return {
            "server": {"drain_timeout_seconds": DRAIN_SECONDS},
            "sse": {"keep_alive_interval_seconds": 0.25, "send_timeout_seconds": 5},
            "database": {"url": dsn, "pool_max_size": 4, "commit_timeout_seconds": 0.5},
            "agents": [agent],
            "auth": {"api_keys": [caller]},
            "client_gone": "finish",
            "idempotency": {"client_gone": "finish"},
            "limits": self.limits,
            "fleet": {"journal": self.mode, "lease_seconds": LEASE_SECONDS},
        }

    def _addresses(self) -> dict[str, Address]:
        return {name: each.address for name, each in self.replicas.items() if each.is_up}

    # --- streams ------------------------------------------------------------------------------

    def stream(
        self,
        fault: str,
        at: str,
        *,
        also: Collection[Outcome] = (),
        due: Collection[str] = (),
        dies: bool = False,
        **fields: Any,
    ) -> Stream:
        """A stream to be asked for at a replica.

        Args:
            also: ends that would be true beside that of the backend.
            due: codes that its clients are excused for.
            dies: the replica dies and doesn't come back.
        """
        chance = self.chance
        told = {
            "words": chance.randint(30, 110),
            "interval_seconds": 0.05,
            "has_key": chance.random() < 0.5,
            **fields,
        }
        plan = Plan(
            number=next(self.ground.numbers),
            fault=fault,
            moment=at,
            expected=frozenset((COMPLETED, *also)),
            model="finish",
            joins_at=chance.randint(2, 20),
            **told,
        )
        self.upstream.add(plan)
        allowed = {
            "off": plan.words,
            "follow": round(FOLLOW_SECONDS / max(plan.interval_seconds, 0.001)),
            "before_send": 0,
        }[self.mode]
        stream = Stream(
            plan=plan,
            at=at,
            due=frozenset((*due, *(_AHEAD if also and allowed else ()))),
            may_lose=allowed if dies else 0,
            takes=allowed if also else 0,
            may_grow=bool(also),
        )
        self.streams.append(stream)
        return stream

    def play(
        self,
        stream: Stream,
        *,
        within_seconds: float = 1.0,
        readable_at: Sequence[str] | None = None,
        asks_also_at: str | None = None,
    ) -> None:
        """Have a client ask, some time from now, and two others read along at other replicas.

        Args:
            readable_at: the replicas that its clients go to; None: all.
            asks_also_at: another client asks for the same there, at the same instant, and nobody reads
                along.
        """
        pause = self.chance.uniform(0, within_seconds)
        names = readable_at if readable_at is not None else list(self.replicas)
        if asks_also_at is None:
            playing = self._play(stream, pause, names)
        else:
            playing = self._play_twice(stream, pause, asks_also_at)
        self._tasks.append(asyncio.create_task(playing))

    async def _play(self, stream: Stream, pause: float, names: Sequence[str]) -> None:
        await asyncio.sleep(pause)
        first = Trip(stream.plan, "asks")
        stream.trips.append(first)
        others = [name for name in names if name != stream.at] or [stream.at]
        doors = Doors(lambda: {k: v for k, v in self._addresses().items() if k in names})
        async with asyncio.TaskGroup() as group:
            group.create_task(travel(first, doors, stream.at))
            if self.mode == "off":
                return  # nobody can read along
            for place, start in ((0, 0), (1, stream.plan.joins_at)):
                door = others[(stream.plan.number + place) % len(others)]
                group.create_task(self._join(stream, first, start, door, doors))

    async def _play_twice(self, stream: Stream, pause: float, other: str) -> None:
        await asyncio.sleep(pause)
        stream.trips += [Trip(stream.plan, "asks"), Trip(stream.plan, f"asks the same at {other}")]
        first, second = stream.trips
        await asyncio.gather(
            travel(first, self.doors, stream.at), travel(second, self.doors, other)
        )

    async def _join(self, stream: Stream, first: Trip, start: int, door: str, doors: Doors) -> None:
        while (name := _id_of(first)) is None or first.position < start:
            if first.is_over:
                return
            await asyncio.sleep(0.01)
        kind = "joins in the middle" if start else "reads from the start"
        trip = Trip(stream.plan, kind, start=start, completion_id=name)
        stream.trips.append(trip)
        await travel(trip, doors, door)

    async def begun(self, share: float = 0.6, streams: Sequence[Stream] | None = None) -> None:
        """Once this share of the streams has begun to be shown, and some time more."""
        watched = self.streams if streams is None else streams
        async with asyncio.timeout(30):
            while sum(_is_shown(each) for each in watched) < share * len(watched):
                await asyncio.sleep(0.01)
        await asyncio.sleep(self.chance.uniform(0, 0.8))

    async def played(self) -> None:
        """Once every client has seen an end, or waited for too long."""
        await asyncio.gather(*self._tasks)
        self._tasks.clear()

    async def harm(self, act: Callable[..., object], *arguments: Any) -> None:
        """Do something that blocks while streams go on."""
        await asyncio.to_thread(act, *arguments)

    # --- the end ------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Let the clients end, settle, read everything once more at every replica, judge, stop."""
        await self.played()
        await self.settle()
        await self._read_again()
        self.table.add(judge(self.streams, await self.rows()), self.mode, self.run)
        await self.stop()

    async def stop(self) -> None:
        """SIGTERM for all that run; a clean stop leaves no journal behind."""
        for replica in [each for each in self.replicas.values() if each.is_up]:
            status = await replica.drain()
            if status != 0:
                self.complain(f"{replica.name}: exit status {status} after SIGTERM")
            if left := replica.journals():
                self.complain(f"{replica.name}: a clean stop left {len(left)} journals")

    async def settle(self) -> None:
        """Until all that run are at rest, and every answer that was shown has a row."""
        why = "nobody was asked"
        until = time.monotonic() + SETTLE_SECONDS
        while why and time.monotonic() < until:
            await asyncio.sleep(0.1)
            up = [each for each in self.replicas.values() if each.is_up]
            why = "; ".join(filter(None, [await each.unsettled() for each in up]))
            why = why or self._unstored(await self.rows())
        if why:
            self.complain(f"not settled after {SETTLE_SECONDS:g} s: {why}")

    def _unstored(self, rows: Sequence[Row]) -> str:
        known = {row.completion_id for row in rows}
        # All that was shown of the others may have been taken along.
        shown = [each for each in self.streams if _most_shown(each) > each.may_lose + 1]
        missing = [each for each in shown if each.completion_id not in known]
        return f"{len(missing)} answers without a row" if missing else ""

    async def rows(self) -> Sequence[Row]:
        keys = [stream.plan.key for stream in self.streams]
        ids = [stream.completion_id or "" for stream in self.streams]
        found = await asyncio.to_thread(self.ground.database.execute, QUERY, (keys, ids))
        return rows_from(found)

    async def _read_again(self) -> None:
        room = asyncio.Semaphore(_FINALS_AT_ONCE)

        async def again(stream: Stream, name: str) -> None:
            kind = f"from the start at {name}, after the fault"
            trip = Trip(stream.plan, kind, completion_id=stream.completion_id)
            stream.finals.append(trip)
            here = Doors(lambda: {name: self.replicas[name].address})
            async with room:
                await travel(trip, here, name)

        known = [stream for stream in self.streams if stream.completion_id is not None]
        up = [name for name, replica in self.replicas.items() if replica.is_up]
        await asyncio.gather(*(again(stream, name) for stream in known for name in up))

    def hold_limit(self, fault: str, exceeded: int, said: str) -> None:
        """Note by how much a limit was exceeded by the streams that were asked for until now."""
        streams, self.streams = len(self.streams), []
        self.table.add_limit(fault, self.mode, self.run, streams, exceeded, said)

    def complain(self, what: str) -> None:
        self.table.complaints.append(f"[{self.mode}, {self.run}] {what}")

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for replica in self.replicas.values():
            replica.end()
            for complaint in replica.complaints:
                self.complain(complaint)
        if self._wires is not None:
            await self._wires.close()
        await self.upstream.stop()


def _id_of(trip: Trip) -> str | None:
    if trip.completion_id is None and trip.seens:
        raw = trip.seens[-1].raw
        begin = raw.find(b"chatcmpl-")
        if raw.startswith(b"HTTP/1.1 200") and begin >= 0 and len(raw) >= begin + 33:
            return raw[begin : begin + 33].decode()
    return trip.completion_id


def _is_shown(stream: Stream) -> bool:
    return any(trip.position > trip.start for trip in stream.trips)


def _most_shown(stream: Stream) -> int:
    """How many chunks any client has had."""
    return max((trip.position for trip in stream.trips), default=0)


@asynccontextmanager
async def stage(
    ground: Ground,
    chance: random.Random,
    *,
    mode: str,
    run: str,
    engine: Kind = "redis",
    scale: float = 1.0,
    cuts: bool = False,
) -> AsyncIterator[Stage]:
    """A stage for one scenario; its directory is removed unless something went wrong on it."""
    # The service is what is tested. What plays with it shall not be late because of asyncio's checks.
    asyncio.get_running_loop().set_debug(False)
    place = ground.directory / f"engine-{next(ground.stages)}"
    with engine_servers(engine, place) as servers:
        made = Stage(ground, chance, mode=mode, engine=servers, run=run, scale=scale, cuts=cuts)
        await made.upstream.start()
        before = ground.table.wrong
        try:
            yield made
        finally:
            await made.close()
    if ground.table.wrong == before:
        shutil.rmtree(made.directory, ignore_errors=True)
