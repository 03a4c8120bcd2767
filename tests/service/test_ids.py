"""The random parts of ids."""

import os
import re

import pytest

from service import ids


@pytest.mark.parametrize("digits", [16, 24, 48, 2048])
def test_each_id_is_new(digits: int) -> None:
    """As many hex digits as asked for, and never a part of what was given before."""
    given = [ids.random_hex(digits) for _ in range(300)]
    assert all(re.fullmatch(f"[0-9a-f]{{{digits}}}", one) for one in given)
    pieces = [one[start : start + 16] for one in given for start in range(0, digits, 16)]
    assert len(pieces) == len(set(pieces))


def test_a_fork_does_not_repeat_its_parent() -> None:
    """Two processes with one past give different ids."""
    ids.random_hex(16)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, ids.random_hex(24).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    assert 24 == len(theirs)
    assert theirs != ids.random_hex(24)
