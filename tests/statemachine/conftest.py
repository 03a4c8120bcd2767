"""Small makers of what sessions are given, and how many made-up ones a test tries."""

import json
import os
from typing import Any

from hypothesis import settings

from statemachine import ChunkPattern, ChunkReceived, RepeatedChunks, SessionRequest

TIMES = int(os.environ.get("MADE_UP_TIMES", "1"))


def made_up(examples: int) -> settings:
    """How many examples Hypothesis makes up for a test.

    Few, so that all of the machine's tests take a second; `MADE_UP_TIMES=10` makes ten times as
    many, and `.ci/run` does.
    """
    return settings(max_examples=examples * TIMES, deadline=None)


def asked(**fields: Any) -> SessionRequest:
    """A request for one completion, created at second 0."""
    defaults: dict[str, Any] = {
        "completion_id": "chatcmpl-1",
        "created_at": 0.0,
        "trace_id": "0" * 31 + "1",
        "owner": "anonymous",
        "agent": "demo",
        "model": "demo",
        "messages": [{"role": "user", "content": "Hello?"}],
    }
    return SessionRequest(**{**defaults, **fields})


def chunk(
    delta: dict[str, Any], finish_reason: str | None = None, index: int = 0, **fields: Any
) -> Any:
    """A chunk with one choice."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {
        "id": "up-1",
        "object": "chat.completion.chunk",
        "created": 7,
        "model": "upstream-model",
        "choices": [choice],
        **fields,
    }


def text_chunk(text: str) -> Any:
    return chunk({"content": text})


def text_after(payload: Any, *texts: str, key: str = "content") -> ChunkReceived:
    """Repeats of this chunk, with these texts."""
    before, _, after = json.dumps(payload).partition(
        json.dumps(payload["choices"][0]["delta"][key])
    )
    literals = "\n".join(json.dumps(text) for text in texts).encode("ascii")
    pattern = ChunkPattern(payload, key, before.encode(), after.encode())
    return ChunkReceived(RepeatedChunks(pattern, texts, literals))


def finish_chunk(reason: str = "stop") -> Any:
    return chunk({}, reason)
