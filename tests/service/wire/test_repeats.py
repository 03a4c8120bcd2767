"""When a request was sent before: its key, and what counts of its content."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.wire import decode_json, encode_json, parse_request
from service.wire.jsontext import DEEPEST_NESTING
from service.wire.repeats import body_digest, claim_key, is_claimable
from tests.service.wire.test_jsontext import json_values, nested

COMPLETIONS = "/v1/chat/completions"
SURROGATE = "\ud800"
bodies = st.dictionaries(st.sampled_from(["model", "messages", "n", "é", SURROGATE]), json_values)


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], **fields}


def digest_of(source: str) -> bytes:
    """The digest of a body, from the text that a client sends to the value that is kept of it."""
    return body_digest(parse_request(source.encode()).body)


def backwards(value: Any) -> Any:
    """The same value, with every object's keys in the opposite order."""
    if isinstance(value, dict):
        return {key: backwards(held) for key, held in reversed(value.items())}
    return [backwards(held) for held in value] if isinstance(value, list) else value


# --- the key ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a", "!", "~", "x" * 255, "0b1f9c2e-{{MESSAGE_ID}}-title", '"'])
def test_visible_ascii_is_a_key(key: str) -> None:
    """Up to 255 characters from `!` to `~`, whatever they mean elsewhere."""
    assert is_claimable(key)


@pytest.mark.parametrize(
    "key",
    ["", " ", "a b", " a", "a\t", "a\n", "\0", "\x7f", "é", "\x80", "x" * 256, "漢", SURROGATE],
)
def test_anything_else_is_none(key: str) -> None:
    """No text, a longer one, spaces, control characters and what isn't ASCII."""
    assert not is_claimable(key)


def test_exactly_these_characters_make_keys() -> None:
    """The visible ones of ASCII, 0x21 to 0x7e, and no other that there is."""
    claimable = [code for code in range(0x11_0000) if is_claimable(chr(code))]
    assert [*range(0x21, 0x7F)] == claimable


def test_a_key_belongs_to_its_owner_and_path() -> None:
    """The same key of another owner or on another path is another one, wherever a text ends."""
    keys = [
        claim_key("alice", COMPLETIONS, "key"),
        claim_key("bob", COMPLETIONS, "key"),
        claim_key("alice", "/v1/other", "key"),
        claim_key("alice", COMPLETIONS, "Key"),
        claim_key(f"alice{COMPLETIONS}", "", "key"),
        claim_key("alice", f"{COMPLETIONS}key", ""),
        claim_key('alice","', COMPLETIONS, "key"),
        claim_key(SURROGATE, COMPLETIONS, "key"),
    ]
    assert len(keys) == len(set(keys))
    assert {32} == {len(key) for key in keys}
    assert keys[0] == claim_key("alice", COMPLETIONS, "key")


# --- the body -----------------------------------------------------------------------------------


def test_the_form_of_the_answer_does_not_count() -> None:
    """A repeat may ask for a stream or for an object, with usage or without."""
    expected = body_digest(asked())
    for stream in (True, False, None):
        assert expected == body_digest(asked(stream=stream))
    assert expected == body_digest(asked(stream_options={}))
    streamed = asked(stream=True, stream_options={"include_usage": True})
    assert expected == body_digest(streamed)
    assert {"stream", "stream_options"} < streamed.keys()  # which stay where they are


def test_such_a_field_further_in_counts() -> None:
    """Only the request's own `stream` is about the answer's form."""
    tool = {"type": "function", "function": {"name": "play", "parameters": {"stream": True}}}
    assert body_digest(asked(tools=[tool])) != body_digest(asked(tools=[{**tool, "function": {}}]))
    assert body_digest(asked(metadata={"stream": "a"})) != body_digest(asked(metadata={}))


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "other"},
        {"messages": [{"role": "user", "content": "Hello "}]},
        {"messages": [{"role": "system", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]},
        {"messages": [{"role": "user", "content": "Hello"}] * 2},
        {"tools": []},
        {"metadata": {"a": "b"}},
        {"temperature": 0},
        {"temperature": None},
        {"store": False},
        {"vendor_field": {"x": [1]}},
    ],
)
def test_everything_else_counts(fields: dict[str, Any]) -> None:
    """Another model, text, role, tool or parameter is another request; null isn't absent."""
    assert body_digest(asked()) != body_digest(asked(**fields))


def test_spelling_does_not_count() -> None:
    """Order, white space and escapes are gone once the body is read."""
    plain = '{"model":"demo","messages":[{"role":"user","content":"aé\\n"}],"n":1}'
    other = """ { "n" : 1, "messages" :
        [ {"content": "\\u0061\\u00e9\\u000a", "role": "user"} ], "model": "d\\u0065mo" } """
    assert digest_of(plain) == digest_of(other)


def test_numbers_are_compared_as_they_are_read() -> None:
    """1 and 1.0 are two values, as to everybody who reads JSON into integers and others; two
    spellings of one double are one."""
    one, other = asked(temperature=1), asked(temperature=1.0)
    assert body_digest(one) != body_digest(other)
    assert body_digest(asked(flag=True)) != body_digest(asked(flag=1))
    spellings = ["1.0", "1.00", "1e0", "10E-1"]
    messages = json.dumps(asked()["messages"])
    digests = {
        digest_of(f'{{"model": "demo", "messages": {messages}, "temperature": {spelling}}}')
        for spelling in spellings
    }
    assert {body_digest(other)} == digests


@settings(max_examples=100, deadline=None)
@given(bodies)
def test_the_order_of_keys_never_counts(body: dict[str, Any]) -> None:
    """Nor does the way to the value, whatever the texts in it, on every level."""
    expected = body_digest(body)
    assert expected == body_digest(backwards(body))
    assert expected == body_digest(decode_json(encode_json(body)))
    assert expected == body_digest(decode_json(json.dumps(body, indent=1).encode()))


@settings(max_examples=150, deadline=None)
@given(bodies, bodies)
def test_different_values_have_different_digests(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Only the same values share a digest, whichever library writes them down."""
    assert (repr_of(one) == repr_of(other)) == (body_digest(one) == body_digest(other))


def repr_of(value: Any) -> str:
    """What tells 1 from 1.0 and from true, and not one order of keys from another."""
    if isinstance(value, dict):
        return repr({key: repr_of(value[key]) for key in sorted(value)})
    return repr([repr_of(held) for held in value]) if isinstance(value, list) else repr(value)


@pytest.mark.parametrize("text", [SURROGATE, "\udfff", "a\ud83d", "\udc00\ud800"])
def test_half_characters_are_told_apart(text: str) -> None:
    """What orjson refuses is another text than what is written in its stead."""
    texts = [text, text.encode("ascii", "backslashreplace").decode(), "\ufffd", "?", ""]
    digests = [body_digest(asked(user=each)) for each in texts]
    assert len(texts) == len(set(digests))


def test_whatever_can_be_read_has_a_digest() -> None:
    """The deepest body and the largest numbers are as good as any, with half characters too."""
    deep = nested(DEEPEST_NESTING - 1, 0)
    for leaf in ("", SURROGATE):
        source = json.dumps({"deep": deep, "leaf": leaf, "big": [2**64 - 1, 2**70, -1e308]})
        body = decode_json(source.encode())
        assert body_digest(body) == body_digest(decode_json(source.encode()))
        assert body_digest(body) != body_digest({**body, "big": []})


def test_what_is_nested_beyond_all_reading_is_refused() -> None:
    """No body gets here that Python can't follow; one that did would be an error and not a crash."""
    with pytest.raises(ValueError, match="nested too deeply"):
        body_digest({"deep": nested(100_000)})
