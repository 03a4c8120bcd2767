"""`GET /metrics`: what all workers have counted, added up.

Whoever is asked asks its siblings, and adds. The rules:

1. A sum never falls while the service runs, or Prometheus would take it for a restart and count all of
   it again. So each worker leaves what it has counted where its siblings can read it, before it is shown
   to anybody; of one that is gone or hangs that counts, and its successor goes on from there.
2. A sibling has a second. Gauges of one that says nothing are left out: it has no streams any more, or
   nobody knows.
3. Nothing is written to files, and nobody is asked unless somebody scrapes.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable

import orjson
import structlog
from aiohttp import hdrs, web

from service.edge.siblings import Siblings
from service.metrics.counts import Counts, Figures, merged, read, written
from service.metrics.families import families
from service.metrics.fleet import FleetCounting
from service.metrics.gauges import Sources, gauges
from service.metrics.labels import ModelLabels
from service.metrics.lag import Lag
from service.metrics.text import Exposition
from service.metrics.watching import Counting, SaveCounting

log = structlog.get_logger(__name__)

PATH = "/metrics"
_SIBLING_SECONDS = 1.0
_KEEP_SECONDS = 5.0
"""How often a worker leaves its figures though nobody asks; so much is lost if it is killed."""
_LIST_SECONDS = 600.0
"""How often a scrape has the backends' models listed, which may then be labels."""


class Metrics:
    """What this process counts, and the endpoint.

    Args:
        is_known: whether a model may be a label; see `ModelLabels`.
        per_owner: tokens are counted by caller too.
        siblings: the other workers, if there are any.
        has_fleet: there are other replicas.

    Attributes:
        counting: watches completions.
        saves: watches what becomes of records.
        fleet: watches this replica's part in a fleet; None without one.
    """

    def __init__(
        self,
        is_known: Callable[[str], bool],
        *,
        per_owner: bool,
        siblings: Siblings | None,
        has_fleet: bool,
    ) -> None:
        self._families = families(per_owner=per_owner, has_fleet=has_fleet)
        self._counts = Counts(self._families)
        self._exposition = Exposition(self._families)
        self._siblings = siblings
        self._worker = str(siblings.number if siblings else 0)
        self.counting = Counting(self._counts, ModelLabels(is_known), per_owner=per_owner)
        self.saves = SaveCounting(self._counts)
        self.fleet = FleetCounting(self._counts) if has_fleet else None
        self._lag = Lag(self._counts.histogram("verbatim_loop_lag_seconds"), self._worker)
        self._listed_at = -_LIST_SECONDS
        self._listing: asyncio.Task[None] | None = None

    def endpoint(
        self,
        sources: Sources,
        check: Callable[[web.Request], None],
        list_models: Callable[[], Awaitable[object]],
    ) -> web.RouteDef:
        """The route.

        Args:
            sources: what gauges are read from.
            check: raises ApiError for who may not scrape.
            list_models: has the backends' models listed.
        """

        async def scrape(request: web.Request) -> web.Response:
            if self._siblings is not None and self._siblings.is_from_sibling(request):
                figures = await self._own(sources)
                return web.Response(
                    body=orjson.dumps(written(figures)), content_type="application/json"
                )
            check(request)
            self._list_seldom(list_models)
            figures = merged(self._families, await self._all(sources, request))
            text, kind = self._exposition.write(figures, request.headers.get(hdrs.ACCEPT))
            return web.Response(body=text, headers={hdrs.CONTENT_TYPE: kind})

        return web.get(PATH, scrape)

    async def run(self, _app: web.Application) -> AsyncIterator[None]:
        """A cleanup context: goes on from what a predecessor has counted, measures the loop's lag, and
        leaves the figures now and then and at the end."""
        if self._siblings is not None and (left := self._siblings.kept(self._siblings.number)):
            self._counts.go_on_from(read(orjson.loads(left)))
        self._lag.start()
        keeping = asyncio.create_task(self._keep_on(), name="keep figures")
        yield
        self._lag.stop()
        for task in (keeping, self._listing):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
        self._keep()

    async def _own(self, sources: Sources) -> Figures:
        """This process's, which are kept first."""
        now = await gauges(sources, self._worker)
        if self.fleet is not None:
            now |= await self.fleet.gauges(self._worker)
            self.fleet.count()
        self._keep()
        return {**self._counts.figures, **now}

    async def _all(self, sources: Sources, request: web.Request) -> list[Figures]:
        if self._siblings is None:
            return [await self._own(sources)]
        theirs = await self._siblings.ask_each(request, _SIBLING_SECONDS)
        found = [read(answer) for answer in theirs.values()]
        for number in self._siblings.others:
            if number not in theirs and (left := self._siblings.kept(number)):
                found.append(self._counts.growing(read(orjson.loads(left))))
        return [await self._own(sources), *found]

    async def _keep_on(self) -> None:
        while self._siblings is not None:
            await asyncio.sleep(_KEEP_SECONDS)
            self._keep()

    def _keep(self) -> None:
        if self._siblings is not None:
            if self.fleet is not None:
                self.fleet.count()
            growing = self._counts.growing(self._counts.figures)
            self._siblings.keep(orjson.dumps(written(growing)))

    def _list_seldom(self, list_models: Callable[[], Awaitable[object]]) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._listed_at >= _LIST_SECONDS:
            self._listed_at = now
            # Of no request: its lines in the log are not the scrape's.
            self._listing = asyncio.create_task(
                _listed(list_models), name="list models", context=contextvars.Context()
            )


async def _listed(list_models: Callable[[], Awaitable[object]]) -> None:
    try:
        await list_models()
    except Exception as error:
        log.warning("models not listed", reason=repr(error)[:200])
