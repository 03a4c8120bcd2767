"""Reads everybody's completions from what is kept in memory: the base of `db.memory.store.MemoryStore`.

Slow and plain on purpose, as `db.memory.views` is.
"""

from db.memory.views import MemoryViews
from db.overview import Found, Place, Sought, Stretch
from db.rows.columns import readable
from db.store import (
    CompletionView,
    ConversationView,
    Page,
    Paging,
    StoredCompletion,
    StoredMessage,
)

_INDEXED = 200
"""Of long names as many characters count as `db.postgres.overview_sql` compares."""


class MemoryOverview(MemoryViews):
    """The calls of `db.overview.Overview`."""

    async def list_all(self, sought: Sought, limit: int, after: Place | None = None) -> Stretch:
        """See `db.overview.Overview.list_all`."""
        self._require_open()
        rows = [row for row in self._newest_first() if _fits(row, sought)]
        if after is not None:
            place = after.created_at, after.completion_id
            rows = [row for row in rows if _place(row) < place]
        items = tuple(rows[:limit])
        more = len(rows) > limit
        return Stretch(items, Place(*_place(items[-1])) if more and items else None)

    async def find_any(self, name: str, limit: int) -> Found:
        """See `db.overview.Overview.find_any`."""
        self._require_open()
        name = readable(name)
        rows = [
            row
            for row in self._newest_first()
            if name in (row.completion_id, row.request_id, row.trace_id)
            or name[:_INDEXED] == (row.upstream_id or "")[:_INDEXED] != ""
        ]
        conversation = self._conversations.get(name)
        is_shown = conversation is not None and not conversation.hidden
        return Found(tuple(rows[:limit]), name if is_shown else None)

    async def view_any(self, completion_id: str) -> CompletionView | None:
        """See `db.overview.Overview.view_any`."""
        row = self._shown(None, completion_id)
        return None if row is None else self._view(row.completion_id)

    async def list_any_prompt(
        self, completion_id: str, paging: Paging
    ) -> Page[StoredMessage] | None:
        """See `db.overview.Overview.list_any_prompt`."""
        return self._prompt(None, completion_id, paging)

    async def view_any_conversation(
        self, conversation_id: str, paging: Paging
    ) -> ConversationView | None:
        """See `db.overview.Overview.view_any_conversation`."""
        return self._conversation(None, conversation_id, paging)

    def _newest_first(self) -> list[StoredCompletion]:
        rows = [row for row in self._completions.values() if not row.hidden]
        return sorted(rows, key=_place, reverse=True)


def _place(row: StoredCompletion) -> tuple[float, str]:
    return row.created_at, row.completion_id


def _fits(row: StoredCompletion, sought: Sought) -> bool:
    error = row.error or {}
    code = error.get("kind") or error.get("code")
    return (
        sought.state in (None, row.state)
        and (sought.error is None or _same(code, sought.error))
        and (sought.model is None or _same(row.model, sought.model))
        and (sought.agent is None or _same(row.agent, sought.agent))
        and (sought.owner is None or row.owner == readable(sought.owner))
        and sought.conversation_id in (None, row.conversation_id)
        and (sought.since is None or row.created_at >= sought.since)
        and (sought.until is None or row.created_at < sought.until)
    )


def _same(one: str | None, other: str) -> bool:
    return one is not None and one[:_INDEXED] == readable(other)[:_INDEXED]
