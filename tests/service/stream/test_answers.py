"""Answers that are over, to be read again."""

import pytest
from attrs import evolve

from service.stream.answers import answer_of_record
from service.wire import ChunkEncoder
from statemachine.tape import Cursor, Expired, Tape
from tests.db.records import make_record, user


def test_a_record_without_its_tape_can_be_read_from_the_start() -> None:
    """As it can be once it is stored: in one chunk for each choice, and from nowhere else."""
    record = evolve(make_record(user("Hi"), answer="Hello!"), tape=None)
    answer = answer_of_record(record, 0)
    data = ChunkEncoder("x", "m", 1, False).encode_written(Cursor(answer.tape, 0).read())
    assert (1, 1) == (data.count(b"\n\n"), data.count(b'"Hello!"'))
    assert answer.ending is not None
    assert answer.ending.failure is None
    with pytest.raises(Expired):
        answer_of_record(record, 1)


def test_a_tape_that_lost_its_beginning_counts_as_none() -> None:
    """What is left of it has no start to be read from."""
    cut = Tape()
    cut.first = 5
    record = evolve(make_record(user("Hi"), answer="Hello!"), tape=cut)
    assert 1 == answer_of_record(record, 0).tape.count
