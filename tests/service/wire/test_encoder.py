"""What clients read: chunks made ours, errors, pings, and the object of a plain request."""

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from service.wire import (
    DONE,
    PING,
    ChunkEncoder,
    completion_object,
    decode_json,
    encode_json,
    error_body,
    error_event,
)
from statemachine import (
    Choice,
    ChunkReceived,
    Failure,
    SendDone,
    SessionPolicy,
    SessionRecord,
    StreamSession,
    UpstreamFinished,
)
from tests.statemachine.conftest import asked, chunk, finish_chunk, text_chunk

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def encoder(*, include_usage: bool = False, at: int = 100) -> ChunkEncoder:
    return ChunkEncoder("chatcmpl-1", "ours", at, include_usage)


def data_of(event: bytes) -> Any:
    """The JSON value of one SSE event, after checking that it is exactly one."""
    lines = event.decode("utf-8").split("\n")
    assert 3 == len(lines)
    assert ["", ""] == lines[1:]
    assert lines[0].startswith("data: {")
    assert "\r" not in lines[0]
    return decode_json(lines[0].removeprefix("data: ").encode())


def encoded(*payloads: Any, **options: Any) -> list[Any]:
    """The chunks as a client reads them."""
    target = encoder(**options)
    return [data_of(target.encode(payload)) for payload in payloads]


# --- chunks ---------------------------------------------------------------------------------------


def test_id_model_and_created_are_ours() -> None:
    """Where an upstream varies or omits them, clients see the same in every chunk."""
    theirs = [
        {**text_chunk("a"), "id": "up-1", "model": "x", "created": 7},
        {**text_chunk("b"), "id": "up-2", "model": "y", "created": 8},
        {"choices": [], "service_tier": "default"},
        {**finish_chunk(), "id": None, "object": "text_completion", "created": None},
    ]
    envelopes = [
        {key: sent[key] for key in ("id", "object", "created", "model")}
        for sent in encoded(*theirs)
    ]
    expected = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "ours",
    }
    assert [expected] * 4 == envelopes


@pytest.mark.parametrize("created", [None, "7", [7], 7.9, 1e300, 0, -1])
def test_a_created_that_is_no_whole_number_becomes_ours(created: Any) -> None:
    """The first chunk decides: ours stays although the upstream tells a time later."""
    first = {**text_chunk("a"), "created": created}
    assert [100, 100] == [sent["created"] for sent in encoded(first, text_chunk("b"))]


def test_a_first_chunk_without_created_gets_ours() -> None:
    """Ours is the time when the completion was asked for."""
    assert 100 == encoded({"choices": []})[0]["created"]


@pytest.mark.parametrize("created", [7, 0, None, "7", 7.9, 1e300, True])
def test_stream_and_record_agree_on_created(created: Any) -> None:
    """Whatever an upstream calls its time, the stored completion has the stream's."""
    first = {**text_chunk("a"), "created": created}
    assert completion_object(record_of(first))["created"] == encoded(first, at=99)[0]["created"]


def test_everything_else_is_untouched() -> None:
    """Unknown fields at every level, odd values and nulls come out as they came in."""
    payload = {
        **chunk(
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Hm.",
                "tool_calls": [{"index": 0, "id": "c", "function": {"arguments": "{"}, "x": 1}],
            },
            finish_reason="eos",
        ),
        "system_fingerprint": None,
        "service_tier": "flex",
        "obfuscation": "aXb",
        "citations": [["https://example.org", 1.5, True, None]],
        "error": None,
    }
    payload["choices"][0]["content_filter_results"] = {}
    expected = {**payload, "id": "chatcmpl-1", "model": "ours"}
    (sent,) = encoded(payload)
    assert expected == sent
    assert list(sent) == list(payload)


def test_the_chunk_itself_is_not_changed() -> None:
    """The transcript reads the same object; encoding makes its own."""
    payload = {**text_chunk("a"), "usage": USAGE}
    before = encode_json(payload)
    encoded(payload)
    encoded(payload, include_usage=True)
    assert encode_json(payload) == before


@pytest.mark.parametrize("payload", [{"service_tier": "x"}, {"choices": None, "service_tier": "x"}])
def test_choices_are_always_a_list(payload: Any) -> None:
    """Clients that loop over `choices` may do so with every chunk."""
    assert [] == encoded(payload)[0]["choices"]


def test_every_chunk_has_usage_for_those_who_asked() -> None:
    """The key is null in each chunk of the answer, whatever the upstream says meanwhile; the figures
    come once, in a chunk of their own."""
    sent = encoded(
        text_chunk("a"),
        {**text_chunk("b"), "usage": USAGE},
        {"choices": [], "usage": USAGE},
        include_usage=True,
    )
    assert [None, None, USAGE] == [chunk["usage"] for chunk in sent]


def test_no_chunk_has_usage_for_those_who_didnt_ask() -> None:
    """The key is left out whatever the upstream sends."""
    sent = encoded(
        text_chunk("a"), {**text_chunk("b"), "usage": USAGE}, {**text_chunk("c"), "usage": None}
    )
    assert not any("usage" in chunk for chunk in sent)


texts = st.text(st.characters(exclude_categories=()), max_size=20)


@given(content=texts, key=texts, include_usage=st.booleans())
def test_any_text_makes_one_event(content: str, key: str, include_usage: bool) -> None:
    """Line ends, NULs, surrogates: one `data:` line of valid UTF-8, and the same text again."""
    payload = {**chunk({"content": content, f"x{key}": content}), f"y{key}": key}
    (sent,) = encoded(payload, include_usage=include_usage)
    assert sent["choices"] == payload["choices"]
    assert sent[f"y{key}"] == key


def test_surrogates_go_out_as_escapes() -> None:
    """Half a character stays what it was, in a line of valid UTF-8."""
    event = encoder().encode(text_chunk("a\ud83d"))
    assert rb'"content":"a\ud83d"' in event


def test_the_clients_model_may_be_any_text() -> None:
    """The client's own name for the model comes back as it was, even if it is no good text."""
    event = ChunkEncoder("chatcmpl-1", 'a"b\n\udc00', 100, False).encode(text_chunk("x"))
    assert 'a"b\n\udc00' == data_of(event)["model"]


# --- the other lines ------------------------------------------------------------------------------


def test_a_ping_is_a_comment_and_one_newline() -> None:
    """A blank line after a comment crashes openai-python once events carry `id:`."""
    assert PING.startswith(b":")
    assert 1 == PING.count(b"\n")
    assert PING.endswith(b"\n")


def test_done_is_openais() -> None:
    """The end marker is the one that every client knows."""
    assert DONE == b"data: [DONE]\n\n"


def test_an_error_body_is_openais() -> None:
    """All four keys are always there; the upstream's own code goes before ours."""
    ours = Failure("idle_timeout", "It fell silent.", type="timeout_error")
    assert {
        "error": {
            "message": "It fell silent.",
            "type": "timeout_error",
            "param": None,
            "code": "idle_timeout",
        }
    } == error_body(ours)
    theirs = Failure("upstream_error", "No.", "x_error", param="n", upstream_code="429", status=429)
    assert {
        "error": {"message": "No.", "type": "x_error", "param": "n", "code": "429"}
    } == error_body(theirs)


@given(message=texts)
def test_an_error_event_has_no_choices_beside_the_error(message: str) -> None:
    """An error in the stream is one event."""
    failure = Failure("upstream_error", message)
    assert data_of(error_event(failure)) == error_body(failure)


# --- the completion object ------------------------------------------------------------------------


def record_of(*payloads: Any, **request: Any) -> SessionRecord:
    """What is kept of a whole answer made of these chunks."""
    session = StreamSession(asked(model="ours", created_at=99.9, **request), SessionPolicy())
    for payload in payloads:
        session.handle(ChunkReceived(payload), 100.0)
    effects = session.handle(UpstreamFinished(), 101.0)
    (done,) = (effect for effect in effects if isinstance(effect, SendDone))
    return done.record


def test_a_completion_object_holds_what_the_stream_would() -> None:
    """A plain request gets it under our id and the model that it asked for."""
    record = record_of(text_chunk("Hel"), text_chunk("lo"), {**finish_chunk(), "usage": USAGE})
    assert {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "ours",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    } == completion_object(record)


def test_a_completion_object_keeps_what_vendors_add() -> None:
    """Unknown fields of the answer, of a choice and of a message are in the object too."""
    payload = chunk({"content": "a", "reasoning_content": "Hm."}, "stop", citations=["u"])
    payload["choices"][0]["stop_reason"] = 5
    found = completion_object(record_of(payload))
    assert ["u"] == found["citations"]
    assert 5 == found["choices"][0]["stop_reason"]
    assert "Hm." == found["choices"][0]["message"]["reasoning_content"]


def test_a_completion_object_has_every_choice_by_index() -> None:
    """Each choice has its own message, which may be a refusal, and its own finish reason."""
    found = completion_object(
        record_of(
            chunk({"refusal": "No."}, "content_filter", index=1),
            chunk({"content": "Yes."}, "stop", index=0),
            choices_expected=2,
        )
    )
    assert [0, 1] == [choice["index"] for choice in found["choices"]]
    assert [None, "No."] == [choice["message"]["refusal"] for choice in found["choices"]]
    assert ["stop", "content_filter"] == [choice["finish_reason"] for choice in found["choices"]]


def test_without_an_upstreams_time_created_is_the_requests() -> None:
    """`created` is in whole seconds."""
    payload = text_chunk("a")
    del payload["created"]
    assert 99 == completion_object(record_of(payload))["created"]


def test_what_is_ours_cannot_be_overwritten() -> None:
    """Odd fields of an upstream never replace the object's own."""
    odd = {"index": 5, "message": "x", "finish_reason": "y", "logprobs": "z"}
    record = record_of(text_chunk("a"))
    (choice,) = record.choices
    record = evolve(
        record,
        choices=(Choice(0, choice.message, None, None, odd),),
        extra={"id": "x", "object": "x", "created": 0, "model": "x", "choices": [], "usage": {}},
    )
    found = completion_object(record)
    assert (
        "chatcmpl-1",
        "chat.completion",
        "ours",
    ) == (found["id"], found["object"], found["model"])
    assert found["usage"] == record.usage
    assert [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "a", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        }
    ] == found["choices"]
