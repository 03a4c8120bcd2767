"""The screen Health: what keeps answers, what answers them, who serves; and the records that no database
would take, to be looked at and tried again.

Never here: deciding that something is ill; each part says that of itself.
"""

import asyncio
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import structlog
from aiohttp import hdrs, web
from attrs import asdict

from db.store import RecordRejected, StoreUnavailable
from service import __version__
from service.page.doorway import Visitor
from service.page.replicas import replica_rows, told_of
from service.page.screens import Screens, look, nothing
from service.page.texts import HIDDEN
from service.page.writing import letter_text
from statemachine import SessionRecord

log = structlog.get_logger(__name__)

_HEALTH = "health"
"""What one replica asks the others."""
_MOST_LETTERS = 50
_NOT_STORED = "asked for with store: false, and shown to nobody"
_PACKAGES = ("aiohttp", "aiopg", "psycopg2-binary", "orjson", "uvloop", "jinja2")


class Health:
    """The screen, and what its buttons do."""

    def __init__(self, screens: Screens) -> None:
        self._screens = screens
        self._watched = screens.watched
        self._retrying = asyncio.Lock()
        if (others := screens.watched.others) is not None:
            others.answer(_HEALTH, lambda _: json.dumps(self._standing()))

    def routes(self) -> list[web.RouteDef]:
        """The calls and their handlers."""
        shown, letter = self._screens.shown, "/page/letters/{completion_id}"
        return [
            web.get("/page/health", shown(self.show)),
            web.get(letter, shown(self.letter)),
            web.post(f"{letter}/retry", shown(self.retry)),
        ]

    async def show(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """The page; to a sibling, this worker's part of it."""
        watched = self._watched
        own = self._own()
        if watched.siblings is not None and watched.siblings.is_from_sibling(request):
            return web.json_response(own)
        workers = [own, *await watched.ask_others(request)]
        workers.sort(key=lambda worker: str(worker["pid"]))
        checks = {name: await check() for name, check in watched.checks.items()}
        letters, count = await asyncio.to_thread(self._letters)
        replicas, is_known = await self._replicas(workers)
        return self._screens.page(
            "health.html",
            visitor,
            here="Health",
            checks=checks,
            workers=workers,
            replicas=replicas,
            fleet_is_known=is_known,
            expected=watched.config.value.server.workers,
            journal_max=watched.config.value.journal.max_bytes,
            agents=_agents(workers, watched.directory.off),
            letters=letters,
            letter_count=count,
            versions=_versions(),
        )

    def _own(self) -> dict[str, Any]:
        """This worker, as JSON."""
        watched = self._watched
        failures = {name: asdict(one) for name, one in watched.lives.failures.items()}
        return {
            "pid": os.getpid(),
            "streams": watched.streams.count,
            "most_streams": watched.streams.limit,
            "unsaved": watched.unsaved(),
            "journal_bytes": watched.journal.size,
            "uncommitted": watched.journal.uncommitted,
            "is_draining": watched.streams.is_draining,
            "circuits": watched.directory.circuits(),
            "failures": failures,
            "standing": self._standing(),
        }

    def _standing(self) -> dict[str, Any] | None:
        """How this process stands in its fleet, as JSON; None without one."""
        watched = self._watched
        if watched.others is None:
            return None
        return told_of(watched.others.fleet.standing(), watched.streams.count)

    async def _replicas(self, workers: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
        """Every replica of the fleet, none without one; and whether the engine says who is there."""
        watched = self._watched
        if watched.others is None:
            return [], True
        told = await watched.told_by_others(_HEALTH)
        here = [worker["standing"] for worker in workers]
        return replica_rows(here, told, watched.others.fleet.roster.replicas), told.is_known

    # --- dead letters -------------------------------------------------------------------------

    def _letters(self) -> tuple[list[dict[str, Any]], int]:
        """The latest letters, and how many there are. Blocks."""
        if self._watched.letters is None:
            return [], 0
        paths, found = self._watched.letters.paths(), list[dict[str, Any]]()
        for path in reversed(paths[-_MOST_LETTERS:]):
            try:
                record, reason = self._watched.letters.read(path)
            except (ValueError, OSError) as error:
                found.append({"id": path.stem, "state": "", "reason": str(error), "at": None})
            else:
                at, state = record.finished_at, record.state.value
                found.append({"id": path.stem, "state": state, "reason": reason, "at": at})
        return found, len(paths)

    async def _read(self, name: str) -> tuple[Path, SessionRecord, str]:
        """The letter with this id. Raises the page's 404."""
        letters = self._watched.letters
        if letters is not None:
            for path in await asyncio.to_thread(letters.paths):
                if path.stem == name:
                    try:
                        return path, *await asyncio.to_thread(letters.read, path)
                    except (ValueError, OSError):
                        break
        raise nothing("dead letter that can be read with the id", name)

    async def letter(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """One letter."""
        path, record, reason = await self._read(request.match_info["completion_id"])
        raw = HIDDEN
        if record.request.is_hidden:
            raw = _NOT_STORED
        elif self._watched.shows_texts:
            log.info("text opened", completion_id=record.completion_id, admin=visitor.name)
            raw = await asyncio.to_thread(letter_text, path)
        return self._screens.page(
            "letter.html", visitor, here="Health", record=record, reason=reason, raw=raw
        )

    async def retry(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """Save the record again; its letter goes once that is done."""
        await self._screens.doorway.form_of(request, visitor.token)
        name = request.match_info["completion_id"]
        async with self._retrying:
            path, record, _ = await self._read(name)
            try:
                await look(self._watched.store.save([record]))
            except RecordRejected as error:
                log.warning("dead letter refused again", completion_id=name, admin=visitor.name)
                return self._screens.message(visitor, 409, f"It is refused again: {error}")
            except StoreUnavailable as error:
                text = f"The database can't take it now: {error}"
                return self._screens.message(visitor, 503, text)
            await asyncio.to_thread(path.unlink, missing_ok=True)
        log.info("dead letter saved", completion_id=name, admin=visitor.name)
        return web.Response(status=303, headers={hdrs.LOCATION: "/page/health"})


def _agents(workers: list[dict[str, Any]], off: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each agent: the worst of its circuits, and what it failed with last, in all workers."""
    agents: dict[str, dict[str, Any]] = {}
    for worker in workers:
        for circuit in worker["circuits"]:
            known = agents.setdefault(circuit["agent"], {**circuit, "off": None, "last": None})
            if circuit["circuit"] != "closed":
                known.update(circuit)
        for name, failure in worker["failures"].items():
            if name in agents:
                last = agents[name]["last"]
                if last is None or last["at"] < failure["at"]:
                    agents[name]["last"] = failure
    gone = {"circuit": "off", "models_paused": 0, "last": None}
    return [*agents.values(), *({"agent": name, **gone, "off": why} for name, why in off.items())]


def _versions() -> dict[str, str]:
    found = {"Verbatim": __version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
