"""What columns can hold: there and back, for whatever a model or a client may send."""

import json
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db.rows.columns import (
    canonical_json,
    from_jsonb,
    original_text,
    raw_bytes,
    readable,
    to_jsonb,
)

# Text as models and clients may send it: any code point, and the troublesome ones often.
troublesome = st.sampled_from(
    ["\0", "␛", "␀", "\ud800", "\udbff", "\udc00", "\udfff", "😀", "0000", "d800", "\\u0000", '"']
)
texts = st.lists(st.one_of(troublesome, st.text())).map("".join)
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(texts, inner)),
    max_leaves=20,
)


@given(texts)
def test_text_comes_back_exactly(text: str) -> None:
    """What is shown and what is kept beside it make the original again."""
    shown, raw = readable(text), raw_bytes(text)
    assert text == original_text(shown, raw)
    assert "\0" not in shown
    shown.encode()  # no lone surrogate is left


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_good_text_is_kept_once(text: str) -> None:
    """Text that a column can hold is stored as it is, with nothing beside it."""
    assert (text, None) == (readable(text), raw_bytes(text))


def test_bad_text_stays_readable() -> None:
    """NUL and lone surrogates are shown by a sign, split pairs by the character they spell."""
    assert "a␀b" == readable("a\0b")
    assert "a�b�" == readable("a\ud800b\udc00")
    assert "😀" == readable("\ud83d\ude00")
    assert original_text(None, None) is None


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(json_values)
def test_json_comes_back_exactly(value: Any) -> None:
    """A jsonb column's text makes the original again, and holds nothing that jsonb refuses."""
    text = to_jsonb(value)
    assert value == from_jsonb(text)
    text.encode()
    assert not any("\0" in string for string in strings(json.loads(text)))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=50,
    deadline=None,
)
@given(json_values, texts)
def test_postgresql_takes_any_text_and_json(cursor: Any, value: Any, text: str) -> None:
    """PostgreSQL itself takes whatever these functions make, and gives the same back."""
    cursor.execute("SELECT %s::jsonb::text, %s::text", (to_jsonb(value), readable(text)))
    ((kept, shown),) = cursor.fetchall()
    assert as_numbers(value) == as_numbers(from_jsonb(kept))
    assert text == original_text(shown, raw_bytes(text))


@pytest.mark.parametrize("depth", [253, 254, 255, 900, 1_000, 1_023])
def test_json_of_any_depth_comes_back(cursor: Any, depth: int) -> None:
    """JSON as deep as any parser takes it is written, taken by PostgreSQL, and read."""
    value: Any = "\0"
    for level in range(depth):
        value = [value] if level % 2 else {"␛": value}
    cursor.execute("SELECT %s::jsonb::text", (to_jsonb(value),))
    found = from_jsonb(cursor.fetchone()[0])
    for level in reversed(range(depth)):
        found = found[0] if level % 2 else found["␛"]
    assert "\0" == found


def test_numbers_that_json_lacks_become_null() -> None:
    """NaN and the infinities are null, whichever way the value is written."""
    for neighbour in ("", "\ud800"):
        value = {"n": [float("nan"), float("inf"), -float("inf")], "x": neighbour}
        assert {"n": [None, None, None], "x": neighbour} == from_jsonb(to_jsonb(value))


def test_large_integers_keep_every_digit() -> None:
    """Integers beyond 64 bits don't turn into floats."""
    for value in (2**64, -(2**63) - 1, 10**1_000 + 1):
        assert value == from_jsonb(to_jsonb(value))


def test_the_escape_character_escapes_itself() -> None:
    """Text that looks escaped already isn't taken for it."""
    for value in ("␛", "␛0000", "␛␛0000", "␛241b0000", "␛d800"):
        assert {value: [value]} == from_jsonb(to_jsonb({value: [value]}))


def test_null_comes_back_as_none() -> None:
    """A NULL column is None; a jsonb null is None too."""
    assert from_jsonb(None) is None
    assert from_jsonb("null") is None


@given(st.dictionaries(texts, st.one_of(texts, numbers, st.lists(texts))))
def test_canonical_json_forgets_the_order_of_keys(value: dict[str, Any]) -> None:
    """Equal values share their canonical bytes."""
    backwards = dict(reversed(list(value.items())))
    assert canonical_json(value) == canonical_json(backwards)


def test_canonical_json_is_pinned() -> None:
    """The canonical form never changes: digests in the database are made of it."""
    value = {"b": [1, 2.5, None, True], "a": "é\n\0"}
    assert b'{"a":"\xc3\xa9\\n\\u0000","b":[1,2.5,null,true]}' == canonical_json(value)
    assert b'["\xed\xa0\x80",18446744073709551616]' == canonical_json(["\ud800", 2**64])
    assert canonical_json(["\ud83d\ude00", "\ud800"]) == canonical_json(["😀", "\ud800"])


@pytest.fixture(scope="module")
def cursor(postgres: Any) -> Any:
    with closing(psycopg2.connect(postgres.dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor


def strings(value: Any) -> list[str]:
    """All strings within a JSON value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*value, *(string for held in value.values() for string in strings(held))]
    if isinstance(value, list):
        return [string for held in value for string in strings(held)]
    return []


def as_numbers(value: Any) -> Any:
    """The value with its numbers as floats: jsonb keeps 1e23 as the integer it spells."""
    if isinstance(value, dict):
        return {key: as_numbers(held) for key, held in value.items()}
    if isinstance(value, list):
        return [as_numbers(held) for held in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
