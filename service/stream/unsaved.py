"""Holds answers that are over while their commit is late, so that they can be read meanwhile.

The saver has them too, and the journal; here they are found by id. Memory is bounded: of what is too
much only the owner is known.
"""

import asyncio

from attrs import evolve

from statemachine import SessionRecord
from statemachine.tokens import plain_characters

MOST_CHARACTERS = 16 * 1024 * 1024
"""Of answers' text, together."""
MOST_KNOWN = 20_000


class Unsaved:
    """The records that were handed to the saver long enough ago, and aren't committed yet."""

    def __init__(self) -> None:
        self._records: dict[str, tuple[str, SessionRecord | None, int]] = {}
        self._characters = 0

    def hold(self, record: SessionRecord, save: "asyncio.Future[None]") -> None:
        """Keep a record until its save is done, well or not, without what its client sent."""
        request = record.request
        size = plain_characters([choice.message for choice in record.choices])
        if size is None:
            size = MOST_CHARACTERS if record.tape is None else record.tape.size
        held = None
        if self._characters + size <= MOST_CHARACTERS:
            held = evolve(record, request=evolve(request, messages=[], tools=None))
        elif len(self._records) >= MOST_KNOWN:
            return
        size = 0 if held is None else size
        self._characters += size
        self._records[record.completion_id] = request.owner, held, size
        save.add_done_callback(lambda _: self._drop(record.completion_id))

    def find(self, owner: str, completion_id: str) -> SessionRecord | None:
        """The owner's record; None if it isn't here."""
        known = self._records.get(completion_id)
        return known[1] if known is not None and known[0] == owner else None

    def is_known(self, owner: str, completion_id: str) -> bool:
        """True if the owner's completion is about to be stored, be it here or not."""
        known = self._records.get(completion_id)
        return known is not None and known[0] == owner

    def has(self, completion_id: str) -> bool:
        """True if anybody's completion with this id is about to be stored."""
        return completion_id in self._records

    def _drop(self, completion_id: str) -> None:
        known = self._records.pop(completion_id, None)
        if known is not None:
            self._characters -= known[2]
