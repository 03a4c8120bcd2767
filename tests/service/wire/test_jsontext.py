"""JSON text to values and back, where orjson and the standard library part ways."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.wire import decode_json, encode_json
from service.wire.jsontext import DEEPEST_NESTING, TooManyValues

any_text = st.text(st.characters(exclude_categories=()), max_size=20)
"""Text with lone surrogates and NULs in it."""
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=20,
)


def nested(levels: int, leaf: Any = 0) -> Any:
    """Objects and lists in turn, `levels` deep."""
    value = leaf
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def nested_text(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_values_survive_the_way_there_and_back(value: Any) -> None:
    """What is written can be read back as the same value, surrogates and NULs included."""
    assert value == decode_json(encode_json(value))


@settings(max_examples=50, deadline=None)
@given(json_values)
def test_both_libraries_agree(value: Any) -> None:
    """Which library wrote or read a text makes no difference to the value."""
    assert value == json.loads(encode_json(value))
    assert value == decode_json(json.dumps(value).encode())


@settings(max_examples=50, deadline=None)
@given(json_values)
def test_written_text_is_one_line_of_utf8(value: Any) -> None:
    """Written JSON is valid UTF-8 without a raw line end, so it fits behind `data: `."""
    text = encode_json(value).decode("utf-8")
    assert not set(text) & set("\r\n")


def test_surrogates_are_written_as_escapes() -> None:
    """A lone surrogate comes out as the escape it came in as."""
    assert b'{"\\udc00":"a\\ud800b"}' == encode_json({"\udc00": "a\ud800b"})


def test_orjson_still_refuses_what_the_fallback_is_for() -> None:
    """Once orjson stops refusing these, the fallback can go."""
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(b'"\\ud800"')
    for refused in ("\ud800", 2**64, nested(255)):
        with pytest.raises(TypeError):
            orjson.dumps(refused)


def test_integers_past_64_bits_are_written_in_full() -> None:
    """When they are read, they become the nearest double, as in every browser."""
    assert b"[1180591620717411303424,-18446744073709551616]" == encode_json([2**70, -(2**64)])
    assert 2**64 - 1 == decode_json(b"18446744073709551615")
    assert 2.0**64 == decode_json(b"18446744073709551617")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"nul",
        b"{'a': 1}",
        b"[1,]",
        b"1 2",
        b'"\n"',
        b'"\\x"',
        b'"\\u12"',
        b'"\xff"',
        b'"\xed\xa0\x80"',  # a surrogate in UTF-8 clothes
        b'"\xc3"',
        b'["\\u0041", "\xff"]',  # the same through the fallback
        b"NaN",
        b"Infinity",
        b"1e999",
        b"-1e999",
        b"1" * 5000,
        b'["\\ud800", NaN]',
        b'["\\ud800", -Infinity]',
        b'["\\ud800", 1e999]',
        b'["\\ud800", ' + b"1" * 5000 + b"]",
        b'["\\ud800"',
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_json_raises_value_error(text: bytes) -> None:
    """Every kind of bad text raises that and nothing else, whichever library reads it."""
    with pytest.raises(ValueError):
        decode_json(text)


@pytest.mark.parametrize("levels", [DEEPEST_NESTING + 1, 900, 1_000, 1_100, 5_000, 100_000])
@pytest.mark.parametrize("frame", [b"%s", b'["\\ud800", %s]', b'{"a": {}, "b": %s, "c": [1]}'])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":[0,', b"]}")])
def test_deep_nesting_is_refused(levels: int, frame: bytes, opening: bytes, closing: bytes) -> None:
    """Nesting that some part of the service could not follow is refused where it comes in."""
    text = opening * levels + b"0" + closing * levels
    with pytest.raises(ValueError):
        decode_json(frame % text)


def test_objects_count_as_levels_too() -> None:
    """Objects within objects nest as lists do."""
    for levels, fits in ((DEEPEST_NESTING, True), (DEEPEST_NESTING + 1, False)):
        text = b'{"a":' * levels + b"0" + b"}" * levels
        if fits:
            assert encode_json(decode_json(text)) == text
        else:
            with pytest.raises(ValueError):
                decode_json(text)


def test_the_deepest_nesting_allowed_is_read_and_written() -> None:
    """What is just not too deep can be written again by either library."""
    text = nested_text(DEEPEST_NESTING)
    assert encode_json(decode_json(text)) == text
    assert decode_json(encode_json(nested(DEEPEST_NESTING))) == nested(DEEPEST_NESTING)
    assert decode_json(encode_json(nested(DEEPEST_NESTING, "\ud800"))) == nested(
        DEEPEST_NESTING, "\ud800"
    )


def test_many_brackets_are_not_deep() -> None:
    """A wide value is not a deep one."""
    wide: list[Any] = [[{}] for _ in range(DEEPEST_NESTING * 10)]
    assert decode_json(encode_json(wide)) == wide
    assert "[" * 1000 == decode_json(encode_json("[" * 1000))


def test_writing_refuses_what_is_too_deep() -> None:
    """A value that not even the standard library can write raises ValueError."""
    with pytest.raises(ValueError):
        encode_json(nested(100_000))


@pytest.mark.parametrize(
    ("text", "is_taken"),
    [
        ("\U0001f600" * 60_000 + "\ud800", True),
        ("\ud55c" * 110_000 + "\ud800", True),
        ("\ud800x" * 90_000, True),
        ("\ud800x" * 110_000, False),
        ("\udc00" * 110_000, False),
    ],
)
def test_only_half_characters_count_as_such(text: str, is_taken: bool) -> None:
    """Whole ones that are escaped, as Python writes them, don't."""
    data = json.dumps({"content": text}).encode()
    if is_taken:
        assert {"content": text} == decode_json(data, 100_000)
    else:
        with pytest.raises(TooManyValues):
            decode_json(data, 100_000)
