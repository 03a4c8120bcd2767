"""Keeps completions in memory: the store's promises without durability, for tests and benchmarks.

Its rows are those that go to PostgreSQL (`db.rows.history`), and it keeps the same rules:
`tests/db/test_store_contract.py` runs over both stores. Everything is gone with the process.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import structlog
from attrs import evolve

from db.memory.overview import MemoryOverview
from db.rows.columns import from_jsonb, to_jsonb
from db.rows.extending import goes_on, has_more, may_be_replaced, told_of
from db.rows.history import RecordRows, rows_of
from db.rows.messages import sent_copy
from db.store import (
    CompletionView,
    RecordRejected,
    StoredCompletion,
    StoredMessage,
    StoreUnavailable,
)
from statemachine import SessionRecord

log = structlog.get_logger(__name__)

_Row = TypeVar("_Row", StoredCompletion, StoredMessage)


class MemoryStore(MemoryOverview):
    """A `db.overview.WholeStore`. Its methods never wait, so they can't be cancelled midway."""

    def __init__(self) -> None:
        super().__init__()
        self._closed = False

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self._completions)} completions>"

    async def save(self, records: Sequence[SessionRecord]) -> None:
        """See `db.store.Store.save`."""
        self._require_open()
        try:
            batch = [_kept(rows_of(record)) for record in records]
        except Exception as error:
            raise RecordRejected(f"A record can't be kept: {type(error).__name__}") from error
        for rows in batch:
            self._keep(rows)

    async def find(self, completion_id: str) -> StoredCompletion | None:
        """See `db.store.Store.find`."""
        self._require_open()
        return self._completions.get(completion_id)

    async def answer(self, completion_id: str) -> list[StoredMessage]:
        """See `db.store.Store.answer`."""
        self._require_open()
        return list(self._answers.get(completion_id, ()))

    async def thread(self, digest: str) -> list[StoredMessage]:
        """See `db.store.Store.thread`."""
        self._require_open()
        return self._walk(digest)[::-1]

    async def set_metadata(
        self, owner: str, completion_id: str, metadata: Mapping[str, str] | None
    ) -> CompletionView | None:
        """See `db.store.Readable.set_metadata`."""
        found = self._shown(owner, completion_id)
        if found is None:
            return None
        kept = None if metadata is None else dict(metadata)
        self._completions[completion_id] = evolve(found, metadata=kept)
        return self._view(completion_id)

    async def delete(self, owner: str, completion_id: str) -> bool:
        """See `db.store.Readable.delete`."""
        gone = self._shown(owner, completion_id)
        if gone is None:
            return False
        del self._completions[completion_id]
        self._deleted[completion_id] = gone.owner, gone.created_at
        self._tapes.pop(completion_id, None)
        self._tool_calls.pop(completion_id, None)
        prompts = [(row.prompt_digest, row.hidden) for row in self._completions.values()]
        used = {row.digest for digest, _ in prompts for row in self._walk(digest)}
        shown = {row.digest for digest, hid in prompts if not hid for row in self._walk(digest)}
        self._drop_answers(self._answers.pop(completion_id), used, shown)
        for digest, rows in list(self._messages.items()):
            if rows and rows[0].conversation_id != gone.conversation_id:
                continue
            self._messages[digest] = [
                evolve(row, hidden=digest not in shown) if row.completion_id is None else row
                for row in rows
                if row.completion_id is not None or digest in used
            ]
            if not self._messages[digest]:
                del self._messages[digest]
        self._forget_conversation(gone.conversation_id)
        return True

    def _drop_answers(
        self, answers: Iterable[StoredMessage], used: set[str], shown: set[str]
    ) -> None:
        """Take answers away, and leave a copy of each that others go on from."""
        for answer in answers:
            rows = self._messages[answer.digest]
            rows.remove(answer)
            if answer.digest in used and all(row.hidden for row in rows):
                rows[:] = [row for row in rows if row.completion_id is not None]
                rows.append(sent_copy(answer, answer.digest not in shown))

    async def check(self) -> None:
        """See `db.store.Store.check`."""
        self._require_open()

    async def close(self) -> None:
        """See `db.store.Store.close`."""
        self._closed = True

    def _forget_conversation(self, conversation_id: str) -> None:
        """Drop a conversation without completions, and hide one in which all are hidden."""
        conversation = self._conversations[conversation_id]
        left = [
            row.hidden
            for row in self._completions.values()
            if row.conversation_id == conversation_id
        ]
        self._conversations[conversation_id] = evolve(conversation, hidden=all(left))
        if not left:
            del self._conversations[conversation_id]
            self._deleted[conversation_id] = conversation.owner, conversation.created_at

    def _keep(self, rows: RecordRows) -> None:
        completion_id = rows.completion.completion_id
        if (known_row := self._completions.get(completion_id)) is not None:
            self._extend(known_row, rows)
        if completion_id in self._completions or completion_id in self._deleted:
            return
        conversation = rows.conversation
        known = self._conversations.get(conversation.conversation_id, conversation)
        self._conversations[conversation.conversation_id] = evolve(
            known,
            updated_at=max(known.updated_at, conversation.updated_at),
            hidden=known.hidden and conversation.hidden,
        )
        self._completions[completion_id] = rows.completion
        self._answers[completion_id] = rows.answers
        if rows.tape is not None:
            self._tapes[completion_id] = rows.tape
        if rows.tool_calls:
            self._tool_calls[completion_id] = rows.tool_calls
        if rows.tool_set is not None:
            tools = _copy(rows.tool_set.tools)
            self._tool_sets.setdefault(rows.tool_set.digest, tools)
        for answer in rows.answers:
            self._messages.setdefault(answer.digest, []).append(answer)
        self._keep_sent(rows.sent)

    def _extend(self, row: StoredCompletion, new: RecordRows) -> None:
        """Put a record in a row's place, if it is a longer truth."""
        completion_id = row.completion_id
        answers, tape = self._answers[completion_id], self._tapes.get(completion_id)
        told_of_calls = told_of(self._tool_calls.get(completion_id, ()))
        if not (may_be_replaced(row) and has_more(new, row.chunk_count, told_of_calls)):
            return
        if not goes_on(new, row, answers, tape):
            log.error("longer record contradicts the stored one", completion_id=completion_id)
            return
        prompts = [(each.prompt_digest, each.hidden) for each in self._completions.values()]
        used = {each.digest for digest, _ in prompts for each in self._walk(digest)}
        shown = {each.digest for digest, hid in prompts if not hid for each in self._walk(digest)}
        staying = {answer.digest for answer in new.answers}
        self._drop_answers(answers, used - staying, shown)
        for digest in {answer.digest for answer in answers}:
            if not self._messages[digest]:
                del self._messages[digest]
        for answer in new.answers:
            self._messages.setdefault(answer.digest, []).append(answer)
        self._answers[completion_id] = new.answers
        self._completions[completion_id] = evolve(new.completion, metadata=row.metadata)
        self._tool_calls[completion_id] = new.tool_calls
        self._tapes.pop(completion_id, None)
        if new.tape is not None:
            self._tapes[completion_id] = new.tape
        known = self._conversations[row.conversation_id]
        updated_at = max(known.updated_at, new.conversation.updated_at)
        self._conversations[row.conversation_id] = evolve(known, updated_at=updated_at)

    def _keep_sent(self, sent: Iterable[StoredMessage]) -> None:
        """Keep each message once, and once more if until now it was only in a hidden answer."""
        for message in sent:
            rows = self._messages.setdefault(message.digest, [])
            if not rows or (not message.hidden and all(row.hidden for row in rows)):
                copies = [row for row in rows if row.completion_id is None]
                rows[:] = [row for row in rows if row.completion_id is not None]
                kept = copies[0] if copies else message
                rows.append(evolve(kept, hidden=message.hidden))

    def _require_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("The store is closed")


def _kept(rows: RecordRows) -> RecordRows:
    """The rows with their JSON as a column would return it; the record shares nothing with them."""
    return evolve(
        rows,
        completion=_with_own_json(rows.completion),
        sent=tuple(map(_with_own_json, rows.sent)),
        answers=tuple(map(_with_own_json, rows.answers)),
    )


def _with_own_json(row: _Row) -> _Row:
    json = {name: _copy(value) for name, value in vars(row).items() if isinstance(value, dict)}
    return evolve(row, **json)


def _copy(value: Any) -> Any:
    return from_jsonb(to_jsonb(value))
