"""Reads along what runs at other replicas, for those who read it here: `Mirrors`.

1. A completion is followed once, however many read it here, and no longer than somebody does.
2. One call waits for all that are followed (`Engine.wait`): one connection for each replica.
3. A mirror's session is played from the original's own lines, so its tape has the same chunks, to the
   byte and at the same positions.
4. A completion whose replica died has no end in its log until another replica closes it
   (`db.fleet.adoption`); then its readers are told how it ended, as recovery tells it. Where nobody does in
   good time, they are told to come back.
"""

import asyncio
import time

import structlog

from db.fleet import Engine, Entry, FleetUnavailable, Run
from db.fleet.tending import tend
from db.journal.live import LiveReplay
from service.stream.answers import Ending, ending_of
from service.stream.audience import Audience
from statemachine import Failure, SessionRecord, SessionRequest, StreamSession

log = structlog.get_logger(__name__)

_WAIT_SECONDS = 2.0
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
        after: the number of the last entry that was read.
        missed_at: when its replica was first not among the living, on the monotonic clock.
    """

    def __init__(self, run: Run, live: LiveReplay) -> None:
        session = live.first_session
        assert session is not None  # its first line has been read
        self.run = run
        self.request: SessionRequest = session.request
        self.session: StreamSession = session
        self.audience = Audience(session.request, session.transcript.tape)
        self.count = 0
        self.after = -1
        self.missed_at: float | None = None
        self._live = live
        self._look_for_end()

    @property
    def record(self) -> SessionRecord | None:
        """What it came to, once it has ended."""
        return self._live.record

    def feed(self, entry: Entry) -> None:
        """Take what came next."""
        if entry.number <= self.after or self.audience.is_over:
            return
        self.after = entry.number
        if entry.is_closing:
            self._live.end()
            self._look_for_end()
            return
        self._live.feed(entry.lines)
        if self._live.is_damaged:
            self.end(_LOG_LOST)
        else:
            self._look_for_end()
            self.audience.note_more()

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
    """

    def __init__(self, engine: Engine, lease_seconds: float) -> None:
        self._engine = engine
        self._lease_seconds = lease_seconds
        self._mirrors: dict[str, Mirror] = {}
        self._has_some = asyncio.Event()
        self._looked_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(tend(self._step, self._note_away), name="fleet mirrors")

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
        """A mirror that has all that its log has by now."""
        live, mirror = LiveReplay(), None
        after = -1
        while entries := await self._engine.read(run.completion_id, after):
            for entry in entries:
                after = entry.number
                if mirror is not None:
                    mirror.feed(entry)
                    continue
                if not entry.is_closing:
                    live.feed(entry.lines)
                if live.first_session is not None:
                    mirror = Mirror(run, live)
                    mirror.after = after
            await asyncio.sleep(0)
        return mirror

    async def _nudge(self) -> None:
        try:
            await self._engine.nudge()
        except FleetUnavailable:
            pass  # whoever waits is told the same

    async def _step(self) -> None:
        await self._has_some.wait()
        await self._follow()
        await self._look_who_lives()

    def _note_away(self, error: FleetUnavailable) -> None:
        log.warning("fleet not readable", reason=str(error), followed=len(self._mirrors))

    async def _follow(self) -> None:
        after = {
            name: mirror.after
            for name, mirror in self._mirrors.items()
            if not mirror.audience.is_over
        }
        for entry in await self._engine.wait(after, _WAIT_SECONDS):
            if (mirror := self._mirrors.get(entry.completion_id)) is not None:
                mirror.feed(entry)

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
