"""Logs completions: the canonical line of each, and every attempt that failed.

Never message text, never keys.
"""

from typing import Any

import structlog

from service.stream.moments import Attempt, Watcher
from service.telemetry import write_line
from statemachine import SessionRecord, SessionRequest, State

log = structlog.get_logger(__name__)


class CompletionLog(Watcher):
    """Logs the canonical line, one per completion with everything an operator asks about it, and
    a line for each attempt that failed."""

    def tried(self, request: SessionRequest, attempt: Attempt) -> None:
        if attempt.failure is not None:
            log.warning(
                "attempt failed",
                agent=attempt.agent,
                attempt=attempt.number,
                error=attempt.failure.reported_code,
                status=attempt.failure.status,
                cause=attempt.cause,
            )

    def ended(self, record: SessionRecord) -> None:
        method = "warning" if record.state is State.FAILED else "info"
        write_line(method, "completion finished", completion_fields(record))


def completion_fields(record: SessionRecord) -> dict[str, Any]:
    """The canonical line's fields, in its order."""
    request = record.request
    return {
        "completion_id": record.completion_id,
        "trace_id": request.trace_id,
        "owner": request.owner,
        "agent": record.agent,
        "model": request.model,
        "state": record.state.value,
        "finish_reason": record.finish_reason,
        "token_count": record.token_count,
        "usage_source": record.usage_source.value,
        "chunk_count": record.chunk_count,
        "ttft_ms": None if record.ttft_ms is None else round(record.ttft_ms, 1),
        "duration_ms": round(record.duration_ms, 1),
        "error": record.failure.reported_code if record.failure else None,
    }
