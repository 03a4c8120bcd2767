"""Shows completions as `chat.completion` objects, wherever they are: running, over and not stored yet,
stored. Pure.

Fields are added to OpenAI's shape: `state` says how the answer ended and `error` why, since
`finish_reason` is null if the model didn't finish; and `tool_calls` has the tools that were called for it.
Never here: finding them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve

from db.store import CompletionView, StoredToolCall
from service.endpoints.tool_calls import tool_call_object
from service.wire import answer_object, completion_object, error_body
from statemachine import SessionRecord, SessionRequest, State, StreamSession, ToolCall

_PARAMETERS = (
    "tool_choice",
    "seed",
    "top_p",
    "temperature",
    "presence_penalty",
    "frequency_penalty",
    "response_format",
)
"""The parameters of the request that are shown."""


def running_completion(request: SessionRequest, session: StreamSession) -> dict[str, Any]:
    """One that isn't over: its text so far, and no finish reason."""
    transcript = session.transcript
    created = transcript.upstream_created
    answer = {
        **transcript.extra,
        **answer_object(
            request.completion_id,
            request.model,
            int(request.created_at) if created is None else created,
            [evolve(choice, finish_reason=None) for choice in transcript.choices()],
            None,
        ),
    }
    about = request.trace_id, request.parameters, request.tools, request.metadata
    calls = () if session.work is None else session.work.begun
    return _shown(answer, *about, session.state, None, calls)


def ended_completion(record: SessionRecord) -> dict[str, Any]:
    """One that is over and not stored yet, as it will be shown once it is."""
    request, failure = record.request, record.failure
    error = None if failure is None else error_body(failure)["error"]
    about = request.trace_id, request.parameters, request.tools, request.metadata
    return _shown(completion_object(record), *about, record.state, error, record.tool_calls)


def stored_completion(view: CompletionView) -> dict[str, Any]:
    """One that is stored."""
    row = view.completion
    about = row.trace_id, row.request, view.tools, row.metadata
    return _shown(plain_completion(view), *about, row.state, row.error, view.tool_calls)


def plain_completion(view: CompletionView) -> dict[str, Any]:
    """The object that a plain request got, or would have got, from what is stored."""
    row, created = view.completion, view.completion.upstream_created
    return {
        **(row.extra or {}),
        **answer_object(
            row.completion_id,
            row.model,
            int(row.created_at) if created is None else created,
            view.choices,
            row.usage,
        ),
    }


def _shown(
    answer: Mapping[str, Any],
    trace_id: str,
    parameters: Mapping[str, Any],
    tools: Sequence[Any] | None,
    metadata: Mapping[str, Any] | None,
    state: State,
    error: Mapping[str, Any] | None,
    calls: Sequence[StoredToolCall | ToolCall],
) -> dict[str, Any]:
    called = {"tool_calls": [tool_call_object(call) for call in calls]} if calls else {}
    return {
        "service_tier": None,
        "system_fingerprint": None,
        **answer,
        "request_id": trace_id,
        **{name: parameters.get(name) for name in _PARAMETERS},
        "input_user": parameters.get("user"),
        "tools": tools,
        "metadata": metadata or {},
        "state": state.value,
        "error": error,
        **called,
    }
