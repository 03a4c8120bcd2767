"""How a backend's refusals become failures in its own words."""

import json

import pytest

from statemachine import (
    Failure,
)
from tests.service.agents.conftest import (
    KEY,
    Backend,
    MakeAgent,
    error_json,
    refusal,
)

NO_MESSAGE = "The model's backend reported an error without a message."


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            error_json(message="Bad n.", type="invalid_request_error", param="n", code="bad"),
            Failure("upstream_error", "Bad n.", "invalid_request_error", "n", "bad", 400),
        ),
        (
            404,
            error_json(message="No such model.", type="x", param=None, code="model_not_found"),
            Failure("upstream_error", "No such model.", "x", None, "model_not_found", 404),
        ),
        (
            503,
            error_json(message="Loading model", type="unavailable_error", code=503),
            Failure("upstream_error", "Loading model", "unavailable_error", None, "503", 503),
        ),
        (
            500,
            b"Internal Server Error\n",
            Failure("upstream_error", "Internal Server Error", "upstream_error", status=500),
        ),
        (
            502,
            b"<html>" + b"x" * 1000,
            Failure("upstream_error", "x" * 200, "upstream_error", status=502),
        ),
        (
            500,
            b"",
            Failure(
                "upstream_error",
                "The model's backend answered 500.",
                "upstream_error",
                status=500,
            ),
        ),
        (
            401,
            b'{"error": "Who are you?"}',
            Failure("upstream_error", "Who are you?", "upstream_error", status=401),
        ),
        (
            422,
            b'{"message": "No.", "type": "vllm", "code": 422}',
            Failure("upstream_error", "No.", "vllm", None, "422", 422),
        ),
        (
            404,
            b'{"detail": "Not Found"}',
            Failure("upstream_error", "Not Found", "upstream_error", status=404),
        ),
        (500, b"{}", Failure("upstream_error", NO_MESSAGE, "upstream_error", status=500)),
        (500, b"[1]", Failure("upstream_error", "[1]", "upstream_error", status=500)),
        (500, b"5", Failure("upstream_error", "5", "upstream_error", status=500)),
        (
            500,
            b"\xff\xfe bad \xf0",
            Failure("upstream_error", "\ufffd\ufffd bad \ufffd", "upstream_error", status=500),
        ),
    ],
)
async def test_a_refusal_keeps_the_backends_status_and_words(
    backend: Backend, make_agent: MakeAgent, status: int, body: bytes, expected: Failure
) -> None:
    """The words may be OpenAI's error object, another object, a text, or none."""
    backend.answers(status, body)
    assert expected == (await refusal(make_agent())).failure


@pytest.mark.parametrize(
    ("status", "is_retryable", "is_final"),
    [
        (400, False, True),
        (401, False, False),
        (403, False, False),
        (404, False, False),
        (408, True, False),
        (409, True, False),
        (413, False, True),
        (418, False, False),
        (422, False, True),
        (429, True, False),
        (500, True, False),
        (503, True, False),
        (529, True, False),
    ],
)
async def test_the_status_decides_who_may_be_asked_again(
    backend: Backend, make_agent: MakeAgent, status: int, is_retryable: bool, is_final: bool
) -> None:
    """What may pass is retried; what is wrong with the request itself isn't asked elsewhere."""
    backend.answers(status, b"No.")
    error = await refusal(make_agent())
    assert (error.is_retryable, error.is_final) == (is_retryable, is_final)
    assert 1 == len(backend.requests)  # the SDK's own retries are off


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("3600", 3600.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", None),
        ("soon", None),
        ("-1", None),
        ("inf", None),
        ("nan", None),
    ],
)
async def test_a_retry_after_in_seconds_is_passed_on(
    backend: Backend, make_agent: MakeAgent, text: str, seconds: float | None
) -> None:
    """What is no time to wait, such as a date, counts as none."""
    backend.answers(429, error_json(message="Slow down."), retry_after=text)
    assert (await refusal(make_agent())).failure.retry_after_seconds == seconds


@pytest.mark.parametrize(
    "body",
    [
        error_json(message=f"Incorrect API key {KEY} given: {KEY}."),
        json.dumps({"error": f"Wrong key: {KEY}."}).encode(),
        f"Wrong key: {KEY}.".encode(),
        f"{'x' * 190} {KEY}".encode(),  # only its beginning is within what is quoted
        json.dumps({"error": f"{'x' * 190} {KEY}"}).encode(),
    ],
)
async def test_quoted_keys_are_masked(backend: Backend, make_agent: MakeAgent, body: bytes) -> None:
    """A backend that quotes our key doesn't give it away to the client, not even in part."""
    backend.answers(401, body)
    message = (await refusal(make_agent())).failure.message
    assert "***" in message
    assert KEY[:5] not in message


async def test_without_a_key_nothing_is_masked(backend: Backend, make_agent: MakeAgent) -> None:
    """A backend that wants no key may quote what it is sent instead."""
    backend.answers(401, b"no-key-needed? No!")
    assert "no-key-needed? No!" == (await refusal(make_agent(key=None))).failure.message
