"""Makes of what is stored an answer that can be read, and of its error the failure that it was. Pure."""

from typing import Any

from db.store import CompletionView, Replayable, StoredCompletion
from service.stream.answers import Ending, StoredAnswer
from statemachine import Failure, ParsedChunk
from statemachine.tape import Tape


def stored_answer(found: Replayable) -> StoredAnswer | None:
    """An answer as it is stored; None if its tape isn't."""
    kept, row = found.tape, found.view.completion
    if kept is None:
        return None
    ending = Ending(failure_of_row(row, kept.status), row.usage, kept.usage_frame)
    return StoredAnswer(row.completion_id, row.model, int(row.created_at), kept.tape, ending)


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


def whole_answer(view: CompletionView) -> StoredAnswer:
    """An answer whose tape isn't kept, with one chunk for each of its choices."""
    row = view.completion
    tape = Tape()
    for choice in view.choices:
        delta = {"role": "assistant", **choice.message}
        reason = choice.finish_reason if row.error is None else None
        said = {"index": choice.index, "delta": delta, "logprobs": choice.logprobs}
        chunk: dict[str, Any] = {"choices": [{**choice.extra, **said, "finish_reason": reason}]}
        if row.upstream_created is not None:
            chunk["created"] = row.upstream_created
        tape.add(ParsedChunk(chunk))
    ending = Ending(failure_of_row(row), row.usage)
    return StoredAnswer(row.completion_id, row.model, int(row.created_at), tape, ending)
