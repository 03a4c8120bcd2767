"""The screen Callers: who may call and how much is left; the configuration in force, without secrets."""

from typing import Any

from aiohttp import web

from service.callers.auth import ANONYMOUS
from service.page.doorway import Visitor
from service.page.screens import Screens
from service.settings.config import dump_config


class Callers:
    """The screen."""

    def __init__(self, screens: Screens) -> None:
        self._screens = screens
        self._watched = screens.watched

    def routes(self) -> list[web.RouteDef]:
        """The call and its handler."""
        return [web.get("/page/callers", self._screens.shown(self.show))]

    async def show(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """The page; to a sibling, what is used up here."""
        watched = self._watched
        config = watched.config.value
        own = watched.admission.usage()
        if watched.siblings is not None and watched.siblings.is_from_sibling(request):
            return web.json_response(own)
        usages = [own, *await watched.ask_others(request)]
        is_shared = config.fleet.url is not None
        together = _seen if is_shared else _sum
        names = [key.name for key in config.auth.api_keys if key.name in own] or [ANONYMOUS]
        return self._screens.page(
            "callers.html",
            visitor,
            here="Callers",
            callers=[(name, together([usage.get(name) for usage in usages])) for name in names],
            is_shared=is_shared,
            workers=len(usages),
            has_keys=bool(config.auth.api_keys),
            admins=[key.name for key in config.admin.api_keys],
            config=dump_config(config),
        )


def _sum(usages: list[dict[str, Any] | None]) -> dict[str, Any]:
    """What all workers count of a caller; each counts for itself, so their limits add up."""
    known = [usage for usage in usages if usage is not None]
    total = dict[str, Any](known[0])
    for usage in known[1:]:
        for name, value in usage.items():
            if value is not None and total[name] is not None:
                total[name] += value
    return total


def _seen(usages: list[dict[str, Any] | None]) -> dict[str, Any]:
    """The same where workers share what they count: the streams of all, and of each amount the least that
    any of them has seen left."""
    known = [usage for usage in usages if usage is not None]
    total = dict[str, Any](known[0])
    for usage in known[1:]:
        total["streams"] += usage["streams"]
        for things in ("requests", "tokens"):
            if usage[things] is not None and total[things] is not None:
                total[things] = min(total[things], usage[things])
    return total
