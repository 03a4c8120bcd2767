"""The screen Now: what runs in all workers, live; cancelling; the last failures.

One look a tick, however many look on, and none when nobody does. Never here: what is stored.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from aiohttp import hdrs, web
from attrs import evolve

from db.overview import Sought
from db.store import StoreUnavailable
from service.callers.auth import ANONYMOUS
from service.edge.connections import ClientConnection
from service.edge.siblings import asked_elsewhere
from service.page.doorway import Visitor
from service.page.replicas import missing_text
from service.page.running import Running, running_here
from service.page.screens import HEADERS, Screens, look
from service.page.watched import Watched
from service.settings.config import OpenAIAgentConfig, ScriptedAgentConfig
from service.stream.running import stopped
from statemachine import State

log = structlog.get_logger(__name__)

TICK_SECONDS = 0.5
_PATIENCE_SECONDS = 0.4
_MOST_VIEWERS = 20
_PING_TICKS = 30
_FAILURES = 6
_EVENTS = "/page/now"
_NOW = "now"
"""What one replica asks the others."""


async def running_everywhere(watched: Watched, request: web.Request, seconds: float) -> Running:
    """What runs now, in all workers and at all replicas; one that says nothing for so long is left
    out."""
    running = running_here(watched.streams, watched.clock(), watched.replica)
    asking = request.clone(rel_url=_EVENTS)
    workers, told = await asyncio.gather(
        watched.ask_others(asking, seconds), watched.told_by_others(_NOW, seconds)
    )
    running = running.with_others([*workers, *(answer for _, answer in told.answers)])
    return evolve(running, missing=missing_text(told))


class Ticker:
    """Looks at what runs, twice a second while somebody looks on.

    Attributes:
        running: what was seen last.
    """

    def __init__(self, watched: Watched) -> None:
        self.running = Running()
        self._watched = watched
        self._viewers = 0
        self._ticked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._request: web.Request | None = None

    @property
    def has_room(self) -> bool:
        """True if one more may look on."""
        return self._viewers < _MOST_VIEWERS

    async def look(self, request: web.Request) -> Running:
        """What runs now, in all workers."""
        return await running_everywhere(self._watched, request, _PATIENCE_SECONDS)

    async def next(self) -> Running | None:
        """What the next tick sees, for whoever has joined; None if the service stops."""
        if self._watched.streams.is_draining:
            return None
        if self._task is None:
            self._task = asyncio.create_task(self._tick(), name="look at what runs")
        await self._ticked.wait()
        return None if self._watched.streams.is_draining else self.running

    def join(self, request: web.Request) -> None:
        """Somebody looks on, and will `leave`."""
        self._viewers += 1
        self._request = request

    def leave(self) -> None:
        """They have gone."""
        self._viewers -= 1

    async def _tick(self) -> None:
        try:
            while self._viewers and not self._watched.streams.is_draining:
                await asyncio.sleep(TICK_SECONDS)
                assert self._request is not None
                self.running = (await self.look(self._request)).with_rates(self.running)
                self._tell()
        except Exception:
            log.exception("looking failed")
        finally:
            self._task = None
            self._tell()

    def _tell(self) -> None:
        told, self._ticked = self._ticked, asyncio.Event()
        told.set()


class Now:
    """The screen, its events, and what its buttons do."""

    def __init__(self, screens: Screens) -> None:
        self._screens = screens
        self._watched = screens.watched
        self._ticker = Ticker(screens.watched)
        if screens.watched.others is not None:
            screens.watched.others.answer(_NOW, self._tell)

    def routes(self) -> list[web.RouteDef]:
        """The calls and their handlers."""
        shown = self._screens.shown
        return [
            web.get("/", shown(self.show)),
            web.get(_EVENTS, shown(self.events)),
            web.get("/page/failures", shown(self.failures)),
            web.post("/page/completions/{completion_id}/cancel", shown(self.cancel)),
        ]

    async def show(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """The page."""
        watched = self._watched
        running = await self._ticker.look(request)
        failures, is_first_run = await self._stored()
        can_ask = visitor.name == ANONYMOUS and not watched.addresses.is_operators(request)
        return self._screens.page(
            "now.html",
            visitor,
            here="Now",
            running=running,
            has_replicas=watched.others is not None,
            failures=failures,
            is_first_run=is_first_run and not running.rows,
            ask=_model_of(watched) if can_ask else None,
        )

    async def failures(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """The last failures alone, for the page's script."""
        failures, _ = await self._stored()
        return self._screens.page("failures.html", visitor, failures=failures)

    async def _stored(self) -> tuple[Any, bool]:
        """The last failures, None if the database is away; and whether nothing is stored at all."""
        store = self._watched.store
        try:
            failures = (await look(store.list_all(Sought(state=State.FAILED), _FAILURES))).items
            return failures, not failures and not (await look(store.list_all(Sought(), 1))).items
        except StoreUnavailable as error:
            log.warning("store not reached", reason=str(error))
            return None, False

    async def events(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """What changes, as server-sent events: at most two a second, each the difference to the
        last. To a sibling, once, what runs here."""
        watched, ticker = self._watched, self._ticker
        if watched.siblings is not None and watched.siblings.is_from_sibling(request):
            return web.json_response(self._here())
        if not ticker.has_room:
            raise web.HTTPServiceUnavailable(reason="Too many look on already.")
        response = web.StreamResponse(
            headers={**HEADERS, hdrs.CONTENT_TYPE: "text/event-stream", "X-Accel-Buffering": "no"}
        )
        if isinstance(request.protocol, ClientConnection):
            request.protocol.limit_waiting(
                watched.config.value.sse.send_timeout_seconds, {"path": _EVENTS}
            )
        await response.prepare(request)
        ticker.join(request)
        try:
            await self._write_changes(response, visitor, request)
        except ConnectionResetError:
            pass  # they have gone
        finally:
            ticker.leave()
        return response

    def _here(self) -> dict[str, Any]:
        watched = self._watched
        return running_here(watched.streams, watched.clock(), watched.replica).as_json()

    def _tell(self, _: Sequence[Any]) -> str:
        """What runs here, for another replica's page."""
        return json.dumps(self._here())

    async def _write_changes(
        self, response: web.StreamResponse, visitor: Visitor, request: web.Request
    ) -> None:
        told, silent = Running(), 0
        await response.write(b"retry: 2000\n\n")
        while (seen := await self._ticker.next()) is not None:
            if not visitor.is_current(self._screens.doorway, request):
                return
            change = seen.change_from(told)
            if change:
                await response.write(_event(change))
                told, silent = seen, 0
            elif (silent := silent + 1) >= _PING_TICKS:
                await response.write(b": nothing new\n\n")
                silent = 0

    async def cancel(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """Stop a running completion, wherever it runs. Its partial text is kept."""
        name = request.match_info["completion_id"]
        siblings = self._watched.siblings
        is_from_sibling = siblings is not None and siblings.is_from_sibling(request)
        await self._screens.doorway.form_of(request, visitor.token)
        relay = self._watched.streams.find_any(name)
        if relay is not None:
            await stopped(relay)
        elif is_from_sibling:
            raise web.HTTPNotFound
        elif await asked_elsewhere(siblings, request) is None and not await self._stop(name):
            text = "It doesn't run any more; it ended meanwhile."
            return self._screens.message(visitor, 409, text)
        if is_from_sibling:
            return web.json_response({})
        log.info("cancelled by an operator", completion_id=name, admin=visitor.name)
        return web.Response(status=303, headers={hdrs.LOCATION: "/"})

    async def _stop(self, name: str) -> bool:
        """Stop what runs at another replica; False if nothing does. Raises ApiError (503): nobody
        said."""
        elsewhere = self._watched.reading.elsewhere
        return elsewhere is not None and await elsewhere.cancel(None, name) is not None


def _model_of(watched: Watched) -> str | None:
    """A model that the box can ask for; None: nobody knows one. An agent's own name will do where it
    is scripted, or has a model of its own."""
    on = set(watched.names)
    agents = [agent for agent in watched.config.value.agents if agent.name in on]
    for agent in agents:
        if isinstance(agent, ScriptedAgentConfig):
            return agent.name
    for agent in agents:
        if isinstance(agent, OpenAIAgentConfig):
            if isinstance(agent.parameters.get("model"), str):
                return agent.name
            for name in agent.models:
                if not set(name) & set("*?["):
                    return name
    return None


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
