"""The screen Completions: everybody's, newest first, filtered; and the box that finds any id of ours.

Never here: texts, SQL.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlencode

from aiohttp import hdrs, web

from db.overview import Found, Place, Sought
from service.edge.errors import ERROR_CODES
from service.page.doorway import Visitor
from service.page.now import running_everywhere
from service.page.screens import Screens, look
from statemachine import State

_PAGE = 50
_FOUND = 100
_PATIENCE_SECONDS = 1.0
_PLACE = re.compile(r"([0-9]{1,11})\.([0-9]{6})-(.{1,200})", re.ASCII | re.DOTALL)
_NAMES = ("state", "error", "model", "agent", "owner", "conversation")
_TIMES = ("since", "until")
_LONGEST = 500
_CODES = sorted(code for code, status in ERROR_CODES.items() if status >= 499 or code == "stopped")
"""Of errors that a stored answer may have, most of them; any other can be written into the address."""


class Completions:
    """The screen, and finding."""

    def __init__(self, screens: Screens) -> None:
        self._screens = screens
        self._watched = screens.watched

    def routes(self) -> list[web.RouteDef]:
        """The calls and their handlers."""
        return [
            web.get("/page/completions", self._screens.shown(self.show)),
            web.get("/page/find", self._screens.shown(self.find)),
        ]

    async def show(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """The page. A filter that can't be read is a 400 that says so."""
        given = {
            name: request.query.get(name, "").strip()[:_LONGEST] for name in (*_NAMES, *_TIMES)
        }
        sought, after = _sought(given), _place(request.query.get("after"))
        stretch = await look(self._watched.store.list_all(sought, _PAGE, after))
        kept = {name: value for name, value in given.items() if value}
        older = None
        if stretch.next is not None:
            older = "/page/completions?" + urlencode({**kept, "after": _written(stretch.next)})
        return self._screens.page(
            "completions.html",
            visitor,
            here="Completions",
            rows=stretch.items,
            given=given,
            is_filtered=bool(kept),
            is_first=after is None,
            newest="/page/completions?" + urlencode(kept),
            older=older,
            states=[state.value for state in State if state.is_final],
            codes=_CODES,
            agents=self._watched.names,
        )

    async def find(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """Leads to what has the id: to the one thing that has it, or to a list of all."""
        name = request.query.get("id", "").strip()[:_LONGEST]
        running = await running_everywhere(self._watched, request, _PATIENCE_SECONDS)
        if any(row["id"] == name and not row["is_hidden"] for row in running.rows):
            return _lead_to(f"/page/completions/{name}")
        found = await look(self._watched.store.find_any(name, _FOUND)) if name else Found((), None)
        if found.conversation_id is not None:
            return _lead_to(f"/page/conversations/{found.conversation_id}")
        if len(found.completions) == 1:
            return _lead_to(f"/page/completions/{found.completions[0].completion_id}")
        return self._screens.page(
            "found.html", visitor, here="", rows=found.completions, name=name, most=_FOUND
        )


def _lead_to(path: str) -> web.Response:
    return web.Response(status=303, headers={hdrs.LOCATION: path})


def _sought(given: Mapping[str, str]) -> Sought:
    state = given["state"]
    if state and state not in [one.value for one in State if one.is_final]:
        raise web.HTTPBadRequest(reason="No completion ends in such a state.")
    return Sought(
        state=State(state) if state else None,
        error=given["error"] or None,
        model=given["model"] or None,
        agent=given["agent"] or None,
        owner=given["owner"] or None,
        conversation_id=given["conversation"] or None,
        since=_time(given["since"]),
        until=_time(given["until"]),
    )


def _time(text: str) -> float | None:
    """The POSIX seconds of a time, in UTC as a browser's field writes it, or with an offset. Raises
    HTTPBadRequest."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise web.HTTPBadRequest(reason="A time is written as 2026-01-31T23:59.") from None


def _place(text: str | None) -> Place | None:
    """The place that an address names. Raises HTTPBadRequest."""
    if text is None:
        return None
    found = _PLACE.fullmatch(text)
    if found is None:
        raise web.HTTPBadRequest(reason="The address names no place in the list.")
    return Place(float(f"{found[1]}.{found[2]}"), found[3])


def _written(place: Place) -> str:
    return f"{place.created_at:.6f}-{place.completion_id}"
