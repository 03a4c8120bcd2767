"""Names what the page looks at, and what it may do to it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web
from attrs import frozen

from db.overview import WholeStore
from service.agents.directory import AgentDirectory
from service.callers.admin import Admins
from service.callers.limits import Admission
from service.clock import Clock
from service.edge.addresses import Addresses
from service.edge.siblings import Siblings
from service.endpoints.reading import Reading
from service.fleet.others import Others, Told
from service.page.lives import Lives
from service.settings.config import Config
from service.settings.live import Live
from service.stream.running import RunningStreams
from statemachine import SessionRecord


class Letters(Protocol):
    """As much of `db.dead_letters.DeadLetters` as the page needs. Each call blocks."""

    def paths(self) -> list[Path]:
        """The letters, oldest first."""

    def read(self, path: Path) -> tuple[SessionRecord, str]:
        """A letter's record and reason. Raises ValueError or OSError."""


class JournalFigures(Protocol):
    """As much of a journal as the page needs."""

    @property
    def size(self) -> int:
        """Its bytes on disk."""

    @property
    def uncommitted(self) -> int:
        """How many completions are in it that aren't committed, running ones included."""


@frozen
class Watched:
    """The parts of the service that the page shows.

    Attributes:
        checks: name of a part → why it can't do its work now, or None.
        unsaved: how many records wait for the database here.
        letters: records that no database would take; None: nothing keeps any.
        siblings: the other workers; None: there are none.
        others: the other replicas; None: there is no fleet.
    """

    config: Live[Config]
    store: WholeStore
    streams: RunningStreams
    directory: AgentDirectory
    admission: Admission
    admins: Admins
    addresses: Addresses
    reading: Reading
    clock: Clock
    checks: Mapping[str, Callable[[], Awaitable[str | None]]]
    unsaved: Callable[[], int]
    journal: JournalFigures
    letters: Letters | None
    lives: Lives
    siblings: Siblings | None = None
    others: Others | None = None

    @property
    def replica(self) -> str:
        """This process's name in its fleet; empty without one."""
        return "" if self.others is None else self.others.fleet.replica

    @property
    def shows_texts(self) -> bool:
        """Whether chats may be read."""
        return self.config.value.admin.texts == "show"

    @property
    def names(self) -> Sequence[str]:
        """The names of the agents that are on."""
        return [agent.name for agent in self.directory.agents]

    async def ask_others(self, request: web.Request, seconds: float = 1.0) -> list[Any]:
        """The JSON that each other worker answers to the request, asked with GET and all at once;
        without those that say nothing for so long."""
        if self.siblings is None:
            return []
        return list((await self.siblings.ask_each(request, seconds)).values())

    async def told_by_others(self, what: str, seconds: float = 1.0) -> Told:
        """What each other replica says to this question; without those that say nothing for so long."""
        return Told() if self.others is None else await self.others.tell(what, (), seconds)
