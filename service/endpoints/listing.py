"""`GET /v1/chat/completions`: the caller's completions, those that ended as they are stored, and those
that run as far as they have come.

Lists of ended ones come from the database, of running ones from all workers. Never here: SQL.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from aiohttp import web
from attrs import frozen

from db.store import CompletionFilter, Paging, Readable
from service.callers.auth import owner_of
from service.edge.siblings import Siblings, answer_unavailable
from service.endpoints.asking import ask
from service.endpoints.lists import (
    filtered_paging_of,
    json_response,
    list_object,
    page_of,
)
from service.endpoints.showing import running_completion, stored_completion
from service.stream.relay import Relay
from service.stream.running import RunningStreams
from statemachine import State


@frozen
class Listing:
    """The endpoint."""

    store: Readable
    streams: RunningStreams
    siblings: Siblings | None = None

    def routes(self) -> list[web.RouteDef]:
        """The call and its handler."""
        return [web.get("/v1/chat/completions", self.list_all)]

    async def list_all(self, request: web.Request) -> web.Response:
        """The caller's completions that fit the filters: those that ended, or those that run."""
        wanted, paging, state = filtered_paging_of(request)
        if state is not None and not state.is_final:
            return json_response(await self._running(request, wanted, paging, state))
        page = await ask(self.store.list_completions(owner_of(request), wanted, paging))
        return json_response(list_object(page, stored_completion))

    async def _running(
        self, request: web.Request, wanted: CompletionFilter, paging: Paging, state: State
    ) -> dict[str, Any]:
        here = _fitting(self.streams, owner_of(request), wanted, state)
        shown = [running_completion(relay.prompt.request, relay.session) for relay in here]
        if self.siblings is not None:
            if self.siblings.is_from_sibling(request):
                return {"data": shown}
            try:
                for theirs in await self.siblings.gather(request):
                    shown += theirs["data"]
            except TimeoutError:
                raise answer_unavailable() from None
        return list_object(page_of(shown, paging), dict)


def _fitting(
    relays: Iterable[Relay], owner: str, wanted: CompletionFilter, state: State
) -> Iterator[Relay]:
    for relay in relays:
        request = relay.session.request
        if (
            relay.session.state is state
            and request.owner == owner
            and not request.is_hidden
            and wanted.model in (None, request.model)
            and (wanted.metadata or {}).items() <= (request.metadata or {}).items()
        ):
            yield relay
