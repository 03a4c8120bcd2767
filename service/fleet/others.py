"""Asks other replicas what they know, for lists and for the page: `Others`.

Each tells what it has itself, as JSON; `Fleet.tellers` says what can be asked. Never here: what is told.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from db.fleet import VERSION, FleetUnavailable, Replica
from service.fleet.listening import UNKNOWN, Teller, tell_command
from service.fleet.parts import Fleet

LIST_SECONDS = 2.0
"""How long a list waits for other replicas."""


@frozen
class Told:
    """What others said.

    Attributes:
        answers: each one's name and answer.
        silent: the names of those that gave none, though they are alive, or left something behind; with
            those of another version.
        is_known: False if the engine doesn't say who is there.
    """

    answers: tuple[tuple[str, Any], ...] = ()
    silent: tuple[str, ...] = ()
    is_known: bool = True

    @property
    def is_whole(self) -> bool:
        """True if nobody's answer is missing."""
        return self.is_known and not self.silent


@frozen
class Others:
    """The other replicas, without the workers of this machine, which are asked as siblings.

    Attributes:
        fleet: this one's part in it.
    """

    fleet: Fleet

    def answer(self, what: str, teller: Teller) -> None:
        """Have others told this when they ask. Before the start."""
        self.fleet.tellers[what] = teller

    async def tell(self, what: str, arguments: Sequence[Any], seconds: float) -> Told:
        """What all that are alive say, within so many seconds. Never raises."""
        until = asyncio.get_running_loop().time() + seconds
        is_known = await self.fleet.roster.look(seconds)
        alive = [each for each in self.there if each.is_alive]
        left = until - asyncio.get_running_loop().time()
        if not is_known or left <= 0:
            return Told((), tuple(each.name for each in alive), is_known=False)
        names = {each.token: each.name for each in alive if each.version == VERSION}
        told = await self._ask(names, what, arguments, left)
        return Told(told.answers, (*told.silent, *self._strangers))

    async def tell_of(
        self, owner: str, known: Iterable[str], what: str, arguments: Sequence[Any]
    ) -> Told:
        """What those say that run something of an owner's, besides the completions that are known; one
        call to the engine if there is nothing. Never raises.

        Of a replica that died nobody tells until its completions have been brought to an end.
        """
        engine, seen = self.fleet.engine, set(known)
        try:
            async with asyncio.timeout(LIST_SECONDS):
                runs = await engine.runs_of(owner)
        except (FleetUnavailable, TimeoutError):
            return Told(is_known=False)
        wanted = {
            run.token: run.replica
            for run in runs
            if run.completion_id not in seen
            and run.token != engine.token
            and not self.fleet.is_sibling(run.replica)
        }
        if not wanted:
            return Told(silent=self._strangers)
        await self.fleet.roster.look(LIST_SECONDS)
        alive = {each.token for each in self.there if each.is_alive}
        asked = {token: name for token, name in wanted.items() if token in alive}
        told = await self._ask(asked, what, arguments, LIST_SECONDS)
        dead = [name for token, name in wanted.items() if token not in alive]
        return Told(told.answers, (*told.silent, *dead, *self._strangers))

    @property
    def there(self) -> list[Replica]:
        """Everybody else who was seen last, dead ones too."""
        fleet = self.fleet
        return [
            each
            for each in fleet.roster.replicas
            if each.token != fleet.engine.token and not fleet.is_sibling(each.name)
        ]

    @property
    def _strangers(self) -> tuple[str, ...]:
        """The living of another version, as they were seen last: they can be asked nothing."""
        alive = (each for each in self.there if each.is_alive)
        return tuple(each.name for each in alive if each.version != VERSION)

    async def _ask(
        self, names: Mapping[str, str], what: str, arguments: Sequence[Any], seconds: float
    ) -> Told:
        command = tell_command(what, arguments)
        said = await asyncio.gather(*(self._said(token, command, seconds) for token in names))
        answers, silent = list[tuple[str, Any]](), list[str]()
        for name, answer in zip(names.values(), said, strict=True):
            if answer is None:
                silent.append(name)
            else:
                answers.append((name, answer))
        return Told(tuple(answers), tuple(silent))

    async def _said(self, token: str, command: str, seconds: float) -> Any:
        try:
            answer = await self.fleet.engine.ask(token, command, seconds)
        except FleetUnavailable:
            return None
        return None if answer is None or answer == UNKNOWN else json.loads(answer)
