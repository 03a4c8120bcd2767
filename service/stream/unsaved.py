"""Holds answers between their end and their commit, so that they can be read while the database is away.

The saver has them too, and the journal; here they are found by id. Memory is bounded: of what is too
much only the owner is known.
"""

from service.stream.moments import Watcher
from statemachine import SessionRecord
from statemachine.tokens import plain_characters

MOST_CHARACTERS = 16 * 1024 * 1024
"""Of answers' text, together."""
MOST_KNOWN = 20_000


class Unsaved(Watcher):
    """The records that have been handed to the saver and aren't committed yet."""

    def __init__(self) -> None:
        self._records: dict[str, tuple[str, SessionRecord | None, int]] = {}
        self._characters = 0

    def find(self, owner: str, completion_id: str) -> SessionRecord | None:
        """The owner's record; None if it isn't here."""
        known = self._records.get(completion_id)
        return known[1] if known is not None and known[0] == owner else None

    def is_known(self, owner: str, completion_id: str) -> bool:
        """True if the owner's completion is about to be stored, be it here or not."""
        known = self._records.get(completion_id)
        return known is not None and known[0] == owner

    def ended(self, record: SessionRecord) -> None:
        size = plain_characters([choice.message for choice in record.choices])
        if size is None:
            size = record.tape.size if record.tape is not None else MOST_CHARACTERS
        fits = self._characters + size <= MOST_CHARACTERS
        if fits:
            self._characters += size
        elif len(self._records) >= MOST_KNOWN:
            return
        held = record if fits else None
        self._records[record.completion_id] = record.request.owner, held, size if fits else 0

    def saved(self, completion_id: str) -> None:
        known = self._records.pop(completion_id, None)
        if known is not None:
            self._characters -= known[2]
