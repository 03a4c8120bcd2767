"""Makes of what is stored an answer that can be read, and of its error the failure that it was. Pure."""

from db.store import Replayable, StoredCompletion
from service.stream.answers import Ending, StoredAnswer, tape_of
from statemachine import Failure


def stored_answer(found: Replayable, position: int) -> StoredAnswer:
    """An answer as it is stored, for somebody who reads it from a position. Without its tape it has one
    chunk for each of its choices, and raises `Expired` but for the position 0."""
    kept, row = found.tape, found.view.completion
    if kept is not None:
        tape, ending = (
            kept.tape,
            Ending(failure_of_row(row, kept.status), row.usage, kept.usage_frame),
        )
    else:
        tape = tape_of(found.view.choices, row.upstream_created, row.error is None, position)
        ending = Ending(failure_of_row(row), row.usage)
    return StoredAnswer(row.completion_id, row.model, int(row.created_at), tape, ending)


def failure_of_row(row: StoredCompletion, status: int | None = None) -> Failure | None:
    """Why a stored completion failed, as its client was told; None if it is whole."""
    if row.error is None:
        return None
    error = dict(row.error)
    reported, kind = str(error.pop("code")), error.pop("kind", None)
    return Failure(
        code=str(kind or reported),
        message=str(error.pop("message")),
        type=str(error.pop("type")),
        param=error.pop("param"),
        upstream_code=reported if kind else None,
        status=status,
        should_retry=False,
        extra=error,
    )
