"""Writes what clients read: SSE events, error bodies, the completion object.

Called by `service.sse` on the hot path; pure.
"""

from collections.abc import Mapping
from typing import Any

from service.wire.jsontext import encode_json
from statemachine import Choice, Failure, SessionRecord

DONE = b"data: [DONE]\n\n"
PING = b": keep-alive\n"
"""ONE newline: a comment and a blank line crash openai-python (1.99 to 3.54) once events carry
`id:`. `tests/service/test_openai_client.py` streams pings through the real SDK."""


class ChunkEncoder:
    """Chunks to SSE events, with what must be ours put in.

    Args:
        completion_id: the `id` in every chunk.
        model: the name the client asked for.
        created: POSIX seconds, used if the upstream's first chunk names none.
        include_usage: the client asked for usage, so every chunk has a `usage` key.
    """

    __slots__ = ("_created", "_fallback_created", "_id", "_include_usage", "_model")

    def __init__(self, completion_id: str, model: str, created: int, include_usage: bool) -> None:
        self._id = completion_id
        self._model = model
        self._fallback_created = created
        self._created: int | None = None
        self._include_usage = include_usage

    def encode(self, payload: Mapping[str, Any]) -> bytes:
        """One chunk as one event: `data: {…}` and a blank line.

        Raises ValueError if it is nested too deeply.
        """
        if self._created is None:
            created = payload.get("created")
            known = isinstance(created, int) and created > 0  # Azure's first chunk says 0
            self._created = created if known else self._fallback_created
        chunk = {
            **payload,
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
        }
        if chunk.get("choices") is None:
            chunk["choices"] = []
        if self._include_usage:
            chunk.setdefault("usage", None)
        else:
            chunk.pop("usage", None)
        return b"data: " + encode_json(chunk) + b"\n\n"


def error_body(failure: Failure) -> dict[str, Any]:
    """OpenAI's error object."""
    return {
        "error": {
            "message": failure.message,
            "type": failure.type,
            "param": failure.param,
            "code": failure.reported_code,
        }
    }


def error_event(failure: Failure) -> bytes:
    """The SSE event that ends a failed stream; no `choices`, or Open WebUI would ignore it."""
    return b"data: " + encode_json(error_body(failure)) + b"\n\n"


def completion_object(record: SessionRecord) -> dict[str, Any]:
    """The `chat.completion` object for a record, as a plain request gets it."""
    request = record.request
    created = record.upstream_created
    return {
        **record.extra,
        "id": record.completion_id,
        "object": "chat.completion",
        "created": int(request.created_at) if created is None else created,
        "model": request.model,
        "choices": [choice_object(choice) for choice in record.choices],
        "usage": record.usage,
    }


def choice_object(choice: Choice) -> dict[str, Any]:
    """One of a `chat.completion` object's choices."""
    return {
        **choice.extra,
        "index": choice.index,
        "message": {"refusal": None, **choice.message},
        "logprobs": choice.logprobs,
        "finish_reason": choice.finish_reason,
    }
