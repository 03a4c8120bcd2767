"""What a backend says of an error is found in whatever shape it comes, and none of our secrets is."""

import json
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import pytest

from service.agents.openai.failures import NO_MESSAGE, upstream_failure
from service.agents.openai.redacting import Redactor, secrets_of
from statemachine import Failure
from tests.service.agents.conftest import KEY, Backend, MakeAgent, collect, refusal

# --- the sentence that is there ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([{"error": {"message": "No.", "code": 400, "status": "INVALID_ARGUMENT"}}], "No."),
        ({"error": {"error": {"message": "No."}}}, "No."),
        ({"error": [{"message": "No."}]}, "No."),
        ({"errors": [{"message": "No."}, {"message": "Never."}]}, "No.; Never."),
        ({"errors": ["No.", "Never."]}, "No.; Never."),
        ({"detail": "No."}, "No."),
        ({"detail": {"message": "No."}}, "No."),
        ({"detail": {"error": {"message": "No."}}}, "No."),
        ({"detail": {"error": "No."}}, "No."),
        (
            {"detail": [{"loc": ["body", "messages", 0], "msg": "Field required", "type": "x"}]},
            "Field required",
        ),
        (
            {"detail": [{"loc": ["body", "n"], "msg": "A."}, {"loc": ["body"], "msg": "B."}]},
            "A.; B.",
        ),
        ({"message": "No."}, "No."),
        ({"msg": "No."}, "No."),
        ({"message": {"message": "No."}}, "No."),
        ({"message": ["No.", "Never."]}, "No.; Never."),
        ({"error": "invalid_token", "error_description": "It expired."}, "It expired."),
        ({"type": "about:blank", "title": "Bad", "detail": "No n.", "status": 400}, "No n."),
        ({"type": "about:blank", "title": "Bad", "status": 400}, "Bad"),
        ({"fault": {"faultstring": "No."}}, "No."),
        ({"timestamp": 5, "status": 404, "error": "Not Found", "message": "No."}, "No."),
        ({"timestamp": 5, "status": 404, "error": "Not Found", "path": "/v1"}, "Not Found"),
        ({"error": {"message": "", "reason": "No."}}, "No."),
        ({"error": {"message": "  No.  "}}, "No."),
        ("No.", "No."),
        ("  No.\n", "No."),
        (
            "<html><head><title>502 Bad  Gateway</title></head><body>x</body></html>",
            "502 Bad Gateway",
        ),
        ("<!DOCTYPE html><body><h1>Oh</h1>\n<p>no &amp; no</p></body>", "Oh no & no"),
        ("<html><title></title><p>No.</p>", "No."),
        ("<title", "<title"),
        ({"error": {}}, NO_MESSAGE),
        ({}, NO_MESSAGE),
        ([], NO_MESSAGE),
        ("", NO_MESSAGE),
        ({"error": {"message": 5}}, '{"error":{"message":5}}'),
        ({"what": {"went": "wrong"}}, '{"what":{"went":"wrong"}}'),
        ([[[["No."]]]], "No."),
        ({"x": "y" * 1000}, '{"x":"' + "y" * 194),
    ],
)
def test_the_sentence_that_is_there_is_found(said: Any, message: str) -> None:
    """Whatever the shape; without one the beginning of the body is quoted."""
    failure = upstream_failure(said, 400)
    assert ("upstream_error", message, 400) == (failure.code, failure.message, failure.status)


@pytest.mark.parametrize(
    ("loc", "param"),
    [
        (["body", "messages", 0, "role"], "messages.0.role"),
        (["query", "n"], "query.n"),
        (["body"], None),
        ("body", None),
        (None, None),
    ],
)
def test_fastapi_says_which_field_it_is_about(loc: Any, param: str | None) -> None:
    """That is OpenAI's `param`."""
    detail = [{"type": "missing", "loc": loc, "msg": "Field required"}]
    for said in ({"detail": detail}, {"object": "error", "message": {"detail": detail}}):
        failure = upstream_failure(said, 422)
        assert ("Field required", param) == (failure.message, failure.param)


@pytest.mark.parametrize("envelope", ["error", "detail", "errors"])
def test_envelopes_without_end_are_no_trouble(envelope: str) -> None:
    """They are followed some levels down."""
    said: Any = {"message": "Deep."}
    for _ in range(150):
        said = {envelope: said}
    assert upstream_failure(said).message


def test_long_messages_are_cut() -> None:
    """A message may be long, but not endless; what has no shape is only quoted."""
    assert 4000 == len(upstream_failure({"error": {"message": "x" * 100_000}}).message)
    assert 200 == len(upstream_failure("x" * 100_000).message)
    assert 200 == len(upstream_failure({"error": {"message": "m", "type": "t" * 999}}).type)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 400}, 400),
        ({"code": 402}, 402),
        ({"code": "429"}, 429),
        ({"code": 503.0}, 503),
        ({"status": 503}, 503),
        ({"status_code": "401", "code": "invalid"}, 401),
        ({"code": "rate_limit", "status": 429}, 429),
        ({"code": 200}, None),
        ({"code": 302}, None),
        ({"code": 1301}, None),
        ({"code": 429.5}, None),
        ({"code": True}, None),
        ({"code": "four hundred"}, None),
        ({"code": [429]}, None),
        ({}, None),
    ],
)
def test_an_error_may_name_its_status(error: Any, status: int | None) -> None:
    """Only what is a failure's status is one, as a number or a text, in the error or around it."""
    for said in ({"error": {"message": "No.", **error}}, {"message": "No.", **error}):
        assert status == upstream_failure(said).status
    assert 500 == upstream_failure({"error": {"message": "No.", **error}}, 500).status
    assert status == upstream_failure({"error": {"message": "No."}, **error}).status


def test_further_fields_of_an_error_are_kept() -> None:
    """They are passed on as they are, beside OpenAI's."""
    error = {
        "message": "No.",
        "type": "t",
        "code": 402,
        "metadata": {"provider_name": "p", "raw": {"x": [1, None]}},
        "innererror": {"code": "ResponsibleAIPolicyViolation"},
        "details": [{"@type": "x"}],
        "param": None,
        "nothing": None,
    }
    kept = {key: error[key] for key in ("metadata", "innererror", "details")}
    assert kept == upstream_failure({"error": error}).extra


def test_further_fields_have_a_bound() -> None:
    """What is too large is left out; what came before it isn't."""
    error = {"message": "No.", "small": 1, "large": ["x" * 99] * 1000, "late": 2}
    assert {"small": 1} == upstream_failure({"error": error}).extra


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        ({"retry_after": 7}, 7.0),
        ({"metadata": {"retry_after_seconds": "7s"}}, 7.0),
        ({"retry_after": "soon"}, None),
        ({"metadata": [7]}, None),
    ],
)
def test_an_error_may_say_when_to_come_back(error: Any, seconds: float | None) -> None:
    """Some backends say it in the error instead of a header."""
    assert seconds == upstream_failure({"error": {"message": "No.", **error}}).retry_after_seconds


# --- secrets ----------------------------------------------------------------------------------

ODD_KEY = 'sk/or+v1="0123456789&abcdef"'


@pytest.mark.parametrize("key", [KEY, ODD_KEY, "short", "x" * 500])
@pytest.mark.parametrize(
    "write",
    [
        str,
        lambda key: quote(key),
        lambda key: quote(key, safe=""),
        lambda key: quote(key, safe="").lower(),
        lambda key: json.dumps(key)[1:-1],
        lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
        lambda key: "".join(f"\\u{ord(letter):04X}" for letter in key),
        lambda key: "".join(f"%{ord(letter):02X}" for letter in key),
        lambda key: b64encode(key.encode()).decode(),
        lambda key: key.upper(),
        lambda key: f"Bearer {key}",
        lambda key: f"{key}{key}",
    ],
)
def test_a_secret_is_found_in_every_writing(key: str, write: Any) -> None:
    """What is around it stays."""
    masked = Redactor([key]).text(f"before {write(key)} after")
    assert "before *** after" == masked.replace("Bearer ", "").replace("=", "")


@pytest.mark.parametrize("start", range(0, len(KEY) - 12))
def test_a_part_of_a_secret_is_one(start: int) -> None:
    """From twelve characters on; a backend that shows the ends alone has masked it well enough."""
    redactor = Redactor([KEY])
    assert "a *** b" == redactor.text(f"a {KEY[start : start + 13]} b")
    assert (hint := f"a {KEY[:5]}…{KEY[-4:]} b") == redactor.text(hint)


@pytest.mark.parametrize("text", ["", "No.", "K", "sk-", "İSK-", "\ud800", "x" * 100])
def test_other_texts_stay(text: str) -> None:
    """Also those that change their length in lower case, and those that are no text."""
    assert text == Redactor([KEY, "", "k", "sk"]).text(text)


def test_a_secret_is_masked_in_every_field() -> None:
    """Type, param, code, nested values and keys: none gives it away."""
    error = {
        "message": f"Bad {KEY}.",
        "type": KEY,
        "param": f"headers.{KEY}",
        "code": KEY,
        "metadata": {"headers": {"authorization": [f"Bearer {KEY}"]}, KEY: 1},
        KEY: KEY,
    }
    redactor = Redactor([KEY])
    for said in ({"error": error}, error, [error], json.dumps(error), {"error": {"x": error}}):
        failure = upstream_failure(said, 401, redactor)
        assert KEY not in repr(failure)
        assert "***" in failure.message
    failure = upstream_failure({"error": error}, 401, redactor)
    assert ("***", "headers.***", "***") == (failure.type, failure.param, failure.upstream_code)
    assert {
        "metadata": {"headers": {"authorization": ["Bearer ***"]}, "***": 1},
        "***": "***",
    } == failure.extra


def test_what_only_the_backend_may_know_is_secret() -> None:
    """Its key, a password or key in its address, and what parameters call a key."""
    found = secrets_of(
        "the-key",
        "https://user:pass%20word@host/v1?api-version=2024-10-21&subscription-key=in-query&x=plain",
        {
            "api_key": "in-parameters",
            "headers": {"x-auth-token": ["in-list"]},
            "max_tokens": 5,
            "metadata": {"topic": "none"},
            "stop": "none",
        },
    )
    basic = b64encode(b"user:pass word").decode()
    assert {"the-key", "pass word", basic, "in-query", "in-parameters", "in-list"} == set(found)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"error": {"message": "No.", "code": f"key {KEY}"}}).encode(),
        json.dumps({"error": {"message": "No.", "type": KEY, "param": KEY}}).encode(),
        json.dumps([{"error": {"message": "No.", "details": [{"key": KEY}]}}]).encode(),
        json.dumps({"detail": [{"loc": ["header", KEY], "msg": "No."}]}).encode(),
        f"<title>{KEY}</title>".encode(),
        f"url=https://host/?key={quote(KEY)}".encode(),
    ],
)
@pytest.mark.parametrize("status", [200, 201, 401])
async def test_no_refusal_quotes_our_key(
    backend: Backend, make_agent: MakeAgent, body: bytes, status: int
) -> None:
    """Whatever its status; the conftest looks for it in the whole failure."""
    backend.answers(status, body)
    if status == 401:
        await refusal(make_agent())
    else:
        assert KEY not in repr(await collect(make_agent()))


def test_a_failure_is_the_same_whatever_is_advised() -> None:
    """Advice about asking again is no part of what happened."""
    assert Failure("x", "y", should_retry=False) == Failure("x", "y")
