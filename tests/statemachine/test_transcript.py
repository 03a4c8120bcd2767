"""How chunks fold into an answer."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from statemachine import ChunkPattern, RepeatedChunks, Transcript
from statemachine.tokens import estimate_tokens
from tests.statemachine.conftest import chunk, finish_chunk, made_up, text_chunk


def folded(*payloads: Any, choices_expected: int = 1) -> Transcript:
    transcript = Transcript(choices_expected)
    for payload in payloads:
        transcript.fold(payload)
    return transcript


TELLING = 'ab "\\\n\0é你😀\u2028\ud83d\ude00'
"""Characters of every width, those that JSON escapes, and both halves of a pair."""


@made_up(25)
@given(st.lists(st.text(TELLING)))
def test_text_is_the_deltas_joined(pieces: list[str]) -> None:
    """Nothing is added, dropped or reordered, surrogates and NULs included."""
    transcript = folded(*map(text_chunk, pieces))
    content = transcript.choices()[0].message["content"] if pieces else ""
    assert content == "".join(pieces)


def test_reasoning_folds_under_each_vendors_name() -> None:
    """`reasoning_content` (DeepSeek, llama.cpp) and `reasoning` (OpenRouter) fold like content."""
    transcript = folded(
        chunk({"role": "assistant", "reasoning_content": "Let "}),
        chunk({"reasoning_content": "me see.", "reasoning": "Hm"}),
        chunk({"reasoning": "m.", "content": "Yes."}),
    )
    assert {
        "role": "assistant",
        "content": "Yes.",
        "reasoning_content": "Let me see.",
        "reasoning": "Hmm.",
    } == transcript.choices()[0].message


def test_a_refusal_is_text_of_its_own() -> None:
    """Content stays null beside it."""
    message = folded(chunk({"refusal": "I "}), chunk({"refusal": "can't."})).choices()[0].message
    assert {"role": "assistant", "content": None, "refusal": "I can't."} == message


def test_tool_calls_fold_by_index() -> None:
    """Id, type and name come once; arguments come in pieces, with calls interleaved."""

    def call(index: int, **fields: Any) -> Any:
        return chunk({"tool_calls": [{"index": index, **fields}]})

    transcript = folded(
        call(0, id="a", type="function", function={"name": "add", "arguments": ""}),
        call(1, id="b", type="function", function={"name": "mul", "arguments": '{"'}),
        call(0, function={"arguments": '{"x":'}),
        call(1, id="b", type="function", function={"name": "mul", "arguments": 'y":2}'}),
        call(0, function={"arguments": " 1}"}),
        finish_chunk("tool_calls"),
    )
    choice = transcript.choices()[0]
    assert "tool_calls" == choice.finish_reason
    assert [
        {
            "index": 0,
            "id": "a",
            "type": "function",
            "function": {"name": "add", "arguments": '{"x": 1}'},
        },
        {
            "index": 1,
            "id": "b",
            "type": "function",
            "function": {"name": "mul", "arguments": '{"y":2}'},
        },
    ] == choice.message["tool_calls"]


def test_choices_are_kept_apart() -> None:
    """Interleaved choices fold each into its own."""
    transcript = folded(
        chunk({"content": "a"}, index=1),
        chunk({"content": "b"}, index=0),
        chunk({"content": "c"}, index=1),
        choices_expected=2,
    )
    assert [(0, "b"), (1, "ac")] == [(c.index, c.message["content"]) for c in transcript.choices()]


def test_unknown_fields_are_kept() -> None:
    """What vendors invent is folded: in the delta, in the choice, and beside the choices."""
    first = chunk({"images": [{"url": "data:1"}], "audio": {"id": "a", "data": "QU"}})
    first["choices"][0]["content_filter_results"] = {"hate": {"filtered": False}}
    second = chunk({"images": [{"url": "data:2"}], "audio": {"data": "JD"}}, citations=["u"])
    transcript = folded(first, second, {"service_tier": "default"})
    choice = transcript.choices()[0]
    assert [{"url": "data:1"}, {"url": "data:2"}] == choice.message["images"]
    assert {"id": "a", "data": "QUJD"} == choice.message["audio"]
    assert {"content_filter_results": {"hate": {"filtered": False}}} == choice.extra
    assert {"citations": ["u"], "service_tier": "default"} == transcript.extra


def test_text_becomes_a_part_where_parts_follow() -> None:
    """An upstream that switches from text to parts loses neither."""
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    message = folded(text_chunk("See: "), chunk({"content": [part]}), text_chunk("!")).choices()[0]
    assert message.message["content"] == [
        {"type": "text", "text": "See: "},
        part,
        {"type": "text", "text": "!"},
    ]


def test_logprobs_are_joined() -> None:
    """Each chunk's token log probabilities follow the ones before."""

    def with_logprobs(token: str) -> Any:
        payload = text_chunk(token)
        payload["choices"][0]["logprobs"] = {"content": [{"token": token}], "refusal": None}
        return payload

    choice = folded(with_logprobs("a"), with_logprobs("b")).choices()[0]
    assert {"content": [{"token": "a"}, {"token": "b"}], "refusal": None} == choice.logprobs


def test_folding_does_not_touch_the_chunks() -> None:
    """Chunks are shared with the writer; the transcript keeps copies of what it joins."""
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "1"}}
    payload = chunk({"tool_calls": [call]})
    folded(payload, chunk({"tool_calls": [{"index": 0, "function": {"arguments": "2"}}]}))
    assert payload == chunk({"tool_calls": [call]})
    assert {"name": "f", "arguments": "1"} == call["function"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["index", "id", "content", "x", "role", "finish_reason"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@made_up(15)
@given(st.lists(st.dictionaries(st.sampled_from(["content", "tool_calls", "x"]), json_values)))
def test_odd_deltas_never_raise(deltas: list[dict[str, Any]]) -> None:
    """Whatever an upstream puts into a delta is folded somehow."""
    transcript = folded(*map(chunk, deltas))
    transcript.choices()


def test_runs_that_there_is_room_for_fold_as_one() -> None:
    """Until the text is measured, it makes no difference how many runs the texts come in; there is no
    room after another chunk, nor where the text isn't plain."""
    pattern = ChunkPattern(text_chunk(""), "content", b"", b"")
    apart, together, parts = Transcript(), Transcript(), Transcript()
    for transcript in (apart, together):
        assert 0 == transcript.room_for(pattern)
        transcript.fold_run(RepeatedChunks(pattern, ["one"], b'"one"'))
        assert transcript.room_for(pattern) > 20
    texts, literals = ["", " two", "\n"], [b'""', b'" two"', b'"\\n"']
    for text, literal in zip(texts, literals, strict=True):
        apart.fold_run(RepeatedChunks(pattern, [text], literal))
    together.fold_run(RepeatedChunks(pattern, texts, b"\n".join(literals)))
    assert apart.choices() == together.choices()
    assert 4 == apart.chunk_count == together.chunk_count
    together.fold(text_chunk("parsed"))
    assert 0 == together.room_for(pattern)
    parts.fold(chunk({"content": [{"type": "text", "text": "part"}]}))
    parts.fold_run(RepeatedChunks(pattern, ["one"], b'"one"'))
    assert 0 == parts.room_for(pattern)


def test_token_estimates_count_utf8_bytes() -> None:
    """Four UTF-8 bytes are about a token; anything at all is at least one."""
    assert 100 == estimate_tokens("x" * 400)
    assert 2 == estimate_tokens("你好")
    assert 2 == estimate_tokens([{"role": "user", "content": "\ud800"}])
    assert 0 == estimate_tokens([])
