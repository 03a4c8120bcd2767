"""Shows completions that run: one, as far as it has come, and the list of them. Pure."""

from typing import Any

from attrs import evolve

from service.endpoints.stored import PARAMETERS
from service.wire import choice_object
from statemachine import SessionRequest, StreamSession


def running_completion(session: StreamSession) -> dict[str, Any]:
    """A `chat.completion` that isn't over: its text so far, and no finish reason."""
    request, transcript = session.request, session.transcript
    created = transcript.upstream_created
    choices = [evolve(choice, finish_reason=None) for choice in transcript.choices()]
    return {
        "service_tier": None,
        "system_fingerprint": None,
        **transcript.extra,
        "id": request.completion_id,
        "object": "chat.completion",
        "created": int(request.created_at) if created is None else created,
        "model": request.model,
        "choices": [choice_object(choice) for choice in choices],
        "usage": None,
        "request_id": request.trace_id,
        **{name: request.parameters.get(name) for name in PARAMETERS},
        "input_user": request.parameters.get("user"),
        "tools": request.tools,
        "metadata": request.metadata or {},
        "state": session.state.value,
        "error": None,
    }


def is_hidden(request: SessionRequest) -> bool:
    """True of one that no list shows (`store: false`)."""
    return request.parameters.get("store") is False
