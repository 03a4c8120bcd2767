"""What a reader reads: an answer that runs, or one that is stored.

An answer has a tape and, once it is over, an end. Never here: who reads it, and how it is written.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from attrs import frozen

from statemachine import Choice, Failure, ParsedChunk, SessionRecord
from statemachine.endings import STOPPED
from statemachine.tape import Expired, Tape


@frozen
class Ending:
    """How an answer ended, as far as its readers are told.

    Attributes:
        failure: why it broke off; None: it is whole.
        usage, usage_frame: for readers that asked for usage.
    """

    failure: Failure | None
    usage: Mapping[str, Any] | None = None
    usage_frame: Mapping[str, Any] | None = None

    @property
    def is_silent(self) -> bool:
        """True of an answer that somebody stopped: its stream just ends."""
        return self.failure is not None and self.failure.code == STOPPED.code


class Answer(Protocol):
    """An answer to be read."""

    @property
    def tape(self) -> Tape:
        """Its chunks, as far as they have come."""

    @property
    def ending(self) -> Ending | None:
        """None while more may come."""

    @property
    def completion_id(self) -> str:
        """The `id` of its chunks."""

    @property
    def model(self) -> str:
        """The `model` of its chunks."""

    @property
    def created(self) -> int:
        """POSIX seconds, for chunks where no upstream named any."""


@frozen
class StoredAnswer:
    """One that is over; see `Answer`."""

    completion_id: str
    model: str
    created: int
    tape: Tape
    ending: Ending | None


def ending_of(record: SessionRecord) -> Ending:
    """The end of an answer whose record was just made."""
    return Ending(record.failure, record.usage, record.usage_frame)


def answer_of_record(record: SessionRecord, position: int) -> StoredAnswer:
    """An answer that isn't committed yet, for somebody who reads it from a position. Raises `Expired`
    as `tape_of` does."""
    request, tape = record.request, record.tape
    if tape is None or not tape.is_whole:
        is_whole = record.failure is None
        tape = tape_of(record.choices, record.upstream_created, is_whole, position)
    return StoredAnswer(
        record.completion_id, request.model, int(request.created_at), tape, ending_of(record)
    )


def tape_of(choices: Sequence[Choice], created: int | None, is_whole: bool, position: int) -> Tape:
    """A tape for an answer whose own isn't kept: one chunk for each of its choices. Raises `Expired`
    but for the position 0: no other means anything on it."""
    if position:
        raise Expired
    tape = Tape()
    for choice in choices:
        said = {
            "index": choice.index,
            "delta": {"role": "assistant", **choice.message},
            "logprobs": choice.logprobs,
            "finish_reason": choice.finish_reason if is_whole else None,
        }
        chunk: dict[str, Any] = {"choices": [{**choice.extra, **said}]}
        if created is not None:
            chunk["created"] = created
        tape.add(ParsedChunk(chunk))
    return tape
