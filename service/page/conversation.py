"""The screen of a conversation: its tree, branch by branch. Never here: how trees are stored."""

from collections.abc import Iterator, Sequence
from typing import Any

import structlog
from aiohttp import web
from attrs import frozen

from db.store import Paging, ThreadNode, UnknownCursor
from service.page.doorway import Visitor
from service.page.screens import Screens, look, nothing
from service.page.texts import HIDDEN, calls_of, role_of, said

log = structlog.get_logger(__name__)

_PAGE = 200
_LONGEST_SHOWN = 20_000
_DEEPEST = 6


@frozen
class Line:
    """A node as it is shown.

    Attributes:
        depth: how many branches it is away from the trunk, up to `_DEEPEST`.
        branch: `1 of 3` for the first of three that follow the same message; None if it is alone.
    """

    node: ThreadNode
    depth: int
    branch: str | None


class Conversation:
    """The screen."""

    def __init__(self, screens: Screens) -> None:
        self._screens = screens
        self._watched = screens.watched

    def routes(self) -> list[web.RouteDef]:
        """The call and its handler."""
        path = "/page/conversations/{conversation_id}"
        return [web.get(path, self._screens.shown(self.show))]

    async def show(self, request: web.Request, visitor: Visitor) -> web.StreamResponse:
        """The page: the newest messages, in the order in which they follow each other."""
        name = request.match_info["conversation_id"]
        paging = Paging(_PAGE, request.query.get("after") or None, descending=True)
        try:
            view = await look(self._watched.store.view_any_conversation(name, paging))
        except UnknownCursor:
            raise web.HTTPBadRequest(reason="The address names no place in it.") from None
        if view is None:
            raise nothing("conversation with the id", name)
        if self._watched.shows_texts:
            log.info("text opened", conversation_id=name, admin=visitor.name)
        nodes = view.nodes.items
        return self._screens.page(
            "conversation.html",
            visitor,
            here="Completions",
            conversation=view.conversation,
            lines=[self._shown(line) for line in lines_of(nodes)],
            older=nodes[-1].node_id if view.nodes.has_more else None,
            is_first=paging.after is None,
        )

    def _shown(self, line: Line) -> dict[str, Any]:
        message, completion = line.node.message, line.node.completion
        text, calls = "", list[str]()
        if message is not None:
            whole = message.message
            text, calls = said(whole.get("content")), calls_of(whole)
            if not self._watched.shows_texts:
                text, calls = HIDDEN, []
        return {
            "depth": line.depth,
            "branch": line.branch,
            "role": "assistant" if message is None else role_of({"role": message.role}),
            "text": text[:_LONGEST_SHOWN],
            "is_cut": len(text) > _LONGEST_SHOWN,
            "calls": calls,
            "is_partial": message is None or message.state == "partial",
            "completion": completion,
        }


def lines_of(nodes: Sequence[ThreadNode]) -> list[Line]:
    """The nodes as they follow each other, whatever their order; where several follow one, each begins
    a branch."""
    below: dict[str | None, list[ThreadNode]] = {}
    known = {node.node_id for node in nodes}
    for node in sorted(nodes, key=_came_at):
        above = node.parent_id if node.parent_id in known else None
        below.setdefault(above, []).append(node)
    lines = list[Line]()
    waiting = [*reversed(list(_children(below, None, 0)))]
    while waiting:
        line = waiting.pop()
        lines.append(line)
        waiting += reversed(list(_children(below, line.node.node_id, line.depth)))
    return lines


def _children(
    below: dict[str | None, list[ThreadNode]], node_id: str | None, depth: int
) -> Iterator[Line]:
    children = below.get(node_id, ())
    for number, node in enumerate(children, 1):
        if len(children) == 1:
            yield Line(node, depth, None)
        else:
            deeper = min(depth + 1, _DEEPEST)
            yield Line(node, deeper, f"{number} of {len(children)}")


def _came_at(node: ThreadNode) -> tuple[float, str]:
    at = 0.0
    if node.message is not None:
        at = node.message.created_at
    elif node.completion is not None:
        at = node.completion.finished_at
    return at, node.node_id
