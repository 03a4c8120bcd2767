"""The fleet's parts, made of the configuration, started and stopped: `Fleet`.

Knows no endpoint. What stands behind the engine is imported only here, and only where there is one.
"""

import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from db.fleet import Engine
from db.fleet.journal import CopiedJournal
from db.fleet.membership import Membership
from db.fleet.outbox import Outbox
from db.journal import Fsync, Journal
from service.fleet.listening import Cancel, Listener
from service.fleet.mirrors import Mirrors
from service.fleet.searching import Search
from service.settings.fleet import FleetConfig

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
        copies_lines: what runs here can be read elsewhere; the others are taken for alike.
        outbox, membership, mirrors, search: see there.
        listener: set by `listen`.

    Raises:
        FleetUnusable: the extra `fleet` is missing, or the URL can't be read.
    """

    def __init__(self, config: FleetConfig, slot: int | None, engine: Engine | None = None) -> None:
        name = config.replica or socket.gethostname()[:64] or "replica"
        self.replica = name if slot is None else f"{name}.{slot}"
        self.engine = engine or _engine(config, secrets.token_hex(8))
        self.copies_lines = config.journal != "off"
        self._sends_first = config.journal == "before_send"
        self.outbox = Outbox(self.engine, self.replica, copies_lines=self.copies_lines)
        self.membership = Membership(self.engine, self.replica, config.lease_seconds)
        self.mirrors = Mirrors(self.engine, config.lease_seconds)
        self.search = Search(self.engine, self.membership, self.outbox, config.lease_seconds)
        self.listener: Listener | None = None

    def journal(self, directory: Path, fsync: Fsync, max_bytes: int) -> Journal:
        """This process's journal, whose lines go to the fleet too."""
        return CopiedJournal(
            directory, fsync, max_bytes, self.outbox, sends_first=self._sends_first
        )

    def listen(self, cancel: Cancel) -> None:
        """Have this done when another replica asks for it. Before the start, once."""
        self.listener = Listener(self.engine, cancel)

    async def keep(self, _: object) -> AsyncIterator[None]:
        """Start the parts, and stop them in the opposite order."""
        await self.engine.start()
        await self.membership.start()
        self.outbox.start()
        self.mirrors.start()
        if self.listener is not None:
            self.listener.start()
        yield
        if self.listener is not None:
            await self.listener.stop()
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
            "pip install 'verbatim-chat[fleet]'"
        ) from error
    assert config.url is not None
    try:
        return RedisEngine(RedisLink(config.url), token)
    except ValueError:  # not chained: it may quote a password
        raise FleetUnusable(
            "fleet.url can't be read: it looks like redis://:password@host:6379/0, or "
            "redis+sentinel://host:26379,host:26379/service"
        ) from None
