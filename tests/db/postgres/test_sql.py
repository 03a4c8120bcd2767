"""The columns that statements name, and the texts within statements."""

from typing import get_args

import pytest
from attrs import fields

from db.postgres import sql
from db.postgres.sql import in_dollars
from db.rows.history import TapedCompletion, ToolSetRow
from db.store import StoredConversation, StoredMessage, StoredToolCall
from tests.postgres import execute

TABLES = {
    "conversations": (StoredConversation, sql.CONVERSATIONS),
    "tool_calls": (StoredToolCall, sql.TOOL_CALLS),
    "tool_sets": (ToolSetRow, sql.TOOL_SETS),
    "completions": (TapedCompletion, sql.SAVED_COMPLETIONS),
    "messages": (StoredMessage, sql.MESSAGES),
}


def columns_of(dsn: str, table: str) -> dict[str, tuple[str, bool]]:
    """The table's columns: name → its type, and whether it may be NULL."""
    found = execute(
        dsn,
        "SELECT column_name::text, data_type::text, is_nullable = 'YES'"
        " FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name = %s",
        (table,),
    )
    return {name: (kind, may_be_null) for name, kind, may_be_null in found}


@pytest.mark.parametrize("table", TABLES)
def test_the_fields_that_are_stored_are_the_columns(database_url: str, table: str) -> None:
    """Of each field there is a column, of the type that is written, NULL where the field may be
    None; of an exact text one more; and no others."""
    row, columns = TABLES[table]
    names = {"timestamptz": "timestamp with time zone"}
    optional = {field.name for field in fields(row) if type(None) in get_args(field.type)}
    expected = {
        name: (names.get(kind, kind), name in optional or name.endswith("_raw"))
        for name, kind in columns.items()
    }
    assert expected == columns_of(database_url, table)
    assert {field.name for field in fields(row)} == {
        name for name in expected if not name.endswith("_raw")
    }


def test_a_text_that_comes_back_exactly_has_a_column_beside_it() -> None:
    """What a text column can't hold of a message's content is kept in the one that follows it."""
    names = list(sql.MESSAGES)
    assert "content_raw" == names[names.index("content") + 1]
    assert ("text", "bytea") == (sql.MESSAGES["content"], sql.MESSAGES["content_raw"])


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


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [""],
        ["a", "b"],
        ["NULL", "null", "{}", "{a,b}", ",", " a ", "\t\n"],
        ['"', "\\", '\\"', '","', "$rows$", "$rows1$; DROP TABLE messages; --", "'"],
        ["é", "漢", "\u2028", "😀"],
    ],
)
def test_an_array_is_read_as_its_texts(database_url: str, texts: list[str]) -> None:
    """Whatever they hold."""
    question = b"SELECT %b::text[]" % sql.text_array(texts)
    assert [(texts,)] == execute(database_url, question.decode())


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_what_no_array_holds_is_refused(text: str) -> None:
    """Before it can cut a statement short."""
    with pytest.raises(ValueError, match=r"NUL|surrogates"):
        sql.text_array(["a", text])
