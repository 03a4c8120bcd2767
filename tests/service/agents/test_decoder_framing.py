"""What is around an upstream's chunks: names, lines, bare JSON, trifles."""

import json
from typing import Any

import pytest

from service.agents.openai.decoder import NO_STREAM, SseDecoder
from statemachine import Failure, UpstreamFailed, UpstreamFinished
from tests.service.agents.test_decoder import DONE, FINISHED, NO_LIMIT, event, read
from tests.statemachine.conftest import finish_chunk, text_chunk

A, B, C = (text_chunk(word) for word in "abc")
NO = Failure("upstream_error", "No.", type="upstream_error")


def cuts(body: bytes) -> list[list[bytes]]:
    """The body in one piece, in pieces of each of some sizes, and in lines."""
    sizes = (1, 2, 3, 7, 50)
    pieces = [[body[at : at + size] for at in range(0, len(body), size)] for size in sizes]
    return [[body], *pieces, body.splitlines(keepends=True)]


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        b'error: {"code": 500, "message": "No.", "type": "server_error"}\n\n',
        b'error: {"error": {"message": "No."}}\n\n',
        b'error:{"message": "No."}\r\n\r\n',
        b"error: No.\n\n",
        b'{"error": {"message": "No."}}\n\n',
        b'{"error": "No."}\n',
        b'[{"error": {"message": "No."}}]\n\n',
        b'{\n  "error": {\n    "message": "No."\n  }\n}\n\n',
        b'data: {"object": "error", "message": "No.", "type": "x", "code": 400}\n\n',
        b'data: {"object": "error", "message": "No."}\n\n',
        b'data: {"type": "error", "message": "No."}\n\n',
        b'data: {"type": "error", "error": {"message": "No."}}\n\n',
        b'data: {"code": "InvalidParameter", "message": "No.", "request_id": "1"}\n\n',
        b'data: {"status": 500, "message": "No."}\n\n',
        b'data: {"detail": "No."}\n\n',
        b'data: {"errors": [{"message": "No."}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {}, "error": {"message": "No."}}]}\n\n',
        b'data: {"choices": [], "error": {"message": "No."}}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {}}], "x_groq": {"error": "No."}}\n\n',
        b'event: error\ndata: {"detail": "No."}\n\n',
        b'event: error\ndata: {"detail": [{"msg": "No."}]}\n\n',
        b"event: error\ndata: No.\n\n",
        b'event: Error\ndata: "No."\n\n',
        b'event: server_error\ndata: {"message": "No."}\n\n',
        b'event: exception\ndata: {"error": "No."}\n\n',
        b'event: message\ndata: {"error": "No."}\n\n',
    ],
)
@pytest.mark.parametrize("after", [b"", DONE, event(B) + DONE])
def test_an_error_in_mid_stream_is_the_end_in_its_own_words(error: bytes, after: bytes) -> None:
    """However it is written, and whatever follows it; what came before is kept."""
    for pieces in cuts(event(A) + error + after):
        payloads, ending = read(pieces)
        assert [A] == payloads
        assert isinstance(ending, UpstreamFailed)
        assert ("upstream_error", "No.") == (ending.failure.code, ending.failure.message)


@pytest.mark.parametrize("error", [{}, "", None, False, [], 0])
def test_an_error_that_says_nothing_is_a_trifle_beside_a_chunk(error: Any) -> None:
    """It isn't passed on either: JavaScript's clients take an empty object for an error."""
    usage = {"usage": {"x": 1}}
    body = event({**A, "error": error}) + event({**usage, "error": error}) + DONE
    payloads, ending = read([body])
    assert FINISHED == ending
    if error is not None:
        assert payloads == [A, usage]


@pytest.mark.parametrize(
    "payload",
    [
        {"usage": {"total_tokens": 1}},
        {"id": "x", "object": "chat.completion.chunk", "message": "hi", "code": 5},
        {"x_groq": {"usage": {"total_tokens": 1}}},
        {"event": {"type": "status", "data": {"description": "Looking."}}},
        {"message": "Just so."},
        {"type": "status", "text": "Looking."},
        {"prompt_filter_results": [], "choices": []},
        {"error": None, "x": 1},
    ],
)
def test_other_objects_without_choices_are_no_errors(payload: Any) -> None:
    """Vendors send all sorts of chunks of their own."""
    assert ([payload], FINISHED) == read([event(payload) + DONE])


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "noise",
    [
        b"event: ping\ndata: {}\n\n",
        b'event: ping\ndata: {"type": "ping"}\n\n',
        b'event: ping\ndata: {"choices": []}\n\n',
        b"event: ping\ndata: 2026-01-01T00:00:00Z\n\n",
        b"event: ping\ndata:\n\n",
        b"event: ping\n\n",
        b"event: PING\ndata: ping\n\n",
        b"event: heartbeat\ndata: {}\n\n",
        b"event: keep-alive\ndata: null\n\n",
        b'event: status\ndata: {"text": "Looking."}\n\n',
        b"event: status\ndata: Looking.\n\n",
        b"event: metadata\ndata: [1]\n\n",
        b'data: {"type": "ping"}\n\n',
        b'data: {"type": "heartbeat", "n": 1}\n\n',
        b"data: ping\n\n",
        b"data:\n\n",
        b"data: \n\n",
        b"id: 5\nevent: ping\nretry: 10\n\n",
    ],
)
def test_what_is_no_chunk_by_its_name_is_left_out(noise: bytes) -> None:
    """Heartbeats and events of other names aren't passed on, and change nothing."""
    for pieces in cuts(noise + event(A) + noise + event(B) + noise + DONE):
        assert ([A, B], FINISHED) == read(pieces)


@pytest.mark.parametrize("name", [b"message", b"chunk", b"completion", b"data", b"delta"])
def test_a_chunk_is_one_under_any_name(name: bytes) -> None:
    """Some backends name all their events."""
    body = b"event: %b\ndata: %b\n\n" % (name, json.dumps(A).encode())
    for pieces in cuts(body + b"event: done\ndata: [DONE]\n\n"):
        assert ([A], FINISHED) == read(pieces)


@pytest.mark.parametrize("done", [b" [DONE]", b"[DONE]", b' "[DONE]"', b"  [DONE] "])
def test_done_may_be_written_in_some_ways(done: bytes) -> None:
    """Spaces and quotes are trifles."""
    assert ([A], FINISHED) == read([event(A) + b"data:" + done + b"\n\n"])


# --- lines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_events_parted_by_one_line_end_are_read(newline: bytes) -> None:
    """Each line that is a whole object is an event, and so is `[DONE]`."""
    lines = [b"data: " + json.dumps(chunk).encode() for chunk in (A, B, C, finish_chunk())]
    body = newline.join([*lines, b"data: [DONE]", b""])
    for pieces in cuts(body):
        assert ([A, B, C, finish_chunk()], FINISHED) == read(pieces)


def test_an_event_parted_by_one_line_end_comes_with_the_next_line_at_the_latest() -> None:
    """Nothing waits for the end of the body."""
    decoder = SseDecoder(NO_LIMIT)
    line = b"data: " + json.dumps(A).encode() + b"\n"
    assert [] == decoder.feed(line)
    assert [A, A] == decoder.feed(line)
    assert [A] == decoder.feed(line)
    assert [] == decoder.feed(line[:-1])
    assert [A] == decoder.feed(b"\n")
    assert 1 == len(decoder.sources)
    assert [] == decoder.feed(b"data: [DONE]\n")
    assert UpstreamFinished() == decoder.ending


def test_names_belong_to_their_line_where_events_are_parted_by_one() -> None:
    """A heartbeat between two chunks takes nothing with it."""
    a, b = (json.dumps(chunk).encode() for chunk in (A, B))
    body = b"event: message\ndata: %b\nevent: ping\ndata: {}\n: hm\nevent: message\ndata: %b\n" % (
        a,
        b,
    )
    for pieces in cuts(body + b"data: [DONE]\n"):
        assert ([A, B], FINISHED) == read(pieces)
    broken = body + b'event: error\ndata: {"message": "No."}\ndata: [DONE]\n'
    for pieces in cuts(broken):
        assert ([A, B], UpstreamFailed(NO)) == read(pieces)


def test_a_bare_error_where_events_are_parted_by_one_line_end() -> None:
    """It ends the answer there too."""
    line = b"data: " + json.dumps(A).encode() + b"\n"
    for error in (b'{"error": "No."}\n', b'error: {"message": "No."}\n'):
        for pieces in cuts(line + line + error + b"data: [DONE]\n"):
            assert ([A, A], UpstreamFailed(NO)) == read(pieces)


@pytest.mark.parametrize("indent", [1, 4])
def test_json_over_several_lines_of_data_is_one_event(indent: int) -> None:
    """As SSE has it; also where a line of it looks like an object."""
    payload = {"choices": [], "x": [{"a": {}}, {"b": 1}], "y": {}}
    text = json.dumps(payload, indent=indent).replace("\n", "\ndata: ").encode()
    odd = b'data: {"choices": [], "x":\ndata: {}\ndata: }\n\n'
    for pieces in cuts(b"data: " + text + b"\n\n" + odd + DONE):
        assert ([payload, {"choices": [], "x": {}}], FINISHED) == read(pieces)


def test_both_ways_of_parting_may_be_mixed() -> None:
    """Some events share a block, others have one of their own."""
    a, b, c = (b"data: " + json.dumps(chunk).encode() for chunk in (A, B, C))
    for pieces in cuts(b"\n\n".join([a, b + b"\n" + c, a + b"\n" + b, b"data: [DONE]\n\n"])):
        assert ([A, B, C, A, B], FINISHED) == read(pieces)


# --- plain bodies -----------------------------------------------------------------------------

MESSAGE = {"role": "assistant", "content": "Hello.", "refusal": None}
COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 5,
    "model": "m",
    "choices": [{"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\r\n\r\n"])
def test_a_whole_completion_is_an_answer(indent: int | None, end: bytes) -> None:
    """A backend that doesn't stream has answered all the same."""
    for pieces in cuts(json.dumps(COMPLETION, indent=indent).encode() + end):
        (payload,), ending = read(pieces)
        assert FINISHED == ending
        assert ("c", COMPLETION["usage"]) == (payload["id"], payload["usage"])
        (choice,) = payload["choices"]
        assert (MESSAGE, "stop") == (choice["delta"], choice["finish_reason"])
        assert "message" not in choice


def test_a_whole_completions_tool_calls_get_their_places() -> None:
    """Within a stream each tool call has an index."""
    calls = [{"id": "1", "function": {"name": "f", "arguments": "{}"}}, {"id": "2"}]
    choices = [{"index": 0, "message": {**MESSAGE, "tool_calls": calls}}]
    (payload,), _ = read([json.dumps({**COMPLETION, "choices": choices}).encode()])
    told = payload["choices"][0]["delta"]["tool_calls"]
    assert [(0, "1"), (1, "2")] == [(call["index"], call["id"]) for call in told]


@pytest.mark.parametrize(
    "body",
    [
        {**COMPLETION, "choices": []},
        {**COMPLETION, "choices": None},
        {**COMPLETION, "choices": [{"index": 0, "message": None}]},
        {**COMPLETION, "choices": [{"index": 0, "message": MESSAGE}, None]},
        {**COMPLETION, "choices": [{"index": 0, "text": "Hello."}]},
        [COMPLETION],
        {"object": "chat.completion"},
        [],
        [5],
    ],
)
def test_other_json_is_no_stream(body: Any) -> None:
    """What holds no answer isn't passed off as one."""
    assert ([], UpstreamFailed(NO_STREAM)) == read([json.dumps(body).encode()])


@pytest.mark.parametrize(
    "body",
    [
        b'[{"error": {"message": "No."}}]',
        b'{"detail": "No."}',
        b'{"object": "error", "message": "No."}',
    ],
)
def test_an_errors_json_is_an_error_instead_of_a_stream(body: bytes) -> None:
    """In whatever shape."""
    payloads, ending = read([body])
    assert isinstance(ending, UpstreamFailed)
    assert ([], "No.") == (payloads, ending.failure.message)


# --- trifles ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ([{"index": "0", "delta": {"content": "a"}}], [{"index": 0, "delta": {"content": "a"}}]),
        ([{"index": 0.0, "delta": {"content": "a"}}], [{"index": 0, "delta": {"content": "a"}}]),
        ([{"index": 0, "delta": []}], [{"index": 0, "delta": {}}]),
        ([{"index": 0, "delta": ""}], [{"index": 0, "delta": {}}]),
        ([{"index": 0, "delta": False}], [{"index": 0, "delta": {}}]),
        ([None, {"index": 1, "delta": {}}], [{"index": 1, "delta": {}}]),
        ([None], []),
        ({}, []),
        ("", []),
        (False, []),
    ],
)
def test_trifles_are_read_past(choices: Any, expected: Any) -> None:
    """Empty values of the wrong type, and an index that is a text, fail no answer."""
    payloads, ending = read([event(A) + event({"id": "x", "choices": choices}) + event(B) + DONE])
    assert ([A, {"id": "x", "choices": expected}, B], FINISHED) == (payloads, ending)


def test_what_was_tidied_isnt_written_down_as_it_came() -> None:
    """The journal would bring back what nobody can fold."""
    decoder = SseDecoder(NO_LIMIT)
    decoder.feed(event({"choices": [{"index": "0", "delta": []}]}) + event({"choices": []}))
    assert [True, False] == [source is None for source in decoder.sources]
