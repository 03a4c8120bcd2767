"""Brings to an end what dead replicas left: `Adoption`.

Every replica looks who is dead; one of them takes that one's completions over, plays their logs as recovery
plays a journal, and hands the records to its own saver. The rules:

1. A replica is dead once its lease has run out twice: at the engine, and as it was last seen there by who
   looks, so that an engine that forgets leases kills nobody: whoever lives has renewed its own by then.
   Whoever couldn't look for a while, since the engine was away or it was itself stopped, gives everybody a
   whole lease: they may just be coming back, too.
2. A log is closed before it is read (`Engine.fence`). So what is adopted is all that there will ever be
   in it, and a replica that was only cut off learns so that a completion isn't its own any more.
3. A completion that has no end in its log ends as `process_died`. Of a log with a gap only what is before it
   is taken. The dead machine's own journal may have more: then the longer record wins (`db.store`).
4. It is under way until its record is committed. If the adopter is killed before that, the next one
   starts over; saving twice is harmless.
5. A batch at a time is in memory, and playing it lets others have their turn.
6. What has no log, as with `fleet.journal: off`, is its own machine's to bring back. Another version's
   replicas are left to that version.

Never here: what follows for those who read.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from db.fleet.contract import VERSION, Engine, FleetUnavailable, Replica
from db.fleet.outbox import KEEP_SECONDS
from db.fleet.tending import tend
from db.journal.replay import Replay
from db.journal.survey import Copied
from statemachine import SessionRecord

log = structlog.get_logger(__name__)

_FENCED_AT_ONCE = 500
_AT_ONCE = 200
"""Completions that are played and saved at a time: as many as the saver takes in a transaction."""
_AT_ONCE_BYTES = 16 * 1024 * 1024
"""About so many bytes of logs are played at a time; a larger log alone."""
_READS_AT_ONCE = 10
_AGAIN_LEASES = 4
"""After so many leases it is looked again whether what couldn't be ended has been stored."""
_PAUSE_SECONDS = 0.5
"""Between two looks, or a sixth of a lease if that is less."""

Save = Callable[[SessionRecord], "asyncio.Future[None]"]
IsStored = Callable[[str], Awaitable[bool]]
_T = TypeVar("_T")


class Adoption:
    """One replica's looking after dead ones.

    Args:
        engine: the fleet's.
        lease_seconds: the length of everybody's lease.
        save: hands a record over; its future is done once that is committed or set aside, and raises if
            it could be neither (`db.saver.Saver.save`).
        is_stored: whether there is known to be a row of a completion, be it saved by whom it may. Doesn't
            raise.

    Attributes:
        adopted: completions that were brought to an end here so far.
        replicas: dead replicas whose completions were.
        adopting: completions that are being brought to one now.
        strangers: the living of another version: name → version.
    """

    def __init__(
        self, engine: Engine, lease_seconds: float, save: Save, is_stored: IsStored
    ) -> None:
        self.adopted = 0
        self.replicas = 0
        self.adopting = 0
        self.strangers: Mapping[str, int] = {}
        self._engine = engine
        self._lease_seconds = lease_seconds
        self._save = save
        self._is_stored = is_stored
        self._pause_seconds = min(lease_seconds / 6, _PAUSE_SECONDS)
        self._ends_at: dict[str, float] = {}
        """Token → when its lease ends, as it was last seen."""
        self._looked_at = float("-inf")
        self._patient_until = 0.0
        self._not_before: dict[str, float] = {}
        self._left_alone: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(tend(self._step, self._note_away), name="fleet adoption")

    async def stop(self) -> None:
        """End. What isn't committed yet is left to another, or to this one's saver."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _note_away(self, error: FleetUnavailable) -> None:
        self._looked_at = float("-inf")

    # --- who is dead ------------------------------------------------------------------------

    async def _step(self) -> None:
        await asyncio.sleep(self._pause_seconds)
        for dead in await self._dead():
            await self._adopt(dead)

    async def _dead(self) -> Sequence[Replica]:
        """Those whose completions are to be seen to now."""
        replicas = await self._engine.replicas()
        self._note_strangers(replicas)
        now = time.monotonic()
        if now > self._looked_at + self._lease_seconds / 2:  # less costs nobody a lease
            self._patient_until = now + self._lease_seconds
        self._looked_at = now
        self._ends_at = {each.token: self._end_of(each, now) for each in replicas}
        self._not_before = {
            token: at for token, at in self._not_before.items() if token in self._ends_at
        }
        if now < self._patient_until:
            return ()
        return [
            each
            for each in replicas
            if not each.is_alive
            and each.token != self._engine.token
            and now >= self._ends_at[each.token]
            and now >= self._not_before.get(each.token, 0.0)
            and self._is_of_this_version(each)
        ]

    def _end_of(self, replica: Replica, now: float) -> float:
        """When the lease ends that was last seen of it; that of one never seen alive may just be lost."""
        known = self._ends_at.get(replica.token)
        if replica.is_alive:  # a copy that became the master may lack the last renewals
            return max(known or 0.0, now + replica.lease_seconds)
        return now + self._lease_seconds if known is None else known

    def _note_strangers(self, replicas: Sequence[Replica]) -> None:
        """Each that is new is said."""
        known = self.strangers
        self.strangers = {
            each.name: each.version
            for each in replicas
            if each.is_alive and each.version != VERSION
        }
        for name, version in self.strangers.items():
            if known.get(name) != version:
                log.warning("replica of another version", replica=name, version=version)

    def _is_of_this_version(self, dead: Replica) -> bool:
        if dead.version == VERSION:
            return True
        if dead.token not in self._left_alone:
            self._left_alone.add(dead.token)
            log.warning("dead replica left alone", replica=dead.name, version=dead.version)
        return False

    # --- what it left -----------------------------------------------------------------------

    async def _adopt(self, dead: Replica) -> None:
        if not await self._engine.take_over(dead, self._lease_seconds):
            return
        names = [run.completion_id for run in await self._engine.left_by(dead.token)]
        if names:
            log.warning("adopting", replica=dead.name, completions=len(names))
        for part in _slices(names, _FENCED_AT_ONCE):
            await self._engine.fence(part)  # all of them first: so readers are told at once
        self.adopting, count = len(names), 0
        try:
            for batch in _slices(names, _AT_ONCE):
                await self._engine.take_over(dead, self._lease_seconds)
                count += await self._end_all(dead, batch)
                self.adopting -= len(batch)
        finally:
            self.adopting = 0
        if names:
            self.replicas += count > 0
            log.info("adopted", replica=dead.name, completions=count, of=len(names))
        if await self._engine.left_by(dead.token):
            self._not_before[dead.token] = time.monotonic() + _AGAIN_LEASES * self._lease_seconds
        else:
            await self._engine.bury(dead)

    async def _end_all(self, dead: Replica, names: Sequence[str]) -> int:
        """Bring these to an end, whose logs are closed; how many of them had a log that says something."""
        saves: dict[str, asyncio.Future[None]] = {}
        held: list[bytes] = []
        for part in _slices(names, _READS_AT_ONCE):
            held += await asyncio.gather(*map(self._read, part))
            if sum(map(len, held)) >= _AT_ONCE_BYTES:
                saves.update(await self._handed_over(held))
                held = []
                await self._wait_for(dead, saves)
        saves.update(await self._handed_over(held))
        await self._wait_for(dead, saves)
        done = [name for name, save in saves.items() if save.exception() is None]
        if len(done) < len(saves):
            log.error("adopted completions not kept", count=len(saves) - len(done))
        self.adopted += (count := len(done))
        done += [name for name in names if name not in saves and await self._is_over(name)]
        await self._engine.finish(dead.token, done, KEEP_SECONDS)
        return count

    async def _read(self, completion_id: str) -> bytes:
        """The lines of a closed log, up to the first gap."""
        found: list[bytes] = []
        after, expected = -1, 0
        while entries := await self._engine.read(completion_id, after):
            for entry in entries:
                after = entry.number
                if entry.is_closing:
                    return b"".join(found)
                if entry.number != expected:
                    log.error("log has a gap", completion_id=completion_id, line=expected)
                    return b"".join(found)
                expected += entry.count
                found.append(entry.lines)
        return b"".join(found)

    async def _handed_over(self, logs: Sequence[bytes]) -> dict[str, "asyncio.Future[None]"]:
        """Play these logs, and hand the saver what came of each."""
        path = Path("log")  # names them where a line isn't understood
        replay = Replay([Copied(path, data=lines) for lines in logs if lines])
        return {record.completion_id: self._save(record) async for record in replay.records()}

    async def _wait_for(self, dead: Replica, saves: Mapping[str, "asyncio.Future[None]"]) -> None:
        """Return once all of these are done, well or not. Stays the adopter meanwhile."""
        left = {save for save in saves.values() if not save.done()}
        while left:
            _, left = await asyncio.wait(left, timeout=self._lease_seconds / 3)
            if left:
                await self._engine.take_over(dead, self._lease_seconds)

    async def _is_over(self, completion_id: str) -> bool:
        """True of a completion without a log if it was deleted, or is stored."""
        if await self._engine.find(completion_id) is None:
            return True
        return await self._is_stored(completion_id)


def _slices(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
