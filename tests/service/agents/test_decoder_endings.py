"""How an upstream's body ends: well, broken off, with its own error, or malformed."""

from typing import Any

import pytest

from service.agents.openai.decoder import SseDecoder
from statemachine import Failure, UpstreamFailed
from tests.service.agents.test_decoder import (
    BOM,
    DONE,
    FINISHED,
    INCOMPLETE,
    NO_LIMIT,
    event,
    failure,
    read,
)
from tests.statemachine.conftest import finish_chunk, text_chunk

# --- endings --------------------------------------------------------------------------------------


def test_nothing_after_done_counts() -> None:
    """`[DONE]` ends the answer: not even an error behind it changes that."""
    late = event({"error": {"message": "Late."}}) + event(text_chunk("late"))
    assert read([event(text_chunk("a")) + DONE + late]) == ([text_chunk("a")], FINISHED)
    assert read([event(text_chunk("a")) + DONE, late]) == ([text_chunk("a")], FINISHED)


def test_nothing_after_a_failure_counts() -> None:
    """The first failure is the ending; what follows it in the same packet is dropped."""
    body = event({"error": {"message": "First."}}) + event(text_chunk("b")) + DONE
    payloads, ending = read([body])
    assert [] == payloads
    assert isinstance(ending, UpstreamFailed)
    assert "First." == ending.failure.message


def test_closing_twice_changes_nothing() -> None:
    """Once there is an ending it stays, and the rest of the buffer comes once."""
    decoder = SseDecoder(NO_LIMIT)
    decoder.feed(event(finish_chunk())[:-2])
    assert decoder.close() == [finish_chunk()]
    assert INCOMPLETE == decoder.ending
    assert [] == decoder.close()
    assert INCOMPLETE == decoder.ending


def test_a_last_event_without_its_blank_line_counts() -> None:
    """A whole event counts although the body ends right after it, and so does `[DONE]`."""
    assert read([event(text_chunk("a"))[:-2]]) == ([text_chunk("a")], INCOMPLETE)
    assert read([event(text_chunk("a")) + DONE[:-2]]) == ([text_chunk("a")], FINISHED)


@pytest.mark.parametrize("missing", range(3, len(event(text_chunk("b"))) + 1))
def test_a_truncated_last_event_is_an_answer_broken_off(missing: int) -> None:
    """Everything before the event that was cut short is kept."""
    body = event(text_chunk("a")) + event(text_chunk("b"))[:-missing]
    assert read([body]) == ([text_chunk("a")], INCOMPLETE)


def test_a_body_cut_within_a_character_is_incomplete() -> None:
    """Half a character at the end is no bad UTF-8."""
    assert failure('data: {"a": "🙂'.encode()[:-2]) == INCOMPLETE.failure


def test_a_200_without_a_body_is_a_failure() -> None:
    """Neither an empty body nor a comment alone is an empty answer."""
    assert failure() == INCOMPLETE.failure
    assert failure(b"") == INCOMPLETE.failure
    assert failure(b": only a comment\n\n") == INCOMPLETE.failure


# --- an upstream's own errors ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        event({"error": {"message": "No."}}),
        event({"error": {"message": "No."}, "choices": [{"index": 0, "delta": {"content": "x"}}]}),
        event({"error": {"message": "No."}, "choices": "anything"}),
        event({"error": "No."}),
        event([{"error": {"message": "No."}}]),
        event([{"error": {"message": "No."}}, {"error": {"message": "Really."}}]),
        b'event: error\ndata: {"error": {"message": "No."}}\n\n',
        b'event: error\ndata: {"message": "No."}\n\n',
        b"event: error\ndata: No.\n\n",
        b'event: error\ndata: "No."\n\n',
        b'event:error\r\ndata:{"message":"No."}\r\n\r\n',
        b'data: {"message": "No."}\nevent: error\n\n',
        b'event: error\ndata: {"message": "No."}',
        b'{"error": {"message": "No."}}',
        b'{"error": {"message": "No."}}\n',
        b'\n{\n  "error": "No."\n}\n',
        b'{"error": {"message": "No."}}\n\n',
        b'{"error": {"message": "No."}}\r\n\r\n',
        BOM + b'{"error": {"message": "No."}}',
        b'[{\n  "error": {\n    "message": "No."\n  }\n}]\n',
    ],
)
def test_an_error_is_the_upstreams_in_its_own_words(body: bytes) -> None:
    """An error may come as an object, a list of them, a text, beside choices, under `event: error`,
    or as JSON without any SSE around it."""
    assert Failure("upstream_error", "No.", type="upstream_error") == failure(body)


def test_an_error_keeps_its_type_param_and_code() -> None:
    """Type, param and code reach the client as the upstream gave them."""
    error = {"message": "Slow down.", "type": "rate_limit_error", "param": "n", "code": "limit"}
    expected = Failure(
        "upstream_error", "Slow down.", "rate_limit_error", param="n", upstream_code="limit"
    )
    assert expected == failure(event({"error": error}))


@pytest.mark.parametrize(
    ("code", "reported"),
    [
        (503, "503"),
        (4.5, "4.5"),
        ("busy", "busy"),
        ("", "upstream_error"),
        (None, "upstream_error"),
        (True, "upstream_error"),
        (["x"], "upstream_error"),
    ],
)
def test_numeric_codes_become_text(code: Any, reported: str) -> None:
    """Clients compare codes as text; what is no code falls back to ours."""
    assert failure(event({"error": {"message": "No.", "code": code}})).reported_code == reported


@pytest.mark.parametrize("error", [{}, {"message": None}, {"message": ""}, "", [], 0, False])
def test_an_error_without_a_message_gets_one_of_ours(error: Any) -> None:
    """An error is one even if it is empty or no object."""
    found = failure(event({"error": error}))
    assert "upstream_error" == found.code
    assert found.message.endswith("without a message.")


def test_odd_error_fields_are_left_out() -> None:
    """A type or param that is no text isn't passed on as one."""
    found = failure(event({"error": {"message": "No.", "type": 5, "param": {"a": 1}}}))
    assert Failure("upstream_error", "No.", type="upstream_error") == found


def test_error_null_is_no_error() -> None:
    """Chunks of some upstreams carry `error: null`."""
    payload = {**text_chunk("a"), "error": None}
    assert read([event(payload) + DONE]) == ([payload], FINISHED)


def test_long_error_texts_are_cut() -> None:
    """Free text from an upstream may be a page of HTML; only its beginning is quoted."""
    assert 200 == len(failure(b"event: error\ndata: " + b"x" * 1000 + b"\n\n").message)
    assert 200 == len(failure(event({"error": "x" * 1000})).message)


def test_chunks_before_an_error_are_kept() -> None:
    """Chunks that came before the error are handed out, even those of the same packet."""
    body = event(text_chunk("a")) + event({"error": "No."})
    payloads, ending = read([body])
    assert payloads == [text_chunk("a")]
    assert isinstance(ending, UpstreamFailed)


# --- malformed bodies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"{oops}",
        b'{"choices": [',
        b"[DONE",
        b"done",
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\\ud800\xff"}',
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": "\\u0041", "b": 1e999}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a": "\\u0041", "b": ' + b"1" * 5000 + b"}",
        b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"a": "\\ud800", "b": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"[" * 100_000,
        b"[]",
        b"5",
        b"null",
        b"true",
        b'"text"',
        b'{"choices": {"0": {}}}',
        b'{"choices": "x"}',
        b'{"choices": 1}',
        b'{"choices": ["x"]}',
        b'{"choices": [[]]}',
        b'{"choices": [{"delta": "x"}]}',
        b'{"choices": [{"delta": [1]}]}',
        b'{"choices": [{"delta": true}]}',
        b'{"choices": [{"index": "first", "delta": {}}]}',
        b'{"choices": [{"index": "", "delta": {}}]}',
        b'{"choices": [{"index": 0.5, "delta": {}}]}',
        b'{"choices": [{"index": [0], "delta": {}}]}',
        b'{"choices": [{"index": 0, "delta": {}}, 5]}',
    ],
)
def test_malformed_data_fails_the_answer(data: bytes) -> None:
    """Data that no chunk can be made of is the ending, and what came before is kept."""
    good = event(text_chunk("a"))
    payloads, ending = read([good + b"data: " + data + b"\n\n" + event(text_chunk("b"))])
    assert payloads == [text_chunk("a")]
    assert isinstance(ending, UpstreamFailed)
    assert "upstream_malformed" == ending.failure.code
    assert (payloads, ending) == read([good, b"data: " + data + b"\n", b"\n"])


@pytest.mark.parametrize(
    "body", [b'{"id": "x", "choices": []}', b"{oops}", b"{", b'{"error": null}', b'{"a": 1}\n\n']
)
def test_json_instead_of_a_stream_is_said_to_be_no_stream(body: bytes) -> None:
    """A 200 may have JSON without an error as its body."""
    found = failure(body)
    assert (
        "upstream_malformed",
        "The model's backend did not answer with a stream.",
    ) == (found.code, found.message)


@pytest.mark.parametrize(
    "body", [b"<!DOCTYPE html>\n\n<html><p>Hi</p></html>\n", b"Internal Server Error"]
)
def test_a_page_instead_of_a_stream_is_malformed(body: bytes) -> None:
    """A web page or a greeting is a failure, whatever its lines look like."""
    assert "upstream_malformed" == failure(body).code
