"""What a client may ask, what it is told when it may not, and what an upstream is asked."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.wire import (
    ChatRequest,
    InvalidRequest,
    decode_json,
    encode_json,
    parse_request,
    upstream_body,
)

HELLO = [{"role": "user", "content": "Hello?"}]


def parse(**fields: Any) -> ChatRequest:
    """A request that is fine, but for these fields."""
    return parse_request(encode_json({"model": "m", "messages": HELLO, **fields}))


def refusal(data: bytes) -> tuple[str, str | None]:
    """The sentence and the field's name for a body that is refused."""
    with pytest.raises(InvalidRequest) as caught:
        parse_request(data)
    assert str(caught.value) == caught.value.message
    return caught.value.message, caught.value.param


def refused(**fields: Any) -> tuple[str, str | None]:
    return refusal(encode_json({"model": "m", "messages": HELLO, **fields}))


def asked_upstream(
    request: ChatRequest,
    *,
    model: str = "m",
    parameters: dict[str, Any] | None = None,
    preamble: str | None = None,
) -> dict[str, Any]:
    return upstream_body(request, model=model, parameters=parameters or {}, preamble=preamble)


# --- parse_request --------------------------------------------------------------------------------


def test_a_model_and_a_message_are_enough() -> None:
    """Everything else has its default."""
    body = {"model": "m", "messages": HELLO}
    expected = ChatRequest(
        body=body,
        model="m",
        messages=HELLO,
        stream=False,
        choices_expected=1,
        include_usage=None,
        tools=None,
        metadata=None,
    )
    assert expected == parse_request(encode_json(body))


def test_each_field_that_is_used_is_found_in_its_place() -> None:
    """What isn't `messages`, `tools` or `metadata` is among the parameters."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    request = parse(
        stream=True,
        n=3,
        stream_options={"include_usage": True},
        tools=tools,
        metadata={"conversation_id": "c"},
        temperature=0.5,
    )
    assert request.stream is True
    assert 3 == request.choices_expected
    assert request.include_usage is True
    assert request.tools == tools
    assert {"conversation_id": "c"} == request.metadata
    assert {
        "model": "m",
        "stream": True,
        "n": 3,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
    } == request.parameters


@pytest.mark.parametrize(
    ("data", "begins"),
    [
        (b"", "The body is not valid JSON: "),
        (b"{", "The body is not valid JSON: "),
        (b"model=m", "The body is not valid JSON: "),
        (b'{"model": "\xff"}', "The body is not valid JSON: "),
        (b'{"model": NaN}', "The body is not valid JSON: "),
        (b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}", "The body is not valid JSON: "),
        (b"[]", "The body must be a JSON object, not an array."),
        (b"null", "The body must be a JSON object, not null."),
        (b'"{}"', "The body must be a JSON object, not a string."),
        (b"1.5", "The body must be a JSON object, not a number."),
        (b"true", "The body must be a JSON object, not a boolean."),
    ],
)
def test_a_body_that_is_no_object_is_refused(data: bytes, begins: str) -> None:
    """The body as a whole is named by no param, and the sentence says what it is."""
    message, param = refusal(data)
    assert message.startswith(begins)
    assert message.endswith(".")
    assert param is None


NOT_TEXT = [(5, "a number"), (True, "a boolean"), (["m"], "an array"), ({"a": 1}, "an object")]


@pytest.mark.parametrize(("value", "found"), NOT_TEXT)
def test_model_must_be_text(value: Any, found: str) -> None:
    """`model` is a non-empty string."""
    assert refused(model=value) == (f"'model' must be a string, not {found}.", "model")


def test_model_must_be_named() -> None:
    """A model that is missing, null or empty is missing."""
    expected = ("You must name a model: 'model' is missing.", "model")
    assert expected == refusal(encode_json({"messages": HELLO}))
    assert expected == refused(model=None)
    assert expected == refused(model="")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ("'messages' is missing.", "messages")),
        ("Hi", ("'messages' must be an array, not a string.", "messages")),
        ({}, ("'messages' must be an array, not an object.", "messages")),
        ([], ("'messages' must hold at least one message.", "messages")),
        (["Hi"], ("'messages[0]' must be an object, not a string.", "messages[0]")),
        ([*HELLO, None], ("'messages[1]' must be an object, not null.", "messages[1]")),
        ([{}], ("'messages[0].role' must be a string.", "messages[0].role")),
        ([{"role": None}], ("'messages[0].role' must be a string.", "messages[0].role")),
        ([{"role": ""}], ("'messages[0].role' must be a string.", "messages[0].role")),
        ([*HELLO, {"role": 1}], ("'messages[1].role' must be a string.", "messages[1].role")),
    ],
)
def test_messages_must_be_a_list_of_objects_with_a_role(
    value: Any, expected: tuple[str, str]
) -> None:
    """The list isn't empty, and the first wrong one is named."""
    assert expected == refused(messages=value)


def test_messages_must_be_there() -> None:
    """A body without `messages` is refused with that name."""
    expected = ("'messages' is missing.", "messages")
    assert expected == refusal(encode_json({"model": "m"}))


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("stream", "true", "a boolean, not a string"),
        ("stream", 1, "a boolean, not a number"),
        ("stream", [], "a boolean, not an array"),
        ("stream_options", True, "an object, not a boolean"),
        ("stream_options", [], "an object, not an array"),
        ("stream_options", "", "an object, not a string"),
        ("metadata", [], "an object, not an array"),
        ("metadata", "a", "an object, not a string"),
        ("n", "2", "an integer, not a string"),
        ("n", 1.5, "an integer, not a number"),
        ("n", True, "an integer, not a boolean"),
        ("n", [1], "an integer, not an array"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field: str, value: Any, found: str) -> None:
    """The sentence says what the field is and should be."""
    assert refused(**{field: value}) == (f"'{field}' must be {found}.", field)


@pytest.mark.parametrize(
    ("value", "found"), [(1, "a number"), ("yes", "a string"), ({}, "an object")]
)
def test_include_usage_must_be_boolean(value: Any, found: str) -> None:
    """A field within a field is named in OpenAI's notation."""
    name = "stream_options.include_usage"
    expected = (f"'{name}' must be a boolean, not {found}.", name)
    assert expected == refused(stream_options={"include_usage": value})


@pytest.mark.parametrize("count", [0, -1, 129, 2**63])
def test_n_out_of_its_range_is_refused(count: int) -> None:
    """`n` is from 1 to OpenAI's 128."""
    assert refused(n=count) == (f"'n' must be between 1 and 128, not {count}.", "n")


@pytest.mark.parametrize("count", [1, 2, 128, 2.0])
def test_both_ends_of_the_range_of_n_are_allowed(count: float) -> None:
    """JSON's other way to write an integer is allowed too."""
    assert parse(n=count).choices_expected == count


@pytest.mark.parametrize("field", ["stream", "n", "stream_options", "metadata", "tools", "store"])
def test_null_means_not_given(field: str) -> None:
    """Clients that send every field they know, most of them null, get the defaults."""
    request = parse(**{field: None})
    assert request == ChatRequest(
        body={"model": "m", "messages": HELLO, field: None},
        model="m",
        messages=HELLO,
        stream=False,
        choices_expected=1,
        include_usage=None,
        tools=None,
        metadata=None,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, None), ({"include_usage": None}, None), ({"include_usage": False}, False)],
)
def test_include_usage_knows_three_answers(options: Any, expected: bool | None) -> None:
    """Yes, no and neither are kept apart."""
    assert parse(stream_options=options).include_usage is expected


@pytest.mark.parametrize("tools", [[], {}, "f", 5])
def test_tools_that_are_no_list_arent_kept(tools: Any) -> None:
    """What is no list of tools goes to the upstream to judge."""
    request = parse(tools=tools)
    assert request.tools is None
    assert asked_upstream(request)["tools"] == tools


@pytest.mark.parametrize("value", ["yes", 1, {}])
def test_store_must_be_boolean(value: Any) -> None:
    """`store` decides who can see the answer later, so it isn't guessed at."""
    message, param = refused(store=value)
    assert "store" == param
    assert message.startswith("'store' must be a boolean")


def test_more_than_ten_thousand_messages_are_refused() -> None:
    """Ten thousand messages are a conversation; more are an attack on the database."""
    message = {"role": "user", "content": ""}
    assert 10_000 == len(parse(messages=[message] * 10_000).messages)
    assert (
        "'messages' holds 10001 messages; at most 10000 are allowed.",
        "messages",
    ) == refused(messages=[message] * 10_001)


# --- metadata -------------------------------------------------------------------------------------


def test_metadata_at_openais_limits_is_accepted() -> None:
    """16 pairs, 64 characters a key, 512 characters a value: characters, not bytes."""
    metadata = {f"{number:02}" + "é" * 62: "🙂" * 512 for number in range(16)}
    assert parse(metadata=metadata).metadata == metadata
    assert {} == parse(metadata={}).metadata


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (
            {str(number): "" for number in range(17)},
            ("'metadata' holds 17 pairs; at most 16 are allowed.", "metadata"),
        ),
        (
            {"a": 5},
            ("The values of 'metadata' must be strings, not a number.", "metadata.a"),
        ),
        (
            {"fine": "yes", "b": None},
            ("The values of 'metadata' must be strings, not null.", "metadata.b"),
        ),
        (
            {"k" * 65: ""},
            (
                "A pair of 'metadata' is too long: keys may have 64 characters, values 512.",
                "metadata." + "k" * 64,
            ),
        ),
        (
            {"k": "v" * 513},
            (
                "A pair of 'metadata' is too long: keys may have 64 characters, values 512.",
                "metadata.k",
            ),
        ),
    ],
)
def test_metadata_beyond_openais_limits_is_refused(
    metadata: Any, expected: tuple[str, str]
) -> None:
    """Each limit has its sentence, and the pair at fault is named."""
    assert expected == refused(metadata=metadata)


# --- what passes ----------------------------------------------------------------------------------

VENDOR_FIELDS = {
    "top_k": 40,
    "min_p": 0.05,
    "repeat_penalty": 1.1,
    "chat_template_kwargs": {"enable_thinking": False},
    "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
    "tool_choice": "auto",
    "provider": None,
    "temperature": "hot",
    "max_tokens": -1,
    "store": False,
    "": [{"": []}],
}


def test_unknown_fields_pass() -> None:
    """Samplers and fields of vendors, and fields that we don't use, go on as they came."""
    sent = asked_upstream(parse(**VENDOR_FIELDS))
    assert VENDOR_FIELDS == {key: sent[key] for key in VENDOR_FIELDS}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "Once upon a"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
        {"role": "user", "content": [{"type": "invented", "x": 1}, "odd", 5]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "owl"},
        {"role": "user", "content": 5, "name": None, "prefix": True},
        {"role": "user", "content": "a\x00b\ud800c\udfff🙂"},
    ],
)
def test_any_message_passes(message: Any) -> None:
    """The last message may be an assistant's, content may be anything, any text is text."""
    sent = asked_upstream(parse(messages=[*HELLO, message]))
    assert sent["messages"] == [*HELLO, message]
    assert decode_json(encode_json(sent)) == sent


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "stream", "n", "stream_options", "metadata", "x"]),
        anything | st.just(HELLO) | st.just("m"),
    )
)
def test_a_request_is_understood_or_refused(body: dict[str, Any]) -> None:
    """Whatever object comes, it gives a request that can be sent on or a sentence for people."""
    try:
        request = parse_request(encode_json(body))
    except InvalidRequest as error:
        assert error.message.endswith(".")
        return
    assert request.body == body
    asked_upstream(request, preamble="Be kind.")
