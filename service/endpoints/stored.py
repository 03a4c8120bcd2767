"""Shows, changes and deletes stored completions: OpenAI's five calls and their shapes.

Every completion that ended is stored, whole or partial, and shown to its owner unless it was
requested with `store: false`. Two fields are added to OpenAI's shapes: `state` says how the answer
ended and `error` why, since `finish_reason` is null if the model didn't finish. Never here: SQL.
"""

from typing import Any

from aiohttp import web
from attrs import frozen

from db.store import CompletionView, Readable, StoredMessage
from service.callers.auth import owner_of
from service.edge.connections import continue_later
from service.endpoints.asking import ask
from service.endpoints.bodies import parsed_body
from service.endpoints.lists import (
    json_response,
    list_object,
    not_found,
    paging_of,
)
from service.endpoints.showing import stored_completion
from service.fleet.elsewhere import Elsewhere
from service.settings.config import Config
from service.settings.live import Live
from service.wire import parse_metadata_update


@frozen
class StoredCompletions:
    """The endpoints. The store does the work; each call is about one owner's completions, and a
    call that has begun ends even if its client leaves."""

    store: Readable
    config: Live[Config]
    elsewhere: Elsewhere | None = None

    def routes(self) -> list[web.RouteDef]:
        """The calls and their handlers."""
        one = "/v1/chat/completions/{completion_id}"
        return [
            web.post(one, self.update, expect_handler=continue_later),
            web.delete(one, self.delete),
            web.get(f"{one}/messages", self.list_messages),
        ]

    async def update(self, request: web.Request) -> web.Response:
        """Give a completion other metadata."""
        timeout_seconds = self.config.value.server.request_timeout_seconds
        metadata, _ = await parsed_body(request, timeout_seconds, parse_metadata_update)
        completion_id = request.match_info["completion_id"]
        call = self.store.set_metadata(owner_of(request), completion_id, metadata)
        return _shown(await ask(call), request)

    async def delete(self, request: web.Request) -> web.Response:
        """Delete a completion; see `db.store.Readable.delete`."""
        completion_id = request.match_info["completion_id"]
        if not await ask(self.store.delete(owner_of(request), completion_id)):
            raise not_found("stored completion", completion_id, "completion_id")
        if self.elsewhere is not None:
            await self.elsewhere.forget(completion_id)
        return json_response(
            {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}
        )

    async def list_messages(self, request: web.Request) -> web.Response:
        """The messages that a completion's client sent."""
        completion_id = request.match_info["completion_id"]
        paging = paging_of(request)
        page = await ask(self.store.list_prompt(owner_of(request), completion_id, paging))
        if page is None:
            raise not_found("stored completion", completion_id, "completion_id")
        return json_response(list_object(page, stored_message))


def _shown(view: CompletionView | None, request: web.Request) -> web.Response:
    if view is None:
        name = request.match_info["completion_id"]
        raise not_found("stored completion", name, "completion_id")
    return json_response(stored_completion(view))


def stored_message(row: StoredMessage) -> dict[str, Any]:
    """A message that a client sent. Content in parts goes into `content_parts`."""
    message: dict[str, Any] = {"name": None, **row.message, "id": row.message_id}
    message["content_parts"] = None
    if isinstance(message["content"], list):
        message["content_parts"], message["content"] = message["content"], None
    return message
