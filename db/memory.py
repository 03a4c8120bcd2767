"""The store in memory: the same promises without durability, for tests and benchmarks.

What is kept are the same rows of `db.history` that `db.postgres` writes, held to the same rules;
`tests/db/test_store_contract.py` runs over both. Everything is gone with the process.
"""

from collections.abc import Sequence
from typing import Any

from attrs import evolve

from db.columns import from_jsonb, to_jsonb
from db.history import RecordRows, rows_of
from db.store import RecordRejected, StoredCompletion, StoredMessage, StoreUnavailable
from statemachine import SessionRecord


class MemoryStore:
    """A `db.store.Store`. Its methods never wait, so they can't be cancelled midway."""

    def __init__(self) -> None:
        self._completions: dict[str, StoredCompletion] = {}
        self._answers: dict[str, tuple[StoredMessage, ...]] = {}
        self._messages: dict[str, list[StoredMessage]] = {}
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
        thread: list[StoredMessage] = []
        step: str | None = digest
        while step is not None and step in self._messages:
            message = min(self._messages[step], key=_preference)
            thread.append(message)
            step = message.parent_digest
        return thread[::-1]

    async def check(self) -> None:
        """See `db.store.Store.check`."""
        self._require_open()

    async def close(self) -> None:
        """See `db.store.Store.close`."""
        self._closed = True

    def _keep(self, rows: RecordRows) -> None:
        completion_id = rows.completion.completion_id
        if completion_id in self._completions:
            return
        self._completions[completion_id] = rows.completion
        self._answers[completion_id] = rows.answers
        for answer in rows.answers:
            self._messages.setdefault(answer.digest, []).append(answer)
        for message in rows.sent:
            self._messages.setdefault(message.digest, [message])

    def _require_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("The store is closed")


def _kept(rows: RecordRows) -> RecordRows:
    """The rows with their JSON as a column would give it back; nothing in them is shared."""
    completion, fields = rows.completion, ("error", "usage", "request", "metadata", "extra")
    return evolve(
        rows,
        completion=evolve(
            completion, **{name: _copy(getattr(completion, name)) for name in fields}
        ),
        sent=tuple(evolve(message, parts=_copy(message.parts)) for message in rows.sent),
        answers=tuple(evolve(message, parts=_copy(message.parts)) for message in rows.answers),
    )


def _copy(value: Any) -> Any:
    return None if value is None else from_jsonb(to_jsonb(value))


def _preference(message: StoredMessage) -> tuple[bool, float, str]:
    """Of several messages with one digest an answer comes first, as in `db.sql.THREAD`."""
    return message.completion_id is None, message.created_at, message.message_id
