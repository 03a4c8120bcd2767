"""Texts within statements."""

import pytest

from db.postgres.sql import in_dollars


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"$",
        b"$rows",
        b"x$rows",
        b"$rows$",
        b"$rows$; DROP TABLE messages; --",
        b"$rows1$ $rows",
        b"$rows1$rows$rows2",
        b"".join(b"$rows%d" % number for number in range(20)) + b"$rows",
    ],
)
def test_a_literal_ends_where_its_text_does(text: bytes) -> None:
    """Read as the server reads it: up to where the tag before the text stands again."""
    literal = in_dollars(text)
    tag = literal[: literal.index(b"$", 1) + 1]
    assert text == literal[len(tag) : literal.index(tag, len(tag))]
    assert literal == tag + text + tag
