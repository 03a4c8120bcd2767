"""Odd chunks come out as OpenAI would send them, and fold to the same in the SDK and in the row."""

from collections.abc import Iterable
from typing import Any

import pytest
from openai.lib.streaming._deltas import accumulate_delta

from service.agents.openai.decoder import SseDecoder
from service.wire.measuring import MOST_VALUES
from statemachine import Transcript, UpstreamFailed, UpstreamFinished
from statemachine.endings import CUT_OFF_REASONS
from statemachine.transcript import MOST_CHOICES, MOST_ITEMS
from tests.service.agents.test_decoder import DONE, FINISHED, NO_LIMIT, event
from tests.statemachine.conftest import chunk, finish_chunk, text_chunk

REASONS = frozenset(CUT_OFF_REASONS)


def read(*payloads: Any, tail: bytes = DONE) -> tuple[list[Any], Any]:
    """What an agent makes of these chunks, and the ending."""
    decoder = SseDecoder(NO_LIMIT, REASONS)
    chunks = [each for payload in payloads for each in decoder.feed(event(payload))]
    decoder.feed(tail)
    decoder.close()
    return chunks, decoder.ending


def message_of(*payloads: Any) -> dict[str, Any]:
    """The first choice's message, which the SDK's own folding and ours agree about."""
    chunks, _ = read(*payloads)
    transcript = Transcript()
    told: Any = {}
    for each in chunks:
        transcript.fold(each)
        for choice in each.get("choices") or ():
            if not choice.get("index"):
                told = accumulate_delta(told, choice.get("delta") or {})
    kept = dict(transcript.choices()[0].message)
    told.setdefault("role", "assistant")
    told.setdefault("content", None)
    assert told == kept
    return kept


def calls(*items: dict[str, Any]) -> Any:
    return chunk({"tool_calls": list(items)})


def call(index: Any, name: str | None = None, arguments: str = "", **fields: Any) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": arguments}
    if name is not None:
        function["name"] = name
    at = {} if index is ... else {"index": index}
    return {**at, **fields, "function": function}


def called(message: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (each["index"], each.get("id"), each["function"].get("name"), each["function"]["arguments"])
        for each in message["tool_calls"]
    ]


# --- what is as it should be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        text_chunk("a"),
        finish_chunk(),
        finish_chunk("function_call"),
        chunk({"role": "assistant", "content": "", "refusal": None}),
        chunk({"content": "a", "tool_calls": None, "function_call": None}),
        chunk({"reasoning_content": "a"}),
        calls(call(0, "add", id="a", type="function")),
        calls(call(0, "add", id="a"), call(1, "add", id="b")),
        chunk({"images": [{"type": "image_url", "image_url": {"url": "data:a"}, "index": 0}]}),
        chunk({"annotations": [{"type": "url_citation", "url_citation": {"url": "u"}}]}),
        {"choices": [], "usage": {"total_tokens": 1}},
        {"choices": None},
        {"x_groq": {"usage": {"total_tokens": 1}}},
        {},
    ],
)
def test_a_good_chunk_goes_on_as_it_came(payload: Any) -> None:
    """What OpenAI might have sent isn't touched, and keeps its source."""
    decoder = SseDecoder(NO_LIMIT, REASONS)
    data = event(payload)
    assert [payload] == decoder.feed(data)
    assert [data[6:-2]] == decoder.sources


def test_a_mended_chunk_has_no_source() -> None:
    """The journal writes what goes on, not what came."""
    decoder = SseDecoder(NO_LIMIT)
    assert [chunk({"content": "a"})] == decoder.feed(event(chunk({"content": "a", "x": []})))
    assert [None] == decoder.sources


# --- tool calls -----------------------------------------------------------------------------------


def test_parallel_calls_at_the_same_index_are_several() -> None:
    """A new id at an index is a new call (Ollama, Gemini); what follows without one goes on with it."""
    message = message_of(
        calls(call(0, "add", "{", id="a"), call(0, "mul", id="b")),
        calls(call(0, arguments="[1]")),
        calls(call(0, arguments='"x": 1}', id="a")),
        calls(call(0, "sub", "{}", id="c")),
    )
    assert [
        (0, "a", "add", '{"x": 1}'),
        (1, "b", "mul", "[1]"),
        (2, "c", "sub", "{}"),
    ] == called(message)


def test_an_id_in_each_piece_is_one_call() -> None:
    """Id, type and name repeated in each piece come once."""
    piece = {"id": "a", "type": "function"}
    pieces = [calls(call(0, "add", arguments, **piece)) for arguments in ("{", '"x"', ": 1", "}")]
    assert [(0, "a", "add", '{"x": 1}')] == called(message_of(*pieces))


def test_an_id_that_comes_late_is_its_calls() -> None:
    """Until another id comes, pieces without one belong to the call."""
    message = message_of(
        calls(call(0, "add", '{"x"')),
        calls(call(0, arguments=": 1}", id="a")),
        calls(call(0, id="a")),
    )
    assert [(0, "a", "add", '{"x": 1}')] == called(message)


@pytest.mark.parametrize("index", [..., None])
def test_calls_without_an_index_get_one(index: Any) -> None:
    """Their ids tell them apart, and pieces without either go on with the last (Mistral)."""
    message = message_of(
        calls(call(index, "add", '{"x"', id="a")),
        calls(call(index, arguments=": 1}")),
        calls(call(index, "mul", "{}", id="b"), call(index, "sub", "{}", id="c")),
    )
    assert [
        (0, "a", "add", '{"x": 1}'),
        (1, "b", "mul", "{}"),
        (2, "c", "sub", "{}"),
    ] == called(message)


@pytest.mark.parametrize("index", [0, ..., None, "0", 0.0, False])
@pytest.mark.parametrize("id", [{}, {"id": ""}, {"id": None}])
def test_whole_calls_without_ids_are_several(index: Any, id: dict[str, Any]) -> None:
    """A name with whole arguments, where there were such, begins a call (Gemini)."""
    message = message_of(
        calls(call(index, "weather", '{"city": "Rome"}', **id)),
        calls(call(index, "weather", '{"city": "Oslo"}', **id), call(index, "time", "{}", **id)),
    )
    assert ['{"city": "Rome"}', '{"city": "Oslo"}', "{}"] == [
        each["function"]["arguments"] for each in message["tool_calls"]
    ]
    assert [0, 1, 2] == [each["index"] for each in message["tool_calls"]]
    assert ["weather", "weather", "time"] == [
        each["function"]["name"] for each in message["tool_calls"]
    ]


def test_a_name_in_each_piece_begins_no_call() -> None:
    """Pieces of arguments are not whole by themselves."""
    pieces = [calls(call(0, "add", arguments)) for arguments in ("", "{", '"x": {', "}", "}")]
    assert [(0, None, "add", '{"x": {}}')] == called(message_of(*pieces))


@pytest.mark.parametrize("index", [1, 7, 10**18, "1", 1.0, 2.5, "first", -1])
def test_calls_are_numbered_from_0(index: Any) -> None:
    """The SDKs put a call at its index of a list, and lose its pieces if there is none before it."""
    message = message_of(
        calls(call(index, "add", '{"x"', id="a")), calls(call(index, arguments=": 1}"))
    )
    assert [(0, "a", "add", '{"x": 1}')] == called(message)


def test_choices_number_their_calls_apart() -> None:
    """The same index in two choices is two calls."""
    first = chunk({"tool_calls": [call(0, "add", "{}", id="a")]}, index=0)
    second = chunk({"tool_calls": [call(0, "mul", "{}", id="b")]}, index=1)
    assert [first, second, second] != read(first, second, first)[0]
    assert [first, second] == read(first, second)[0]


# --- other lists ----------------------------------------------------------------------------------


def test_images_at_the_same_index_are_several() -> None:
    """An address that begins anew is another image's."""
    images = [
        {"type": "image_url", "image_url": {"url": f"data:{n}"}, "index": 0} for n in range(3)
    ]
    message = message_of(*[chunk({"images": [image]}) for image in images])
    assert [(n, {"url": f"data:{n}"}) for n in range(3)] == [
        (image["index"], image["image_url"]) for image in message["images"]
    ]


def test_labels_are_said_once() -> None:
    """OpenRouter says format and id in each piece of a reasoning detail; its text may well repeat."""
    label = {"type": "reasoning.text", "format": "v1", "id": "r", "index": 0}
    pieces = [chunk({"reasoning_details": [{**label, "text": text}]}) for text in ("ha", "ha", "!")]
    message = message_of(
        *pieces,
        chunk({"reasoning_details": [{**label, "text": "", "signature": "s"}]}),
        chunk({"reasoning_details": [{**label, "text": "", "signature": "s"}]}),
    )
    assert [{**label, "text": "haha!", "signature": "s"}] == message["reasoning_details"]


def test_another_type_at_the_same_index_is_another_item() -> None:
    """A summary and its encrypted form are two."""
    summary = {"type": "reasoning.summary", "summary": "So", "index": 0}
    secret = {"type": "reasoning.encrypted", "data": "QQ==", "index": 0}
    message = message_of(
        chunk({"reasoning_details": [summary]}), chunk({"reasoning_details": [secret]})
    )
    assert [summary, {**secret, "index": 1}] == message["reasoning_details"]


def test_names_of_objects_are_said_once() -> None:
    """So too of an object that is in no list: a function's name, a sound's id."""
    message = message_of(
        chunk(
            {"audio": {"id": "a", "data": "QU"}, "function_call": {"name": "f", "arguments": "{"}}
        ),
        chunk(
            {"audio": {"id": "a", "data": "QU"}, "function_call": {"name": "f", "arguments": "}"}}
        ),
    )
    assert {"id": "a", "data": "QUQU"} == message["audio"]
    assert {"name": "f", "arguments": "{}"} == message["function_call"]


def test_a_role_is_said_once() -> None:
    """Ollama says it in each chunk, and the SDK would make `assistantassistant` of it."""
    role = {"role": "assistant"}
    chunks, _ = read(*[chunk({**role, "content": text}) for text in ("a", "b")])
    assert [{**role, "content": "a"}, {"content": "b"}] == [
        each["choices"][0]["delta"] for each in chunks
    ]
    assert "ab" == message_of(*[chunk({**role, "content": text}) for text in "ab"])["content"]


# --- what is empty, and what has another name -----------------------------------------------------


@pytest.mark.parametrize(
    "empty",
    [{"tool_calls": []}, {"function_call": {}}, {"images": []}, {"annotations": []}, {"audio": {}}],
)
def test_empty_lists_and_objects_leave_the_delta(empty: dict[str, Any]) -> None:
    """OpenAI refuses an empty list of tool calls when it is sent back."""
    assert [text_chunk("a")] == read(chunk({"content": "a", **empty}))[0]
    assert [chunk({})] == read(chunk(empty))[0]
    assert {"role": "assistant", "content": "ab"} == message_of(
        chunk({"content": "a", **empty}), chunk({"content": "b", **empty})
    )


def test_a_message_is_taken_for_the_delta() -> None:
    """Some backends stream `message`, as Ollama's own API does."""
    payloads = [chunk({"role": "assistant", "content": text}) for text in ("Hel", "lo", "!")]
    for payload in payloads:
        (choice,) = payload["choices"]
        choice["message"] = choice.pop("delta")
    assert {"role": "assistant", "content": "Hello!"} == message_of(*payloads)


@pytest.mark.parametrize("delta", [{}, {"delta": None}])
def test_the_text_of_a_completion_is_content(delta: dict[str, Any]) -> None:
    """The older completions API streams `text`."""
    payloads = [
        {"choices": [{"index": 0, "text": text, "finish_reason": None, **delta}]} for text in "ab"
    ]
    assert {"role": "assistant", "content": "ab"} == message_of(*payloads)


def test_a_message_that_sums_up_is_left_out() -> None:
    """The whole message after its deltas says nothing new."""
    last = {"index": 0, "message": {"content": "ab"}, "finish_reason": "stop"}
    chunks, _ = read(text_chunk("a"), text_chunk("b"), {"choices": [last]})
    assert {"index": 0, "delta": {}, "finish_reason": "stop"} == chunks[-1]["choices"][0]
    payloads = (text_chunk("a"), text_chunk("b"), {"choices": [last]})
    assert {"role": "assistant", "content": "ab"} == message_of(*payloads)


# --- content in parts -----------------------------------------------------------------------------


def thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}], "closed": True}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_text_in_parts_is_text() -> None:
    """Mistral's thinking and text come as parts, one a token: they are where readers look for them."""
    assert {
        "role": "assistant",
        "content": "Yes, so.",
        "reasoning_content": "Hm, well",
    } == message_of(
        chunk({"content": [thinking("Hm")]}),
        chunk({"content": [thinking(", "), thinking("well")]}),
        chunk({"content": [said("Yes")]}),
        chunk({"content": [said(", "), "so"]}),
        text_chunk("."),
    )


def test_other_parts_are_kept_beside_the_text() -> None:
    """What is neither text nor thinking isn't lost, and the text stays text."""
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    message = message_of(
        text_chunk("See "),
        chunk({"content": [said("this"), image]}),
        chunk({"content": [{"type": "reference", "reference_ids": [1]}, {**said("."), "x": 1}]}),
        chunk({"content": [{"type": "text"}, 5]}),
    )
    assert "See this." == message["content"]
    assert [
        image,
        {"type": "reference", "reference_ids": [1]},
        {"type": "text", "x": 1},
        {"type": "text"},
        {"type": "unknown", "value": 5},
    ] == [{k: v for k, v in part.items() if k != "index"} for part in message["content_parts"]]


# --- finish reasons -------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["", " ", "null", "None", False, 0, {}, [], {"type": None}])
def test_what_is_no_finish_reason_is_null(reason: Any) -> None:
    """In each chunk or in one."""
    assert [chunk({"content": text}) for text in "ab"] == read(
        *[chunk({"content": text}, reason) for text in "ab"]
    )[0]


def test_the_type_of_an_object_is_the_reason() -> None:
    """SGLang's own form."""
    assert [finish_chunk("length")] == read(chunk({}, {"type": "length", "length": 5}))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", [*CUT_OFF_REASONS, "ABORT", " Error "])
@pytest.mark.parametrize("tail", [DONE, b""])
def test_a_reason_that_means_cut_off_is_a_failure(reason: str, tail: bytes) -> None:
    """It isn't passed on as a good end, and the ending names it."""
    payloads = [
        text_chunk("a"),
        chunk({"content": "b"}, reason),
        {"choices": [], "usage": {"a": 1}},
    ]
    chunks, ending = read(*payloads, tail=tail)
    assert [text_chunk("a"), text_chunk("b"), payloads[2]] == chunks
    assert isinstance(ending, UpstreamFailed)
    assert "upstream_incomplete" == ending.failure.code
    assert repr(reason.strip().lower()) in ending.failure.message


def test_one_choice_cut_off_fails_all() -> None:
    """The other is whole, the answer isn't."""
    whole, cut_off = chunk({}, "stop", index=0), chunk({}, "abort", index=1)
    chunks, ending = read(whole, cut_off)
    assert [whole, chunk({}, index=1)] == chunks
    assert isinstance(ending, UpstreamFailed)


def test_the_backends_words_win() -> None:
    """An error behind such a reason is told as the backend told it."""
    _, ending = read(chunk({}, "error"), {"error": {"message": "Out of memory."}})
    assert isinstance(ending, UpstreamFailed)
    assert ("upstream_error", "Out of memory.") == (ending.failure.code, ending.failure.message)


def test_which_reasons_mean_cut_off_is_the_agents_business() -> None:
    """An agent may be told that there are none."""
    decoder = SseDecoder(NO_LIMIT)
    assert [finish_chunk("abort")] == decoder.feed(event(finish_chunk("abort")) + DONE)
    assert FINISHED == decoder.ending == UpstreamFinished()


# --- the shortcut ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd", [{"role": "assistant"}, {"tool_calls": []}, {"role": "assistant", "images": []}]
)
def test_what_is_mended_alike_is_a_pattern(odd: dict[str, Any]) -> None:
    """A role or an empty list in each chunk doesn't cost the shortcut."""
    decoder = SseDecoder(NO_LIMIT)
    for text in "abc":
        decoder.feed(event(chunk({**odd, "content": text})))
    run = decoder.take(event(chunk({**odd, "content": "d"})))
    assert run is not None
    assert text_chunk("d") == run.pattern.chunk(run.texts[0])


# --- bounds ---------------------------------------------------------------------------------------


def oversized() -> Iterable[Any]:
    yield chunk({"tool_calls": [{}] * (MOST_ITEMS + 1)})
    yield chunk({"content": [{}] * (MOST_ITEMS + 1)})
    yield {"choices": [{}] * (MOST_CHOICES + 1)}
    yield chunk({"x": [[0] * MOST_VALUES]})
    yield chunk({"x": {str(n): 0 for n in range(MOST_VALUES)}})
    yield chunk({str(n): "" for n in range(MOST_VALUES)})


@pytest.mark.parametrize("payload", [*oversized()], ids=map(str, range(6)))
def test_a_chunk_that_holds_too_much_is_malformed(payload: Any) -> None:
    """Nobody's answer has so many things in one chunk; going through them would hold up others."""
    chunks, ending = read(text_chunk("a"), payload)
    assert [text_chunk("a")] == chunks
    assert isinstance(ending, UpstreamFailed)
    assert "upstream_malformed" == ending.failure.code


def test_much_text_is_not_too_much() -> None:
    """Punctuation within a text counts for nothing."""
    payload = text_chunk('[{,:"\\' * MOST_VALUES)
    assert [payload] == read(payload)[0]
