"""Reads along what runs at other replicas, for those who read it here: `Mirrors`.

1. A completion is followed once, however many read it here, and no longer than somebody does.
2. One call waits for all that are followed (`Engine.wait`): one connection for each replica.
3. A mirror's session is played from the original's own lines, so its tape has the same chunks, to the
   byte and at the same positions.
4. A log may lose its tail and go on, until whoever writes it has noticed (`db.fleet.outbox`). So one with a
   gap is read again for some seconds before its readers are told to come back.
5. A completion that has ended and whose log lost its end is in the database; its readers are told to come
   back as well.
6. A completion whose replica died has no end in its log until another replica closes it
   (`db.fleet.adoption`); then its readers are told how it ended, as recovery tells it. Where nobody does in
   good time, they are told to come back.
"""

import asyncio
import time

import structlog

from db.fleet import Engine, Entry, FleetUnavailable, Run
from db.fleet.tending import Pulse, tend
from db.journal.live import LiveReplay
from service.stream.answers import Ending, ending_of
from service.stream.audience import Audience
from statemachine import Failure, SessionRecord, SessionRequest, StreamSession

log = structlog.get_logger(__name__)

_WAIT_SECONDS = 2.0
_MEND_SECONDS = 10.0
"""How long a log with a gap is read again, or one that has ended without an end."""
_AGAIN_SECONDS = 0.2
_SILENT_SECONDS = 5.0
"""After so long without a word it is looked whether a completion has ended."""
_ADOPTION_SECONDS = 5.0
"""How long the others may take to bring to an end what a dead replica ran, past two leases."""
_REPLICA_LOST = Failure(
    "answer_unavailable",
    "The machine that runs it is gone; what it has shown is being brought back. Please try again.",
    retry_after_seconds=5,
)
_LOG_LOST = Failure(
    "answer_unavailable",
    "What came of it can't be told here now; please try again.",
    retry_after_seconds=1,
)


class Mirror:
    """One completion that runs elsewhere.

    Attributes:
        request: what was asked, with all that was sent.
        audience: who reads it here.
        count: how many do.
        length: how many lines were read.
        broken_at: when its log was first found to go on after a gap, or to have no end although the
            completion has, on the monotonic clock.
        missed_at: when its replica was first not among the living, on the same.
    """

    def __init__(self, run: Run, live: LiveReplay) -> None:
        session = live.first_session
        assert session is not None  # its first line has been read
        self.run = run
        self.request: SessionRequest = session.request
        self.session: StreamSession = session
        self.audience = Audience(session.request, session.transcript.tape)
        self.count = 0
        self.length = 0
        self.broken_at: float | None = None
        self.missed_at: float | None = None
        self.fed_at = time.monotonic()
        self._live = live
        self._look_for_end()

    @property
    def record(self) -> SessionRecord | None:
        """What it came to, once it has ended."""
        return self._live.record

    def feed(self, entry: Entry) -> None:
        """Take what came next; what has been read before, in whole or in part, is passed over, and what comes
        after a gap as well."""
        if self.audience.is_over or (
            not entry.is_closing and entry.number + entry.count <= self.length
        ):
            return
        if entry.is_closing and self.broken_at is None:
            self._live.end()
            self._look_for_end()
            return
        if entry.number > self.length:
            self.note_broken()
            return
        lines = entry.lines
        if entry.number < self.length:  # a log that was sent again is cut another way
            known = self.length - entry.number
            lines = b"".join(lines.splitlines(keepends=True)[known:])
        self.length = entry.number + entry.count
        self.broken_at, self.fed_at = None, time.monotonic()
        self._live.feed(lines)
        if self._live.is_damaged:
            self.end(_LOG_LOST)
        else:
            self._look_for_end()
            self.audience.note_more()

    def note_broken(self) -> None:
        """Its log isn't whole now. If it stays so, its readers are told to come back."""
        now = time.monotonic()
        if self.broken_at is None:
            self.broken_at = now
        elif now >= self.broken_at + _MEND_SECONDS:
            self.end(_LOG_LOST)

    def end(self, failure: Failure) -> None:
        """There will be no more of it here."""
        if not self.audience.is_over:
            self.audience.end(Ending(failure))

    def _look_for_end(self) -> None:
        if self.record is not None and not self.audience.is_over:
            self.audience.end(ending_of(self.record))


class Mirrors:
    """Everything that is followed here.

    Args:
        engine: the fleet's.
        lease_seconds: how long a replica that runs what is followed may be missed.

    Attributes:
        pulse: of the waiting for what comes.
    """

    def __init__(self, engine: Engine, lease_seconds: float) -> None:
        self._engine = engine
        self._lease_seconds = lease_seconds
        self._mirrors: dict[str, Mirror] = {}
        self._has_some = asyncio.Event()
        self.pulse = Pulse()
        self._looked_at = self._checked_at = self._read_again_at = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def count(self) -> int:
        """How many are followed."""
        return len(self._mirrors)

    @property
    def readers(self) -> int:
        """How many read them here."""
        return sum(mirror.count for mirror in self._mirrors.values())

    def start(self) -> None:
        following = tend(self._step, self._note_away, self.pulse)
        self._task = asyncio.create_task(following, name="fleet mirrors")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for mirror in self._mirrors.values():
            mirror.end(_LOG_LOST)

    async def join(self, run: Run) -> Mirror | None:
        """Read a completion along from now on; whoever does calls `leave` later, once. None if its log
        isn't there. Raises FleetUnavailable."""
        mirror = self._mirrors.get(run.completion_id)
        is_new = mirror is None
        if mirror is None and (made := await self._made(run)) is not None:
            mirror = self._mirrors.setdefault(run.completion_id, made)
        if mirror is None:
            return None
        mirror.count += 1
        if is_new:
            self._has_some.set()
            await self._nudge()
        return mirror

    def leave(self, mirror: Mirror) -> None:
        """A reader has gone."""
        mirror.count -= 1
        if not mirror.count and self._mirrors.get(mirror.run.completion_id) is mirror:
            del self._mirrors[mirror.run.completion_id]
            if not self._mirrors:
                self._has_some.clear()

    async def _made(self, run: Run) -> Mirror | None:
        """A mirror that has all that its log has by now, up to a gap."""
        live, mirror = LiveReplay(), None
        after = -1
        while entries := await self._engine.read(run.completion_id, after):
            for entry in entries:
                after = entry.number
                if mirror is not None:
                    mirror.feed(entry)
                elif entry.number:
                    return None
                else:
                    live.feed(entry.lines)
                    if live.first_session is None:
                        return None
                    mirror = Mirror(run, live)
                    mirror.length = entry.count
            if mirror is not None and mirror.broken_at is not None:
                break
            await asyncio.sleep(0)
        return mirror

    async def _nudge(self) -> None:
        try:
            await self._engine.nudge()
        except FleetUnavailable:
            pass  # whoever waits is told the same

    async def _step(self) -> None:
        if not self._mirrors:
            self.pulse.rest()
            await self._has_some.wait()
            self.pulse.beat()
        await self._follow()
        await self._look_for_ends()
        await self._look_who_lives()

    def _note_away(self, error: FleetUnavailable) -> None:
        log.warning("fleet not readable", reason=str(error), followed=len(self._mirrors))

    async def _follow(self) -> None:
        after: dict[str, int] = {}
        broken: list[Mirror] = []
        for name, mirror in self._mirrors.items():
            if mirror.broken_at is not None and not mirror.audience.is_over:
                broken.append(mirror)  # one that goes on after a gap would end each waiting at once
            elif not mirror.audience.is_over:
                after[name] = mirror.length - 1
        seconds = _AGAIN_SECONDS if broken else _WAIT_SECONDS
        for entry in await self._engine.wait(after, seconds):
            if (found := self._mirrors.get(entry.completion_id)) is not None:
                found.feed(entry)
        if broken and time.monotonic() >= self._read_again_at:
            self._read_again_at = time.monotonic() + _AGAIN_SECONDS
            for mirror in broken:
                await self._read_again(mirror)

    async def _read_again(self, mirror: Mirror) -> None:
        """See whether a log is whole by now: it has gone on, or may yet, being under way."""
        length = mirror.length
        entries = await self._engine.read(mirror.run.completion_id, length - 1)
        for entry in entries:
            mirror.feed(entry)
        if mirror.length > length:
            return
        if not entries and await self._engine.is_under_way(mirror.run):
            mirror.broken_at, mirror.fed_at = None, time.monotonic()
        else:
            mirror.note_broken()

    async def _look_for_ends(self) -> None:
        """Of completions of which nothing has come for long, since what has ended may have lost its end."""
        now = time.monotonic()
        if now < self._checked_at + _SILENT_SECONDS:
            return
        self._checked_at = now
        for mirror in list(self._mirrors.values()):
            is_silent = not mirror.audience.is_over and now >= mirror.fed_at + _SILENT_SECONDS
            if is_silent and not await self._engine.is_under_way(mirror.run):
                mirror.note_broken()

    async def _look_who_lives(self) -> None:
        """An engine that was emptied hears of everybody again within a lease, and what a dead replica ran
        is brought to an end in little more; so one is gone for good when it is missed for longer."""
        now = time.monotonic()
        if now < self._looked_at + self._lease_seconds / 3:
            return
        self._looked_at = now
        alive = {each.token for each in await self._engine.replicas() if each.is_alive}
        for mirror in list(self._mirrors.values()):
            if mirror.run.token in alive or mirror.audience.is_over:
                mirror.missed_at = None
            elif mirror.missed_at is None:
                mirror.missed_at = now
            elif now >= mirror.missed_at + 2 * self._lease_seconds + _ADOPTION_SECONDS:
                run = mirror.run
                log.error("replica gone", replica=run.replica, completion_id=run.completion_id)
                mirror.end(_REPLICA_LOST)
