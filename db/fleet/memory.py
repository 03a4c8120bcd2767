"""The engine's twin in memory, for tests and for replicas within one process: `MemoryEngine`.

Keeps every promise of the contract but that of outliving the process.
"""

import asyncio
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from attrs import define, evolve, field

from db.claims import Claim
from db.fleet.budgets import Budgets
from db.fleet.contract import (
    CLOSED,
    VERSION,
    Appended,
    Command,
    Entry,
    FleetUnavailable,
    Replica,
    Run,
)
from db.fleet.health import EngineHealth
from db.fleet.memory_budgets import Account, MemoryBudgets
from db.fleet.memory_claims import MemorySharedClaims
from db.fleet.shared_claims import SharedClaims

_T = TypeVar("_T")

MOST_READ_BYTES = 4 * 1024 * 1024
"""About how much `read` returns at once."""


@define
class _Log:
    entries: list[Entry] = field(factory=list)
    run: Run | None = None
    goes_at: float = float("inf")

    @property
    def is_closed(self) -> bool:
        return bool(self.entries) and self.entries[-1].is_closing


@define
class Shared:
    """What the engines of all replicas have in common.

    Attributes:
        is_away: nobody reaches it now.
        copies: how many replicas it has.
        losses: how often it may have lost something.
    """

    clock: Callable[[], float] = time.monotonic
    is_away: bool = False
    copies: int = 0
    losses: int = 0
    leases: dict[str, tuple[str, float]] = field(factory=dict)
    alive_until: dict[str, float] = field(factory=dict)
    adopters: dict[str, tuple[str, float]] = field(factory=dict)
    known: dict[str, tuple[str, int]] = field(factory=dict)
    logs: dict[str, _Log] = field(factory=lambda: defaultdict(_Log))
    commands: dict[str, deque[Command]] = field(factory=lambda: defaultdict(deque))
    answers: dict[str, str] = field(factory=dict)
    accounts: dict[str, Account] = field(factory=dict)
    claims: dict[bytes, Claim] = field(factory=dict)
    changed: asyncio.Condition = field(factory=asyncio.Condition)


class MemoryEngine:
    """See `Engine`.

    Args:
        token: this replica's.
        shared: what it shares with the others.
        wait_replicas: how many replicas are to have what is appended.
        version: of what it writes.
    """

    def __init__(
        self, token: str, shared: Shared, *, wait_replicas: int = 0, version: int = VERSION
    ) -> None:
        self.token = token
        self.health = EngineHealth()
        self._shared = shared
        self._wait_replicas = wait_replicas
        self._version = version
        self._losses: int | None = None
        self._lost_at = float("-inf")
        self.budgets: Budgets = MemoryBudgets(token, shared.accounts, shared.clock, self._reach)
        self.claims: SharedClaims = MemorySharedClaims(shared.claims, self._reach)
        self._nudges = 0

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    # --- who is there -----------------------------------------------------------------------

    async def join(self, name: str, seconds: float) -> str:
        shared, token = self._reach(), self.token
        now = shared.clock()
        shared.alive_until[token] = now + seconds
        shared.known[token] = name, self._version
        holder, until = shared.leases.get(name, (token, 0.0))
        if holder != token and until > now:
            return holder
        shared.leases[name] = token, now + seconds
        return token

    async def leave(self, name: str) -> None:
        shared, token = self._reach(), self.token
        if shared.leases.get(name, ("", 0.0))[0] == token:
            del shared.leases[name]
        shared.alive_until.pop(token, None)
        if not await self.left_by(token):
            shared.known.pop(token, None)

    async def replicas(self) -> Sequence[Replica]:
        shared = self._reach()
        return [
            Replica(name, token, version, self._lease_left(token))
            for token, (name, version) in shared.known.items()
        ]

    async def take_over(self, dead: Replica, seconds: float) -> bool:
        shared = self._reach()
        now = shared.clock()
        if dead.version != self._version or self._is_alive(dead.token):
            return False
        holder, until = shared.adopters.get(dead.token, (self.token, 0.0))
        if holder != self.token and until > now:
            return False
        shared.adopters[dead.token] = self.token, now + seconds
        return True

    async def bury(self, dead: Replica) -> None:
        shared = self._reach()
        shared.known.pop(dead.token, None)
        shared.commands.pop(dead.token, None)

    def _is_alive(self, token: str) -> bool:
        return self._lease_left(token) > 0

    def _lease_left(self, token: str) -> float:
        return max(0.0, self._shared.alive_until.get(token, 0.0) - self._shared.clock())

    # --- what runs --------------------------------------------------------------------------

    async def append(self, entries: Sequence[Entry], runs: Sequence[Run] = ()) -> Appended:
        shared = self._reach()
        for run in runs:
            shared.logs[run.completion_id].run = evolve(run, version=self._version)
        lost, fenced = set[str](), set[str]()
        for entry in entries:
            log = shared.logs[entry.completion_id]
            if entry.number and not log.entries:
                lost.add(entry.completion_id)
                self._lost_at = time.monotonic()
            elif log.is_closed:
                if entry.number not in {each.number for each in log.entries}:
                    fenced.add(entry.completion_id)
            elif not log.entries or log.entries[-1].number < entry.number:
                log.entries.append(entry)
        await self._tell()
        if shared.copies < self._wait_replicas:
            raise FleetUnavailable("too few replicas of the engine have it")
        return Appended(lost, fenced)

    async def fence(self, completion_ids: Sequence[str]) -> None:
        shared = self._reach()
        for completion_id in completion_ids:
            log = shared.logs[completion_id]
            if not log.is_closed:
                log.entries.append(Entry(completion_id, CLOSED, 0, b""))
        await self._tell()

    async def length(self, completion_id: str) -> int:
        log = self._log(completion_id)
        lines = [] if log is None else [each for each in log.entries if not each.is_closing]
        last = lines[-1] if lines else None
        return 0 if last is None else last.number + last.count

    async def lost_at(self) -> float:
        before, self._losses = self._losses, self._reach().losses
        if before not in (None, self._losses):
            self._lost_at = time.monotonic()
        return self._lost_at

    async def mend(self, completion_id: str) -> int:
        log = self._log(completion_id)
        at = 0
        if log is None:
            return 0
        for entry in log.entries:
            if entry.number > at:
                if log.entries[
                    -1
                ].count:  # an entry without lines closes a log, which stays as it is
                    log.entries = []
                    return 0
                break
            at = entry.number + entry.count
        return at

    async def find(self, completion_id: str) -> Run | None:
        log = self._log(completion_id)
        return None if log is None else log.run

    async def left_by(self, token: str) -> Sequence[Run]:
        logs = self._reach().logs.values()
        runs = (log.run for log in logs if log.goes_at == float("inf"))
        return [run for run in runs if run is not None and run.token == token]

    async def runs_of(self, owner: str) -> Sequence[Run]:
        logs = self._reach().logs.values()
        runs = (log.run for log in logs if log.goes_at == float("inf"))
        return [run for run in runs if run is not None and run.owner == owner]

    async def finish(self, token: str, completion_ids: Sequence[str], seconds: float) -> None:
        shared = self._reach()
        for completion_id in completion_ids:
            log = shared.logs.get(completion_id)
            if log is not None:
                log.goes_at = min(log.goes_at, shared.clock() + seconds)

    async def is_under_way(self, run: Run) -> bool:
        log = self._log(run.completion_id)
        return log is not None and log.run is not None and log.goes_at == float("inf")

    async def forget(self, completion_id: str) -> None:
        self._reach().logs.pop(completion_id, None)

    async def read(self, completion_id: str, after: int = -1) -> Sequence[Entry]:
        log = self._log(completion_id)
        found: list[Entry] = []
        size = 0
        for entry in () if log is None else log.entries:
            if entry.number > after and size < MOST_READ_BYTES:
                found.append(entry)
                size += len(entry.lines)
        return found

    async def wait(self, after: Mapping[str, int], seconds: float) -> Sequence[Entry]:
        nudges = self._nudges

        async def something() -> Sequence[Entry] | bool:
            found: list[Entry] = []
            for completion_id, number in after.items():
                found += await self.read(completion_id, number)
            return found or self._nudges != nudges

        found = await self._until(something, seconds)
        return found if isinstance(found, list) else ()

    async def nudge(self) -> None:
        self._nudges += 1
        await self._tell()

    def _log(self, completion_id: str) -> _Log | None:
        shared = self._reach()
        log = shared.logs.get(completion_id)
        if log is not None and log.goes_at <= shared.clock():
            del shared.logs[completion_id]
            return None
        return log

    # --- asking each other ------------------------------------------------------------------

    async def ask(self, token: str, what: str, seconds: float) -> str | None:
        command = Command(secrets.token_hex(8), what, self.token)
        self._reach().commands[token].append(command)
        await self._tell()

        async def answered() -> str | None:
            return self._reach().answers.pop(command.command_id, None)

        return await self._until(answered, seconds)

    async def asked(self, seconds: float) -> Command | None:
        async def next_one() -> Command | None:
            waiting = self._reach().commands[self.token]
            return waiting.popleft() if waiting else None

        return await self._until(next_one, seconds)

    async def answer(self, command: Command, answer: str) -> None:
        self._reach().answers[command.command_id] = answer
        await self._tell()

    # --- the way there ----------------------------------------------------------------------

    def _reach(self) -> Shared:
        if self._shared.is_away:
            self.health.note_failure("the engine is away")
            raise FleetUnavailable("the engine is away")
        self.health.note_answer()
        return self._shared

    async def _tell(self) -> None:
        async with self._shared.changed:
            self._shared.changed.notify_all()

    async def _until(self, look: Callable[[], Awaitable[_T]], seconds: float) -> _T | None:
        """What `look` finds first that is something, or None after so long."""
        try:
            async with asyncio.timeout(seconds), self._shared.changed:
                while not (found := await look()):
                    await self._shared.changed.wait()
                return found
        except TimeoutError:
            return None
