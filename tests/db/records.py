"""Records as a session would make them, with everything but the test's point filled in."""

from itertools import count
from typing import Any

from attrs import evolve

from statemachine import Choice, Failure, SessionRecord, SessionRequest, State, UsageSource

_numbers = count(1)
NOW = 1_750_000_000.25


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def make_request(*messages: dict[str, Any], **fields: Any) -> SessionRequest:
    number = next(_numbers)
    request = SessionRequest(
        completion_id=f"chatcmpl-{number:06}",
        created_at=NOW + number,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        owner="alice",
        agent="demo",
        model="demo-model",
        messages=list(messages) or [user("Hello")],
    )
    return evolve(request, **fields)


def make_record(
    *messages: dict[str, Any], answer: Any = "Hi!", request: Any = None, **fields: Any
) -> SessionRecord:
    """A completed record: these messages, and this answer (a text, a message, or several)."""
    if request is None or isinstance(request, dict):
        request = make_request(*messages, **(request or {}))
    answers = answer if isinstance(answer, tuple) else (answer,)
    record = SessionRecord(
        request=request,
        agent=request.agent,
        state=State.COMPLETED,
        finish_reason="stop",
        failure=None,
        choices=tuple(
            Choice(index, said if isinstance(said, dict) else assistant(said), "stop")
            for index, said in enumerate(answers)
        ),
        whole=True,
        usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        usage_source=UsageSource.PROVIDER,
        token_count=2,
        chunk_count=3,
        ttft_ms=120.5,
        duration_ms=800.25,
        finished_at=request.created_at + 0.8,
        client_left_at=None,
        upstream_id="chatcmpl-upstream",
        upstream_model="demo-model-2026",
        upstream_created=1_750_000_001,
        extra={"system_fingerprint": "fp_1"},
    )
    return evolve(record, **fields)


def make_partial(*messages: dict[str, Any], answer: Any = "Hi", **fields: Any) -> SessionRecord:
    """A record whose upstream broke off."""
    ending = {
        "state": State.FAILED,
        "finish_reason": None,
        "whole": False,
        "failure": Failure("upstream_incomplete", "The upstream broke off."),
    }
    return make_record(*messages, answer=answer, **{**ending, **fields})
