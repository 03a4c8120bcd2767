"""`GET /v1/chat/completions`: the caller's completions, those that ended as they are stored, and those
that run as far as they have come.

Lists of ended ones come from the database, of running ones from all workers, and from every replica of
a fleet. Never here: SQL.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
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
from service.fleet.others import Others
from service.stream.relay import Relay
from service.stream.running import RunningStreams
from statemachine import State

_LIST = "list"
"""What one replica asks the others."""
_MOST_TOLD = 2 * 1024 * 1024
"""Characters of JSON in an answer: some hundred long texts."""


@frozen
class Listing:
    """The endpoint."""

    store: Readable
    streams: RunningStreams
    siblings: Siblings | None = None
    others: Others | None = None

    def __attrs_post_init__(self) -> None:
        if self.others is not None:
            self.others.answer(_LIST, self._tell)

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
        owner, is_whole = owner_of(request), True
        shown = list(_shown(self.streams, owner, wanted, state))
        if self.siblings is not None:
            if self.siblings.is_from_sibling(request):
                return {"data": shown}
            try:
                for theirs in await self.siblings.gather(request):
                    shown += theirs["data"]
            except TimeoutError:
                raise answer_unavailable() from None
        if self.others is not None:
            known = [each["id"] for each in shown]
            asked = [owner, wanted.model, wanted.metadata, state.value]
            told = await self.others.tell_of(owner, known, _LIST, asked)
            is_whole = told.is_whole and all(answer["is_whole"] for _, answer in told.answers)
            for _, answer in told.answers:
                shown += (each for each in answer["data"] if each["id"] not in known)
        listed = list_object(page_of(shown, paging), dict)
        return listed if is_whole else {**listed, "partial": True}

    def _tell(self, arguments: Sequence[Any]) -> str:
        """What runs here of an owner's, for another replica that lists it."""
        owner, model, metadata, state = arguments
        data: list[str] = []
        size, is_whole = 0, True
        wanted = CompletionFilter(model, metadata, None)
        for shown in _shown(self.streams, owner, wanted, State(state)):
            text = json.dumps(shown)
            if (size := size + len(text)) > _MOST_TOLD:
                is_whole = False
                break
            data.append(text)
        return f'{{"data": [{", ".join(data)}], "is_whole": {json.dumps(is_whole)}}}'


def _shown(
    relays: Iterable[Relay], owner: str, wanted: CompletionFilter, state: State
) -> Iterator[dict[str, Any]]:
    for relay in _fitting(relays, owner, wanted, state):
        yield running_completion(relay.prompt.request, relay.session)


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
