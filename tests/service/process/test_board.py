"""The board: what a worker writes is there whole, for the others, whatever becomes of it."""

import os

from service.process.board import _HALF, _PLACE_BYTES, Board


def test_each_worker_has_a_place_of_its_own() -> None:
    """Nothing is there at first; the last writing holds, and none touches another's."""
    board = Board(2)
    assert (None, None) == (board.read(0), board.read(1))
    for number in range(5):
        board.write(1, b"%d" % number * 1000)
    assert (None, b"4" * 1000) == (board.read(0), board.read(1))


def test_what_a_process_wrote_outlives_it() -> None:
    """The memory is shared with those that are forked, and stays when one has ended."""
    board = Board(1)
    if (pid := os.fork()) == 0:
        board.write(0, b"last words")
        os._exit(0)
    os.waitpid(pid, 0)
    assert b"last words" == board.read(0)


def test_a_writing_that_was_broken_off_leaves_the_one_before() -> None:
    """Whichever half was being written when a worker was killed, the other holds."""
    for writings in (1, 2, 3):
        board = Board(1)
        for number in range(writings):
            board.write(0, b"whole %d" % number)
        board.write(0, b"torn")
        half = writings % 2
        torn_at = half * _HALF + 16
        board._memory[torn_at : torn_at + 2] = b"xx"
        assert b"whole %d" % (writings - 1) == board.read(0)


def test_what_is_too_long_is_not_written() -> None:
    """It would be another's place; what was there stays."""
    board = Board(2)
    board.write(0, b"before")
    board.write(1, b"other")
    board.write(0, b"x" * _PLACE_BYTES)
    assert (b"before", b"other") == (board.read(0), board.read(1))
