"""Reads for owners from what is kept in memory: the base of `db.memory.store.MemoryStore`.

Slow and plain on purpose: a second opinion on what `db.postgres.reading` does with SQL.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import structlog

from db.rows.columns import readable
from db.rows.tapes import TapeColumns, TapeDamaged, tape_of
from db.store import (
    CompletionFilter,
    CompletionView,
    ConversationView,
    Page,
    Paging,
    Replayable,
    StoredCompletion,
    StoredConversation,
    StoredMessage,
    StoredToolCall,
    ThreadNode,
    UnknownCursor,
)

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
_Place = tuple[float, str]


class MemoryViews:
    """The reading half of `db.store.Readable`."""

    def __init__(self) -> None:
        self._conversations: dict[str, StoredConversation] = {}
        self._completions: dict[str, StoredCompletion] = {}
        self._answers: dict[str, tuple[StoredMessage, ...]] = {}
        self._messages: dict[str, list[StoredMessage]] = {}
        self._tapes: dict[str, TapeColumns] = {}
        self._tool_calls: dict[str, tuple[StoredToolCall, ...]] = {}
        self._tool_sets: dict[str, Any] = {}
        self._deleted: dict[str, tuple[str, float]] = {}

    async def list_completions(
        self, owner: str, wanted: CompletionFilter, paging: Paging
    ) -> Page[CompletionView]:
        """See `db.store.Readable.list_completions`."""
        self._require_open()
        rows = self._completions.values()
        shown = [row for row in rows if row.owner == readable(owner) and not row.hidden]
        places = {row.completion_id: row.created_at for row in shown}
        found = [
            ((row.created_at, row.completion_id), self._view(row.completion_id))
            for row in shown
            if (wanted.model is None or row.model == readable(wanted.model))
            and (wanted.metadata or {}).items() <= (row.metadata or {}).items()
            and wanted.state in (None, row.state)
        ]
        return _page(found, {**self._deleted_by(owner), **places}, paging)

    async def view(self, owner: str, completion_id: str) -> CompletionView | None:
        """See `db.store.Readable.view`."""
        self._require_open()
        return None if self._shown(owner, completion_id) is None else self._view(completion_id)

    async def replayable(
        self, owner: str, completion_id: str, *, hidden_since: float | None = None
    ) -> Replayable | None:
        """See `db.store.Readable.replayable`."""
        row = self._shown(owner, completion_id, hidden_since)
        if row is None:
            return None
        view, columns = self._view(row.completion_id), self._tapes.get(row.completion_id)
        if columns is None:
            return Replayable(view, None)
        try:
            lengths = bytes.fromhex(columns.lengths)
            return Replayable(view, tape_of(columns.tape.decode(), lengths, view.choices))
        except TapeDamaged:
            log.error("tape damaged", completion_id=row.completion_id)
            return Replayable(view, None)

    async def list_prompt(
        self, owner: str, completion_id: str, paging: Paging
    ) -> Page[StoredMessage] | None:
        """See `db.store.Readable.list_prompt`."""
        return self._prompt(owner, completion_id, paging)

    def _prompt(
        self, owner: str | None, completion_id: str, paging: Paging
    ) -> Page[StoredMessage] | None:
        completion = self._shown(owner, completion_id)
        if completion is None:
            return None
        walk = self._walk(completion.prompt_digest)[::-1]
        found = [((place, ""), row) for place, row in enumerate(walk)]
        places = {row.message_id: place for place, row in enumerate(walk)}
        return _page(found, places, paging, by_id=False)

    async def list_conversations(self, owner: str, paging: Paging) -> Page[StoredConversation]:
        """See `db.store.Readable.list_conversations`."""
        self._require_open()
        rows = self._conversations.values()
        shown = [row for row in rows if row.owner == readable(owner) and not row.hidden]
        places = {row.conversation_id: row.created_at for row in shown}
        found = [((row.created_at, row.conversation_id), row) for row in shown]
        return _page(found, {**self._deleted_by(owner), **places}, paging)

    async def view_conversation(
        self, owner: str, conversation_id: str, paging: Paging
    ) -> ConversationView | None:
        """See `db.store.Readable.view_conversation`."""
        return self._conversation(owner, conversation_id, paging)

    def _conversation(
        self, owner: str | None, conversation_id: str, paging: Paging
    ) -> ConversationView | None:
        self._require_open()
        found = self._conversations.get(conversation_id)
        if found is None or found.hidden or (owner is not None and found.owner != readable(owner)):
            return None
        nodes = [*self._messages_of(conversation_id), *self._unanswered_of(conversation_id)]
        places = {node.node_id: place for place, node in nodes}
        listed = [((place, node.node_id), node) for place, node in nodes]
        return ConversationView(found, _page(listed, places, paging))

    # --- rows -------------------------------------------------------------------------------

    @abstractmethod
    def _require_open(self) -> None: ...

    def _shown(
        self, owner: str | None, completion_id: str, hidden_since: float | None = None
    ) -> StoredCompletion | None:
        self._require_open()
        row = self._completions.get(readable(completion_id))
        if row is None or (owner is not None and row.owner != readable(owner)):
            return None
        is_old = hidden_since is None or row.finished_at < hidden_since
        return None if row.hidden and is_old else row

    def _view(self, completion_id: str) -> CompletionView:
        row = self._completions[completion_id]
        answers = sorted(self._answers[completion_id], key=lambda answer: answer.choice_index or 0)
        return CompletionView(
            row,
            tuple(answers),
            self._tool_sets.get(row.tools_digest or ""),
            self._calls_of(completion_id),
        )

    def _calls_of(self, completion_id: str) -> tuple[StoredToolCall, ...]:
        calls = self._tool_calls.get(completion_id, ())
        return tuple(sorted(calls, key=lambda call: (call.turn, call.position)))

    def _walk(self, digest: str | None) -> list[StoredMessage]:
        """The messages from the one with this digest up to the root."""
        walk: list[StoredMessage] = []
        while digest is not None and (rows := self._messages.get(digest)):
            walk.append(min(rows, key=_preference))
            digest = walk[-1].parent_digest
        return walk

    def _deleted_by(self, owner: str) -> dict[str, float]:
        return {name: at for name, (by, at) in self._deleted.items() if by == readable(owner)}

    def _messages_of(self, conversation_id: str) -> Iterable[tuple[float, ThreadNode]]:
        for rows in self._messages.values():
            shown = [row for row in rows if not row.hidden]
            answers = [row for row in shown if row.completion_id is not None]
            for row in answers or shown:
                if row.conversation_id == conversation_id:
                    completion = self._completions.get(row.completion_id or "")
                    parent = self._node_of(row.parent_digest)
                    calls = self._calls_of(row.completion_id or "")
                    node = ThreadNode(row.message_id, parent, row, completion, calls)
                    yield row.created_at, node

    def _unanswered_of(self, conversation_id: str) -> Iterable[tuple[float, ThreadNode]]:
        for name, row in self._completions.items():
            if (
                row.conversation_id == conversation_id
                and not row.hidden
                and not self._answers[name]
            ):
                parent = self._node_of(row.prompt_digest)
                yield row.finished_at, ThreadNode(name, parent, None, row, self._calls_of(name))

    def _node_of(self, digest: str | None) -> str | None:
        rows = [row for row in self._messages.get(digest or "", ()) if not row.hidden]
        return min(rows, key=_preference).message_id if rows else None


def _preference(message: StoredMessage) -> tuple[bool, bool, float, str]:
    """Of several messages with one digest an answer comes first, as in `db.postgres.sql.ONE_OF`."""
    is_sent = message.completion_id is None
    return message.hidden, is_sent, message.created_at, message.message_id


def _page(
    found: Iterable[tuple[_Place, _T]],
    places: Mapping[str, float],
    paging: Paging,
    *,
    by_id: bool = True,
) -> Page[_T]:
    rows = sorted(found, key=lambda item: item[0], reverse=paging.descending)
    if paging.after is not None:
        if paging.after not in places:
            raise UnknownCursor(paging.after)
        after = places[paging.after], paging.after if by_id else ""
        rows = [row for row in rows if (row[0] < after if paging.descending else row[0] > after)]
    items = tuple(item for _, item in rows[: paging.limit])
    return Page(items, len(rows) > paging.limit)
