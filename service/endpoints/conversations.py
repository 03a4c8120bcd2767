"""Shows conversations: `GET /v1/conversations`, and `GET /v1/conversations/{id}` with its messages.

The conversation is OpenAI's object of that name with additional fields. Its messages are a tree,
where OpenAI's are a list: an edited message, or another answer to the same one, is a branch. Nodes
come in pages, like all lists; each names the node above it. How they are stored is the store's.
"""

from typing import Any

from aiohttp import web
from attrs import frozen

from db.store import (
    CompletionView,
    Readable,
    StoredCompletion,
    StoredConversation,
    ThreadNode,
)
from service.callers.auth import owner_of
from service.endpoints.asking import ask
from service.endpoints.lists import Limits, json_response, list_object, not_found, paging_of
from service.endpoints.tool_calls import messages_of

NODES = Limits(default=100, most=1000)
"""A turn of a chat is two nodes."""


@frozen
class Conversations:
    """The endpoints. Each caller sees only its own conversations."""

    store: Readable

    def routes(self) -> list[web.RouteDef]:
        """The calls and their handlers."""
        return [
            web.get("/v1/conversations", self.list_all),
            web.get("/v1/conversations/{conversation_id}", self.retrieve),
        ]

    async def list_all(self, request: web.Request) -> web.Response:
        """The caller's conversations."""
        page = await ask(self.store.list_conversations(owner_of(request), paging_of(request)))
        return json_response(list_object(page, conversation_object))

    async def retrieve(self, request: web.Request) -> web.Response:
        """One conversation, and a page of the nodes of its tree."""
        name, paging = request.match_info["conversation_id"], paging_of(request, NODES)
        view = await ask(self.store.view_conversation(owner_of(request), name, paging))
        if view is None:
            raise not_found("conversation", name, "conversation_id")
        nodes = list_object(view.nodes, node_object)
        return json_response({**conversation_object(view.conversation), "nodes": nodes})


def conversation_object(row: StoredConversation) -> dict[str, Any]:
    """OpenAI's conversation object, with the time of its last change and the client's key for it."""
    return {
        "id": row.conversation_id,
        "object": "conversation",
        "created_at": int(row.created_at),
        "metadata": {},
        "updated_at": int(row.updated_at),
        "key": row.client_key,
    }


def node_object(node: ThreadNode) -> dict[str, Any]:
    """A node of the tree: a message, or a completion that never began to answer."""
    message, completion = node.message, node.completion
    came_at = 0.0
    if message is not None:
        came_at = message.created_at
    elif completion is not None:
        came_at = completion.finished_at
    return {
        "id": node.node_id,
        "object": "conversation.node",
        "parent_id": node.parent_id,
        "created_at": int(came_at),
        "state": None if message is None else message.state,
        "message": None if message is None else message.message,
        "completion": None if completion is None else _completion(node, completion),
        **_turns(node),
    }


def _turns(node: ThreadNode) -> dict[str, Any]:
    """The turns of an answer for which tools were called; nothing for any other node."""
    if not node.tool_calls:
        return {}
    message = None if node.message is None else node.message.message
    return {"messages": messages_of(message, node.tool_calls)}


def _completion(node: ThreadNode, completion: StoredCompletion) -> dict[str, Any]:
    """The completion that a node is part of, and how it ended."""
    answers = () if node.message is None else (node.message,)
    choice = next(iter(CompletionView(completion, answers, None).choices), None)
    return {
        "id": completion.completion_id,
        "choice_index": None if choice is None else choice.index,
        "model": completion.model,
        "state": completion.state.value,
        "finish_reason": None if choice is None else choice.finish_reason,
        "error": completion.error,
    }
