"""Sends what this replica's journal gets to the engine too: `Outbox`.

Nobody waits for it but whoever wants to (`sent`), and what can't be sent now is sent later, in its order:
what is too much for memory meanwhile is read from the local journal, which has it all.

1. One task sends. All that came in a turn of the loop, of however many completions, goes in one call.
2. Past `MOST_HELD_BYTES` a completion's lines aren't held any more: it is *behind*. Once the engine is
   back, the lines that its log lacks are read from the journal, until it has all.
3. What has ended is told after its lines, so nobody finds a log without its end.
4. An engine may lose what it had acknowledged, as in a failover. So it is looked every some seconds whether
   another answers (`Engine.lost_at`), and after that, and after each failure, whether the log of all
   that runs is whole (`Engine.mend`); what is missing is sent from the journal.
5. What the engine takes no more lines of is another replica's by now, which took this one for dead
   (`db.fleet.adoption`): nothing more of it is sent, and whoever shows it is told so, before anybody who
   waits for its lines.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog

from db.fleet.contract import Appended, Engine, Entry, FleetUnavailable, Run
from db.fleet.health import Waiting
from db.fleet.tending import Pulse, tend
from db.journal.reading import line_in, name_of, read_sizes

log = structlog.get_logger(__name__)

MOST_HELD_BYTES = 16 * 1024 * 1024
"""Of lines that wait for the engine."""
MOST_AT_ONCE = 500
"""Entries in one call, or completions that have ended."""
MOST_BEHIND = 200
"""Completions whose missing lines are looked for at a time."""
LOOK_SECONDS = 2.0
"""Between two looks at who answers."""
PAUSE_SECONDS = 0.02
"""Between two calls, where nobody waits for what they send: one costs as much CPU as twenty lines."""
KEEP_SECONDS = 600.0
"""How long a log can be read after its completion was stored; the row has the tape."""

SegmentsOf = Callable[[Sequence[str]], list[Path]]
"""The journal's files that hold these completions (`db.journal.Journal.segments_of`)."""


class Outbox:
    """The way of one process's lines to the engine.

    Args:
        engine: where to.
        replica: this process's name.
        copies_lines: False: it is only told what runs here.
        pause_seconds: from the beginning of a call to the next, which goes sooner if it tells of a
            completion that is about to begin. After a silence the first goes at once.

    Attributes:
        segments_of: set by the journal whose lines these are.
        note_fenced: told of completions that another replica has brought to an end. Must not raise.
        fenced: how many those were so far.
        failure: why the last call failed; None while all go.
        note_append: told how many seconds each call took that added lines.
        mended: how many logs had to be sent again, in whole or from where they broke off.
        pulse: of the looks at who answers.
    """

    def __init__(
        self,
        engine: Engine,
        replica: str,
        *,
        copies_lines: bool = True,
        pause_seconds: float = 0.0,
    ) -> None:
        self.segments_of: SegmentsOf = lambda _: []
        self.note_fenced: Callable[[Collection[str]], None] = lambda _: None
        self.fenced = 0
        self.failure: str | None = None
        self.note_append: Callable[[float], None] = lambda _: None
        self._waiting = Waiting()
        self.mended = 0
        self.pulse = Pulse()
        self._engine = engine
        self._replica = replica
        self._copies_lines = copies_lines
        self._pause_seconds = pause_seconds
        self._pause_ends = 0.0
        self._begins = asyncio.Event()
        self._runs: dict[str, Run] = {}
        self._untold: dict[str, Run] = {}
        self._entries: list[Entry] = []
        self._held_bytes = 0
        self._lengths: dict[str, int] = {}
        self._behind: dict[str, int] = {}
        """Completion → how many of its lines aren't held."""
        self._whole: dict[str, int] = {}
        """Completion → how many lines its log has, of those behind, as long as nothing has failed."""
        self._is_doubted, self._lost_at = False, float("-inf")
        self._fenced: set[str] = set()
        self._ended: dict[str, None] = {}
        self._added = self._sent = 0
        self._has_work = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._waiters: list[tuple[int, Callable[[], None]]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Outbox of {self._replica}, {self._added - self._sent} to send>"

    @property
    def lag(self) -> int:
        """How many lines the engine doesn't have yet."""
        return self._added - self._sent

    @property
    def oldest_seconds(self) -> float:
        """About how long the oldest of these has waited; 0 if there is none."""
        return self._waiting.oldest_seconds

    # --- what the journal tells -------------------------------------------------------------

    def begin(self, completion_id: str, owner: str) -> None:
        """A completion is about to have lines."""
        run = Run(completion_id, owner, self._replica, self._engine.token)
        self._runs[completion_id] = self._untold[completion_id] = run
        self._lengths[completion_id] = 0
        self._begins.set()
        self._note_work()

    def give_up(self, completion_id: str) -> None:
        """It couldn't begin."""
        for known in (self._runs, self._untold, self._lengths):
            known.pop(completion_id, None)

    def add(self, completion_id: str, number: int, count: int, lines: bytes) -> None:
        """It has these lines more."""
        if not self._copies_lines or completion_id not in self._lengths:
            return
        self._lengths[completion_id] = number + count
        self._added += count
        if completion_id in self._behind or self._held_bytes >= MOST_HELD_BYTES:
            self._behind[completion_id] = self._behind.get(completion_id, 0) + count
            self._note_work()
            return
        self._entries.append(Entry(completion_id, number, count, lines))
        self._held_bytes += len(lines)
        self._note_work()

    def end(self, completion_ids: Sequence[str]) -> None:
        """These are stored."""
        for completion_id in completion_ids:
            self._runs.pop(completion_id, None)
            was_begun = self._lengths.pop(completion_id, None) is not None
            if was_begun or completion_id in self._fenced:
                self._fenced.discard(completion_id)
                self._ended[completion_id] = None
                self._note_caught_up(completion_id)  # the row has it
        self._note_work()

    async def sent(self) -> None:
        """Return once the engine has all that was added so far. Cancelling it changes nothing."""
        if self._sent >= self._added:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.when_sent(partial(_release, waiter))
        await waiter

    def when_sent(self, tell: Callable[[], None]) -> None:
        """Have this called once the engine has all that was added so far; at once if it has it. It must
        not raise."""
        if self._sent >= self._added:
            tell()
        else:
            self._waiters.append((self._added, tell))

    def _note_work(self) -> None:
        self._is_idle.clear()
        self._has_work.set()

    # --- sending ----------------------------------------------------------------------------

    def start(self) -> None:
        sending = tend(self._step, self._note_away)
        looking = tend(self._look, lambda _: None, self.pulse)
        self._tasks = [
            asyncio.create_task(sending, name="fleet outbox"),
            asyncio.create_task(looking, name="fleet look"),
        ]

    async def stop(self, patience_seconds: float) -> None:
        """Send what waits, for at most this long."""
        if not self._tasks:
            return
        try:
            async with asyncio.timeout(patience_seconds):
                await self._is_idle.wait()
        except TimeoutError:
            log.warning("lines not sent to the fleet", count=self.lag)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look(self) -> None:
        lost_at = await self._engine.lost_at()
        if lost_at > self._lost_at:
            self._lost_at = lost_at
            log.warning("fleet may have lost lines", running=len(self._lengths))
            self._is_doubted = True
            self._note_work()
        await asyncio.sleep(LOOK_SECONDS)

    async def _step(self) -> None:
        await self._has_work.wait()
        await asyncio.sleep(0)  # what else comes in this turn goes along
        self._waiting.note_added(self._added)
        if self._pause_seconds:
            await self._pause()
        if self.failure is not None or self._is_doubted:
            self._is_doubted = False
            self._send_again(list(self._lengths))
            await self._end_again()
        await self._send()
        if self.failure is not None:
            log.info("fleet back")
            self.failure = None

    async def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._pause_ends:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._pause_ends):
                    await self._begins.wait()
        self._begins.clear()
        self._pause_ends = loop.time() + self._pause_seconds

    def _note_away(self, error: FleetUnavailable) -> None:
        if self.failure is None:
            log.error("fleet away", reason=str(error))
        self.failure = str(error)
        self._whole.clear()

    def _send_again(self, completion_ids: Collection[str]) -> None:
        """The engine may have lost what it had of these. What is held of them is in the journal too."""
        wanted = {name for name in completion_ids if self._lengths.get(name)}
        self._untold.update((name, self._runs[name]) for name in wanted)
        for name in wanted:
            self._whole.pop(name, None)
        if self._copies_lines:
            for name in wanted:
                self._behind.setdefault(name, 0)
            for entry in self._entries:
                if entry.completion_id in wanted:
                    self._behind[entry.completion_id] += entry.count
            kept = [each for each in self._entries if each.completion_id not in wanted]
            self._entries = kept
            self._held_bytes = sum(len(entry.lines) for entry in kept)

    async def _end_again(self) -> None:
        """The engine may have forgotten that something ended."""
        for run in await self._engine.left_by(self._engine.token):
            if run.completion_id not in self._runs and run.completion_id not in self._fenced:
                self._ended[run.completion_id] = None

    async def _send(self) -> None:
        """One round: what begins, the lines, what is behind, what has ended."""
        entries = self._entries[:MOST_AT_ONCE]
        runs = list(self._untold.values())
        if entries or runs:
            began_at = time.perf_counter()
            appended = await self._engine.append(entries, runs)
            self.note_append(time.perf_counter() - began_at)
            for run in runs:
                self._untold.pop(run.completion_id, None)
            if self._is_amiss(appended):
                return
            gone = [each for each in entries if each.completion_id not in appended.fenced]
            del self._entries[: len(gone)]
            self._held_bytes -= sum(len(entry.lines) for entry in gone)
            self._note_sent(sum(entry.count for entry in gone))
        await self._catch_up()
        if not self._entries:
            ended = list(self._ended)[:MOST_AT_ONCE]
            await self._engine.finish(self._engine.token, ended, KEEP_SECONDS)
            for completion_id in ended:
                del self._ended[completion_id]
        if not (self._entries or self._untold or self._ended or self._behind or self._is_doubted):
            self._has_work.clear()
            self._is_idle.set()
            self._note_sent(self._added - self._sent)

    def _is_amiss(self, appended: Appended) -> bool:
        """See to what wasn't added. True if some of it is to be sent again."""
        if appended.fenced:
            self._yield(appended.fenced)
        if not appended.lost:
            return False
        self._drop({name for name in appended.lost if name not in self._lengths})  # the row has it
        self._is_doubted = True  # the others may be gone too
        return True

    def _yield(self, completion_ids: Collection[str]) -> None:
        """These are another replica's now."""
        running = [name for name in completion_ids if name in self._lengths]
        if running:
            log.error("completions adopted by another replica", completion_ids=running)
        self.fenced += len(running)
        self._fenced.update(running)
        for completion_id in running:
            for known in (self._runs, self._untold, self._lengths):
                known.pop(completion_id, None)
        self.note_fenced(running)
        self._drop(completion_ids)
        for completion_id in completion_ids:
            self._note_caught_up(completion_id)

    def _drop(self, completion_ids: Collection[str]) -> None:
        """Don't send what is held of these."""
        dropped = [each for each in self._entries if each.completion_id in completion_ids]
        self._entries = [each for each in self._entries if each.completion_id not in completion_ids]
        self._held_bytes -= sum(len(entry.lines) for entry in dropped)
        self._note_sent(sum(entry.count for entry in dropped))

    def _note_sent(self, count: int) -> None:
        self._sent += count
        self._waiting.note_sent(self._sent)
        if self._behind and any(self._behind.values()):
            return  # what was sent is not all that was added before
        waiting = self._waiters
        self._waiters = [each for each in waiting if each[0] > self._sent]
        for number, tell in waiting:
            if number <= self._sent:
                tell()

    def _note_caught_up(self, completion_id: str) -> None:
        self._whole.pop(completion_id, None)
        self._note_sent(self._behind.pop(completion_id, 0))

    async def _catch_up(self) -> None:
        """Send from the journal what logs lack, once what is held of them was sent. Each file is read
        once for all of these, and one at a time is in memory."""
        held = {entry.completion_id for entry in self._entries}
        begins: dict[str, int] = {}
        for completion_id in [name for name in self._behind if name not in held][:MOST_BEHIND]:
            if (has := self._whole.get(completion_id)) is None:
                has = await self._engine.mend(completion_id)
            if has >= self._lengths.get(completion_id, 0):
                self._note_caught_up(completion_id)
            else:
                self._whole[completion_id] = begins[completion_id] = has
        found: set[str] = set()
        for path in self.segments_of(list(begins)):
            entries = await asyncio.to_thread(_entries_of, path, begins)
            for start in range(0, len(entries), MOST_AT_ONCE):
                part = entries[start : start + MOST_AT_ONCE]
                if self._is_amiss(await self._engine.append(part)):
                    return
                for entry in part:
                    if entry.completion_id not in self._fenced:
                        self._whole[entry.completion_id] = entry.number + entry.count
            found.update(entry.completion_id for entry in entries)
        self.mended += len(found)
        for completion_id in [name for name in begins if name not in found]:
            log.warning("lines missing in the journal", completion_id=completion_id)
            self._note_caught_up(completion_id)


def _release(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def _entries_of(path: Path, begins: Mapping[str, int]) -> list[Entry]:
    """These completions' lines, each from a number on, as they stand in a file of the journal."""
    names = {name_of(completion_id): completion_id for completion_id in begins}
    found: list[Entry] = []
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []  # no longer needed by anybody
    for size in read_sizes(data):
        if isinstance(size, tuple) and size[0] in names:
            completion_id, line = names[size[0]], data[size[1] : size[2]]
            told = line_in(line)
            if told is not None and told["n"] >= begins[completion_id]:
                found.append(Entry(completion_id, told["n"], 1, line))
    return found
