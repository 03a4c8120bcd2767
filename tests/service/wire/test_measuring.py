"""Measuring JSON on its bytes agrees with measuring the value."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.wire import measuring
from service.wire.measuring import has_more_values, is_nested_deeper

TEXTS = st.text(alphabet='"\\[]{},: ax\u00e9\ud800', max_size=6)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=40,
)


@pytest.fixture(autouse=True, scope="module", params=[1, 2, 7, 256 * 1024])
def piece_bytes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Texts are gone through in pieces of so many bytes."""
    usual = measuring._PIECE_BYTES
    measuring._PIECE_BYTES = request.param
    yield
    measuring._PIECE_BYTES = usual


def count(value: Any) -> int:
    """Keys and values, an empty container's as one."""
    match value:
        case dict():
            return 1 + (sum(1 + count(held) for held in value.values()) or 1)
        case list():
            return 1 + (sum(map(count, value)) or 1)
    return 1


def depth(value: Any) -> int:
    held = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, held), default=0) if isinstance(value, (dict, list)) else 0


@given(VALUES, st.sampled_from([None, 1]))
def test_keys_and_values_are_counted(value: Any, indent: int | None) -> None:
    """Whatever stands in strings, however they are escaped and wherever a piece ends."""
    data = json.dumps(value, indent=indent).encode()
    right = count(value)
    assert [True, False, False] == [has_more_values(data, right + n) for n in (-1, 0, 1)]


@given(VALUES, st.integers(0, 30), st.booleans())
def test_levels_are_counted(value: Any, more: int, as_objects: bool) -> None:
    """The same for depth, beside what is wide."""
    for _ in range(more):
        value = {'"]': value, "[": []} if as_objects else [[], value, "]"]
    data = json.dumps(value).encode()
    right = depth(value)
    assert not is_nested_deeper(data, right)
    assert not is_nested_deeper(data, right + 1)
    assert not right or is_nested_deeper(data, right - 1)


@pytest.mark.parametrize("data", [b"", b"]", b'"', b'"\\', b"[" * 500, b"]" * 500, b'"[' * 300])
def test_what_is_no_json_is_measured_somehow(data: bytes) -> None:
    """Nothing is raised: whoever reads it will say what is wrong."""
    for most in (0, 1, 200):
        assert has_more_values(data, most) in (True, False)
        assert is_nested_deeper(data, most) in (True, False)
