"""Says when a record takes the place of a row of the same completion: the longer truth wins. Pure, no SQL.

A completion may be brought to an end twice: another replica adopts what a dead one had copied of it, and
the dead one's own journal, once its machine is back, may have more. The rules:

1. Only a row that ended as `process_died` can be replaced: nobody knew how it went on.
2. A record that has more chunks replaces it; or as many, and an end of its own, or more of what became of
   calls of tools, which a client may not be told.
3. A tape that somebody may have read is only ever extended: the row's is the beginning of the record's. Where
   one of both has none, the row's texts are the beginnings of the record's.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from db.rows.history import RecordRows
from db.rows.tapes import TapeColumns, TapeDamaged, tape_of
from db.store import CompletionView, StoredCompletion, StoredMessage, StoredToolCall
from statemachine import Outcome, State
from statemachine.chunks import PADDING
from statemachine.tape import Cursor, Tape, WrittenChunk

PROCESS_DIED: Final = "process_died"
_NO_END: Final = frozenset((PROCESS_DIED, "adopted_elsewhere", "journal_damaged"))
"""How those end of which nobody knows how they went on."""


def may_be_replaced(row: StoredCompletion) -> bool:
    """See rule 1."""
    return row.state is State.FAILED and _code(row.error) == PROCESS_DIED


def has_more(new: RecordRows, chunk_count: int, told_of_calls: int) -> bool:
    """See rule 2.

    Args:
        chunk_count: the row's.
        told_of_calls: what `told_of` says of its calls.
    """
    count = new.completion.chunk_count
    if count != chunk_count:
        return count > chunk_count
    has_end = _code(new.completion.error) not in _NO_END
    return has_end or told_of(new.tool_calls) > told_of_calls


def told_of(calls: Sequence[StoredToolCall]) -> int:
    """How much is known of these: each call, and each outcome."""
    return sum(2 if call.outcome != Outcome.UNKNOWN.value else 1 for call in calls)


def goes_on(
    new: RecordRows,
    row: StoredCompletion,
    answers: Sequence[StoredMessage],
    tape: TapeColumns | None,
) -> bool:
    """See rule 3. Takes milliseconds for a long tape.

    Args:
        row, answers, tape: what is stored.
    """
    try:
        known = _tape(row, answers, tape)
        come = _tape(new.completion, new.answers, new.tape)
    except TapeDamaged:
        known = come = None
    if known is None or come is None:
        said = {answer.choice_index: answer.message for answer in new.answers}
        return all(_begins(each.message, said.get(each.choice_index)) for each in answers)
    if known.count > come.count:
        return False
    return all(one == other for one, other in zip(_chunks(known), _chunks(come), strict=False))


def is_longer(new: RecordRows, known: RecordRows) -> bool:
    """The same of two records: whether one takes the other's place."""
    return (
        may_be_replaced(known.completion)
        and has_more(new, known.completion.chunk_count, told_of(known.tool_calls))
        and goes_on(new, known.completion, known.answers, known.tape)
    )


def _code(error: Mapping[str, Any] | None) -> str | None:
    """Our own code of a row's error; None if it has none."""
    if error is None:
        return None
    code = error.get("kind", error.get("code"))
    return code if isinstance(code, str) else None


def _tape(
    row: StoredCompletion, answers: Sequence[StoredMessage], columns: TapeColumns | None
) -> Tape | None:
    if columns is None:
        return None
    choices = CompletionView(row, tuple(answers), None).choices
    return tape_of(columns.tape.decode(), bytes.fromhex(columns.lengths), choices).tape


def _chunks(tape: Tape) -> Iterator[Any]:
    """Each chunk's value. Paddings, which mean nothing, are left out."""
    cursor = Cursor(tape)
    while read := cursor.read():
        for each in read:
            if isinstance(each, WrittenChunk):
                # orjson refuses half a character, which is kept as it came.
                yield _plain(json.loads(each.source))
            else:
                yield from (_plain(each.pattern.chunk(text)) for text in each.texts)


def _plain(chunk: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in chunk.items() if key != PADDING}


def _begins(known: Mapping[str, Any], come: Mapping[str, Any] | None) -> bool:
    """True if every text of one message is the beginning of the other's."""
    return come is not None and all(
        isinstance(said := come.get(key), str) and said.startswith(value)
        for key, value in known.items()
        if isinstance(value, str)
    )
