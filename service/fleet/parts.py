"""The fleet's parts, made of the configuration, started and stopped: `Fleet`.

Knows no endpoint. What stands behind the engine is imported only here, and only where there is one.
"""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from db.claims import Claims
from db.fleet import VERSION, Engine, Replica
from db.fleet.adoption import Adoption, IsStored, Save
from db.fleet.claims import FleetClaims
from db.fleet.journal import CopiedJournal
from db.fleet.membership import Membership
from db.fleet.outbox import PAUSE_SECONDS, Outbox
from db.journal import Fsync, Journal
from service.fleet.listening import Cancel, Listener, Teller
from service.fleet.mirrors import Mirrors
from service.fleet.roster import Roster
from service.fleet.searching import Search
from service.fleet.standing import TOKEN_LETTERS, Adoptions, Fallbacks, Nothing, Standing, degraded
from service.fleet.whereabouts import Whereabouts
from service.settings.fleet import FleetConfig

_LOOK_SECONDS = 0.3
"""How long a probe waits to be told who is there."""
_FLUSH_SECONDS = 5.0
"""How long a stop waits for the engine to take what is left."""


class FleetUnusable(Exception):
    """The configuration wants a fleet, and there can be none. The message says why and what to do."""


class Fleet:
    """One replica's part in a fleet.

    Args:
        config: `fleet`, with a URL.
        slot: the number of this worker, if there are several: each is a replica of its own.
        engine: one to use instead of the one at the URL.

    Attributes:
        engine: what all replicas share.
        replica: this one's name.
        outbox, membership, mirrors, search, roster, whereabouts: see there.
        copies_lines: others can read what runs here.
        listener: set by `listen`.
        tellers: what others may ask to be told; see `service.fleet.others`.
        adoptions, fallbacks: what is shown of these.
        adoption: set by `adopt`.

    Raises:
        FleetUnusable: the extra `fleet` is missing, or the URL can't be read.
    """

    def __init__(self, config: FleetConfig, slot: int | None, engine: Engine | None = None) -> None:
        name = config.replica or socket.gethostname()[:64] or "replica"
        self.replica = name if slot is None else f"{name}.{slot}"
        self._machine = None if slot is None else name
        self._copies = config.journal
        self.engine = engine or _engine(config, secrets.token_hex(8))
        self.copies_lines = config.journal != "off"
        self._sends_first = config.journal == "before_send"
        self.outbox = Outbox(
            self.engine,
            self.replica,
            copies_lines=self.copies_lines,
            pause_seconds=0.0 if self._sends_first else PAUSE_SECONDS,
        )
        self.membership = Membership(self.engine, self.replica, config.lease_seconds)
        self.mirrors = Mirrors(self.engine, config.lease_seconds)
        self.search = Search(self.engine, self.membership, self.outbox, config.lease_seconds)
        self.roster = Roster(self.engine)
        self.whereabouts = Whereabouts(self.engine, config.lease_seconds)
        self.listener: Listener | None = None
        self.tellers: dict[str, Teller] = {}
        self.adoptions: Adoptions = Nothing()
        self.fallbacks: Fallbacks = Nothing()
        self.adoption: Adoption | None = None
        self._lease_seconds = config.lease_seconds

    def journal(self, directory: Path, fsync: Fsync, max_bytes: int) -> Journal:
        """This process's journal, whose lines go to the fleet too."""
        return CopiedJournal(
            directory, fsync, max_bytes, self.outbox, sends_first=self._sends_first
        )

    def claims(
        self, own: Claims, keep_seconds: Callable[[], float], clock: Callable[[], float]
    ) -> Claims:
        """Claims over all machines, above this one's own."""
        engine = self.engine
        return FleetClaims(own, engine.claims, engine.token, keep_seconds=keep_seconds, clock=clock)

    def listen(self, cancel: Cancel) -> None:
        """Have this done when another replica asks for it. Before the start, once."""
        self.listener = Listener(self.engine, cancel, self.tellers)

    def is_sibling(self, replica: str) -> bool:
        """True of the name of a worker of this very service."""
        return self._machine is not None and replica.rpartition(".")[0] == self._machine

    async def seen(self, seconds: float) -> tuple[Replica, ...] | None:
        """Who is there; None if the engine doesn't say so within so many seconds."""
        is_known = await self.roster.look(seconds)
        return tuple(self.roster.replicas) if is_known else None

    async def degraded(self) -> list[str]:
        """What doesn't work as it should, a sentence each; after 0.3 s at most."""
        await self.roster.look(_LOOK_SECONDS)
        return degraded(self.standing(), self.roster.replicas)

    def standing(self) -> Standing:
        """How this replica stands now."""
        listener = self.listener
        return Standing(
            replica=self.replica,
            token=self.engine.token[:TOKEN_LETTERS],
            version=VERSION,
            journal=self._copies,
            failure=self.engine.health.failure or self.outbox.failure,
            is_held=self.membership.is_held,
            has_rival=self.membership.rival,
            lag_lines=self.outbox.lag,
            lag_seconds=self.outbox.oldest_seconds,
            mirrors=self.mirrors.count,
            mirror_readers=self.mirrors.readers,
            answered=0 if listener is None else listener.answered,
            unanswered=0 if listener is None else listener.unanswered,
            silent_seconds=0.0 if listener is None else listener.silent_seconds,
            calls_failed=self.engine.health.calls_failed,
            adopted=self.adoptions.adopted,
            adopting=self.adoptions.adopting,
            fenced=self.outbox.fenced,
            fallbacks=self.fallbacks.fallbacks,
        )

    def yield_by(self, cut_off: Callable[[Iterable[str]], None]) -> None:
        """Have completions ended like this that another replica has adopted. Before the start, once."""
        self.outbox.note_fenced = cut_off

    def adopt(self, save: Save, is_stored: IsStored) -> None:
        """Look after what dead replicas leave; see `Adoption`. Before the start, once."""
        adoption = Adoption(self.engine, self._lease_seconds, save, is_stored)
        self.adoption = self.adoptions = adoption

    async def keep_adopting(self, _: object) -> AsyncIterator[None]:
        """Start adopting, and stop it. Needs the saver."""
        assert self.adoption is not None  # `adopt` was called
        self.adoption.start()
        yield
        await self.adoption.stop()

    async def keep(self, _: object) -> AsyncIterator[None]:
        """Start the parts, and stop them in the opposite order. A start waits a second at most for the
        engine."""
        await asyncio.gather(self.engine.start(), self.membership.start())
        self.outbox.start()
        self.mirrors.start()
        if self.listener is not None:
            self.listener.start()
        yield
        if self.listener is not None:
            await self.listener.stop()
        await self.roster.stop()
        await self.mirrors.stop()
        await self.outbox.stop(_FLUSH_SECONDS)
        await self.membership.stop()
        await self.engine.close()


def _engine(config: FleetConfig, token: str) -> Engine:
    try:
        from db.fleet.redis import RedisEngine
        from db.fleet.redis_link import RedisLink
    except ImportError as error:
        raise FleetUnusable(
            "fleet.url is set, but the package redis isn't installed: "
            "in a checkout start it by: make run; or pip install '.[fleet]'"
        ) from error
    assert config.url is not None
    try:
        copies = config.wait_replicas if config.journal == "before_send" else 0
        return RedisEngine(RedisLink(config.url), token, wait_replicas=copies)
    except ValueError:  # not chained: it may quote a password
        raise FleetUnusable(
            "fleet.url can't be read: it looks like redis://:password@host:6379/0, or "
            "redis+sentinel://host:26379,host:26379/service"
        ) from None
