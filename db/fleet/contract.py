"""Defines what several machines share about what is under way, and what may be asked of it.

No client of any engine here. `db.fleet.redis.RedisEngine` is the real one; `db.fleet.memory` keeps the
same promises within one process. The tests of the contract (`tests/db/fleet`) run over both.

A *replica* is one process that serves. It has a name, which outlives it, and a token, which doesn't:
a restarted replica is another holder of the same name. Each token has a lease of its own. What ran under
a token and is left there when that has run out is somebody else's to bring to an end, who first closes
its log (`Engine.fence`): from then on nothing that its former owner says of it is taken.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from attrs import frozen

from db.fleet.budgets import Budgets
from db.fleet.health import EngineHealth
from db.fleet.shared_claims import SharedClaims

CLOSED = 2**62
"""The number of the entry that closes a log; it has no lines, and nothing comes after it."""
VERSION = 1
"""Of everything that is written to the engine. A process leaves alone what another version wrote."""


class FleetUnavailable(Exception):
    """The engine can't be reached or can't work now; the same call may succeed later. The message says
    why, and holds no text of anybody's.

    A call that changes something may have been carried out all the same. Repeating it is safe.
    """


@frozen
class Entry:
    """What one read from an upstream added to a completion's log.

    Attributes:
        completion_id: whose log it is.
        number: the first line's, from 0. Entries of one log come in the order of their numbers.
        count: how many lines there are.
        lines: the journal's own (`db.journal.format`), each with its newline.
    """

    completion_id: str
    number: int
    count: int
    lines: bytes

    @property
    def is_closing(self) -> bool:
        """True of the one that `Engine.fence` adds: who ran the completion runs it no more."""
        return self.number == CLOSED


@frozen
class Appended:
    """What became of entries, where they weren't added.

    Attributes:
        lost: completions whose logs aren't there, although they have begun: the engine has lost them.
        fenced: those whose logs were closed: somebody else has brought them to an end.
    """

    lost: Collection[str] = ()
    fenced: Collection[str] = ()


@frozen
class Run:
    """A completion under way.

    Attributes:
        completion_id: which.
        owner: whose it is.
        replica, token: who runs it.
        version: of what that one writes, see `VERSION`. Of another version this is all that is known.
    """

    completion_id: str
    owner: str
    replica: str
    token: str
    version: int = VERSION


@frozen
class Replica:
    """A process that serves, or served a moment ago.

    Attributes:
        name, token: see the module.
        version: of what it writes, see `VERSION`.
        lease_seconds: how long its lease holds yet; 0 once it has run out.
    """

    name: str
    token: str
    version: int
    lease_seconds: float

    @property
    def is_alive(self) -> bool:
        """Its lease holds."""
        return self.lease_seconds > 0


@frozen
class Command:
    """Something asked of another replica, which answers.

    Attributes:
        command_id: by which the answer is found.
        what: a short text; only the service knows which there are.
        asker: the token of who asks.
    """

    command_id: str
    what: str
    asker: str


class Engine(Protocol):
    """One replica's way to the engine. The calls are coroutines and raise `FleetUnavailable`. Cancelling
    one leaves it carried out or not.

    Attributes:
        token: this replica's.
        health: how its calls went.
        budgets: what callers may use.
        claims: which completion answers which `Idempotency-Key`.
    """

    token: str
    health: EngineHealth
    budgets: Budgets
    claims: SharedClaims

    async def start(self) -> None:
        """Connect, if that is possible now; a call connects by itself otherwise. Never raises."""

    async def close(self) -> None:
        """Release every resource. Never raises."""

    # --- who is there -----------------------------------------------------------------------

    async def join(self, name: str, seconds: float) -> str:
        """Take or renew the lease of a name for so long, and that of this replica's token, which it gets
        whoever has the name. Returns the token that holds the name afterwards: this replica's, or that
        of another process that has it and is alive."""

    async def leave(self, name: str) -> None:
        """Give the leases back; that of the name, if it is still this replica's."""

    async def replicas(self) -> Sequence[Replica]:
        """Everybody who joined and left something behind, dead or alive."""

    async def take_over(self, dead: Replica, seconds: float) -> bool:
        """Become, for so long, the one who brings to an end what another left; renews if it is this
        replica already. False if another does, its lease holds (again), or it is of another version."""

    async def bury(self, dead: Replica) -> None:
        """Forget a dead replica: nothing is left of it."""

    # --- what runs --------------------------------------------------------------------------

    async def append(self, entries: Sequence[Entry], runs: Sequence[Run] = ()) -> Appended:
        """Add entries to their logs, and note these completions as under way. An entry that is there
        already is passed over, and one before it may be missing: `mend` tells. Returns what wasn't added,
        and why.

        Raises `FleetUnavailable` if any other could not be added, or fewer replicas of the engine have
        them than the engine was made to wait for. `mend` tells what is there.
        """

    async def fence(self, completion_ids: Sequence[str]) -> None:
        """Close these logs, be they there or not: from then on nothing is added to them, and all that was
        comes before the closing entry. Does nothing to one that is closed."""

    async def length(self, completion_id: str) -> int:
        """How many lines a log has: the number that its next entry begins with; 0 if there is none."""

    async def lost_at(self) -> float:
        """When it was last noticed, by `time.monotonic()`, that something that was acknowledged may be
        gone, as far as can be told now: another server answers, one was restarted, or it was emptied, or
        a log that had begun isn't there. -inf: never, by this replica. Everybody who asks is told."""

    async def mend(self, completion_id: str) -> int:
        """How many lines a log has, from its beginning and none missing. A log that goes on after a gap
        is deleted, so that all of it can be sent again, and has 0."""

    async def find(self, completion_id: str) -> Run | None:
        """Who runs it or ran it last, as long as its log is there."""

    async def left_by(self, token: str) -> Sequence[Run]:
        """What runs under a token, or was left under it."""

    async def runs_of(self, owner: str) -> Sequence[Run]:
        """What an owner has under way, at whichever replica, or was left by one that died."""

    async def finish(self, token: str, completion_ids: Sequence[str], seconds: float) -> None:
        """These have ended and are stored: they are no longer under way, and their logs go after so
        long.

        Args:
            token: under which they ran.
        """

    async def is_under_way(self, run: Run) -> bool:
        """False once it is stored (`finish`)."""

    async def forget(self, completion_id: str) -> None:
        """Delete its log: nobody is to read it any more."""

    async def read(self, completion_id: str, after: int = -1) -> Sequence[Entry]:
        """A log's entries whose first number is above `after`, the closing one included; at most some
        megabytes at a time."""

    async def wait(self, after: Mapping[str, int], seconds: float) -> Sequence[Entry]:
        """What was added to any of these logs, each after the number given; waits for so long at most.
        One caller at a time."""

    async def nudge(self) -> None:
        """End the `wait` that this replica waits in, as if something had come."""

    # --- asking each other ------------------------------------------------------------------

    async def ask(self, token: str, what: str, seconds: float) -> str | None:
        """Have the replica with this token do something, and return its answer; None if none came in
        time. Somebody must call `asked` meanwhile: answers come the same way."""

    async def asked(self, seconds: float) -> Command | None:
        """The next thing that this replica is asked, waiting for so long at most. One caller at a
        time."""

    async def answer(self, command: Command, answer: str) -> None:
        """Answer what was asked."""
