"""Shows completions that aren't stored yet: as far as they have come, or whole. Pure."""

from typing import Any

from attrs import evolve

from service.endpoints.stored import PARAMETERS
from service.wire import choice_object, completion_object, error_body
from statemachine import SessionRecord, SessionRequest, State, StreamSession


def running_completion(session: StreamSession) -> dict[str, Any]:
    """A `chat.completion` that isn't over: its text so far, and no finish reason."""
    request, transcript = session.request, session.transcript
    created = transcript.upstream_created
    choices = [evolve(choice, finish_reason=None) for choice in transcript.choices()]
    answer = {
        **transcript.extra,
        "id": request.completion_id,
        "object": "chat.completion",
        "created": int(request.created_at) if created is None else created,
        "model": request.model,
        "choices": [choice_object(choice) for choice in choices],
        "usage": None,
    }
    return _shown(request, answer, session.state, None)


def ended_completion(record: SessionRecord) -> dict[str, Any]:
    """One that is over and not stored yet, as it will be shown once it is."""
    failure = record.failure
    error = None if failure is None else error_body(failure)["error"]
    return _shown(record.request, completion_object(record), record.state, error)


def _shown(
    request: SessionRequest, answer: dict[str, Any], state: State, error: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "service_tier": None,
        "system_fingerprint": None,
        **answer,
        "request_id": request.trace_id,
        **{name: request.parameters.get(name) for name in PARAMETERS},
        "input_user": request.parameters.get("user"),
        "tools": request.tools,
        "metadata": request.metadata or {},
        "state": state.value,
        "error": error,
    }


def is_hidden(request: SessionRequest) -> bool:
    """True of one that no list shows (`store: false`)."""
    return request.parameters.get("store") is False
