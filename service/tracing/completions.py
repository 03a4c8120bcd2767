"""Makes spans of a completion's moments: a CLIENT span for each attempt, one for each tool that is called,
and one for its save.

A watcher like any other: it is told, and changes nothing. Never here: message text.
"""

import time
from typing import Any

from service.ids import random_hex
from service.stream.moments import Asking, Attempt, Watcher
from service.tracing.requests import CURRENT, RequestSpan, Send
from service.tracing.spans import Kind, Span, Value, cut
from statemachine import Outcome, SessionRecord, SessionRequest, State, ToolCall

FIRST_TOKEN = "first_token"
MOST_SAVES = 10_000
"""Saves that are waited for while a database is away; the oldest of more get no span."""
_NUMBERS = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
}
"""A request's own number → its attribute."""
_WHOLE = frozenset(("max_tokens", "max_completion_tokens", "seed"))
_LARGEST = 2**63 - 1


class _AttemptSpan:
    """An attempt while it is open."""

    __slots__ = ("asking", "first_token_ns", "started_ns")

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self.started_ns = time.time_ns()
        self.first_token_ns: int | None = None


class _Completion:
    """A completion while it runs: the span of its request, and the attempt that is made now."""

    __slots__ = ("attempt", "span")

    def __init__(self, span: RequestSpan) -> None:
        self.span = span
        self.attempt: _AttemptSpan | None = None


class Completions(Watcher):
    """Sends the spans of every completion whose request is traced.

    Args:
        send: takes each span that has ended.
        has_newer_names: attributes as the newer GenAI conventions call them.
    """

    def __init__(self, send: Send, *, has_newer_names: bool) -> None:
        self._send = send
        self._has_newer_names = has_newer_names
        self._provider = "gen_ai.provider.name" if has_newer_names else "gen_ai.system"
        self._running: dict[str, _Completion] = {}
        self._saving: dict[str, tuple[RequestSpan, int]] = {}

    def began(self, request: SessionRequest) -> None:
        """It belongs to the request that is being handled, if that is traced."""
        if (span := CURRENT.get()) is not None:
            span.begin(request.completion_id)
            self._running[request.completion_id] = _Completion(span)

    def asking(self, request: SessionRequest, asking: Asking) -> None:
        """A CLIENT span begins, which the backend has heard of already. That of the turn before ends."""
        if (completion := self._running.get(request.completion_id)) is not None:
            self._end_attempt(completion, request, None, None)
            completion.attempt = _AttemptSpan(asking)

    def tried(self, request: SessionRequest, attempt: Attempt) -> None:
        """It ends here if it failed; else with the answer."""
        completion = self._running.get(request.completion_id)
        if completion is not None and attempt.failure is not None:
            self._end_attempt(completion, request, attempt.failure.code, None)

    def reached_first_token(self, request: SessionRequest, ttft_ms: float) -> None:
        """An event of the attempt that brought it."""
        completion = self._running.get(request.completion_id)
        if completion is not None and completion.attempt is not None:
            completion.attempt.first_token_ns = time.time_ns()

    def ended(self, record: SessionRecord) -> None:
        """The attempt's span ends, and that of the save begins; tools have had theirs."""
        if (completion := self._running.get(record.completion_id)) is None:
            return
        completion.span.note_end(record)
        for call in record.tool_calls:
            self._send(_call_span(completion.span, call, record.finished_at))
        code = None if record.failure is None else record.failure.code
        self._end_attempt(completion, record.request, code, record)
        if len(self._saving) >= MOST_SAVES:
            del self._saving[next(iter(self._saving))]
        self._saving[record.completion_id] = completion.span, time.time_ns()

    def saved(self, completion_id: str) -> None:
        """The save's span ends."""
        self._end_save(completion_id, None)

    def not_saved(self, completion_id: str) -> None:
        """The save's span ends as an error."""
        self._end_save(completion_id, "not_saved")

    def closed(self, request: SessionRequest) -> None:
        """The request's span ends, if its client has been answered."""
        if (completion := self._running.pop(request.completion_id, None)) is not None:
            self._end_attempt(completion, request, "internal_error", None)
            completion.span.close()

    def stop(self) -> None:
        """End what is open: saves that no database has taken. The journal has them."""
        for completion_id in [*self._saving]:
            self._end_save(completion_id, "not_saved")

    def _end_save(self, completion_id: str, error: str | None) -> None:
        if (saving := self._saving.pop(completion_id, None)) is None:
            return
        span, started_ns = saving
        attributes: dict[str, Value] = {} if error is None else {"error.type": error}
        self._send(
            Span(
                span.trace.trace_id,
                random_hex(16),
                span.span_id,
                "save",
                Kind.INTERNAL,
                started_ns,
                time.time_ns(),
                attributes,
                error is not None,
            )
        )

    def _end_attempt(
        self,
        completion: _Completion,
        request: SessionRequest,
        error: str | None,
        record: SessionRecord | None,
    ) -> None:
        if (attempt := completion.attempt) is None:
            return
        completion.attempt = None
        first_ns = attempt.first_token_ns
        attributes = self._attributes(request, attempt)
        is_error = error is not None
        if record is not None:
            attributes.update(_answer_attributes(record))
            if record.state is State.CLIENT_GONE:  # nobody's fault
                attributes["verbatim.state"], is_error = record.state.value, False
        if error is not None:
            attributes["error.type"] = error
        self._send(
            Span(
                completion.span.trace.trace_id,
                attempt.asking.traceparent[36:52],
                completion.span.span_id,
                f"chat {cut(attempt.asking.target.model)}",
                Kind.CLIENT,
                attempt.started_ns,
                time.time_ns(),
                attributes,
                is_error,
                ((FIRST_TOKEN, first_ns),) if first_ns is not None else (),
            )
        )

    def _attributes(self, request: SessionRequest, attempt: _AttemptSpan) -> dict[str, Value]:
        asking, target = attempt.asking, attempt.asking.target
        attributes: dict[str, Value] = {
            "gen_ai.operation.name": "chat",
            self._provider: target.provider,
            "gen_ai.request.model": cut(target.model),
            "verbatim.agent": asking.agent,
            "verbatim.attempt": asking.number,
        }
        if target.host is not None and target.port is not None:
            attributes["server.address"], attributes["server.port"] = target.host, target.port
        parameters = request.parameters
        for name in parameters.keys() & _NUMBERS.keys():
            if (number := _number(name, parameters[name])) is not None:
                attributes[_NUMBERS[name]] = number
        if request.choices_expected != 1:
            attributes["gen_ai.request.choice.count"] = request.choices_expected
        if self._has_newer_names:
            if request.stream:
                attributes["gen_ai.request.stream"] = True
            if attempt.first_token_ns is not None:
                seconds = (attempt.first_token_ns - attempt.started_ns) / 1e9
                attributes["gen_ai.response.time_to_first_chunk"] = seconds
        return attributes


def _call_span(span: RequestSpan, call: ToolCall, finished_at: float) -> Span:
    """The span of a tool's call, without its arguments and its result."""
    outcome = str(call.outcome)
    ended_at = finished_at if call.ended_at is None else call.ended_at
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": cut(call.tool),
        "gen_ai.tool.call.id": cut(call.call_id),
        "gen_ai.tool.type": "function",
        "verbatim.tool_server": cut(call.server),
        "verbatim.turn": call.turn,
        "verbatim.outcome": outcome,
    }
    is_error = call.outcome not in (Outcome.OK, Outcome.ABANDONED)
    if is_error:
        attributes["error.type"] = outcome
    return Span(
        span.trace.trace_id,
        random_hex(16),
        span.span_id,
        f"execute_tool {cut(call.tool)}",
        Kind.INTERNAL,
        round(call.asked_at * 1e9),
        round(ended_at * 1e9),
        attributes,
        is_error,
    )


def _answer_attributes(record: SessionRecord) -> dict[str, Value]:
    """What is known of the answer, without a word of it."""
    attributes: dict[str, Value] = {}
    if record.upstream_id is not None:
        attributes["gen_ai.response.id"] = cut(record.upstream_id)
    if record.upstream_model is not None:
        attributes["gen_ai.response.model"] = cut(record.upstream_model)
    reasons = [cut(each.finish_reason) for each in record.choices if each.finish_reason]
    if reasons:
        attributes["gen_ai.response.finish_reasons"] = reasons
    usage = record.usage
    if usage is not None:
        for name, attribute in (
            ("prompt_tokens", "gen_ai.usage.input_tokens"),
            ("completion_tokens", "gen_ai.usage.output_tokens"),
        ):
            count = usage.get(name)
            if type(count) is int and 0 <= count <= _LARGEST:
                attributes[attribute] = count
        attributes["verbatim.usage_source"] = record.usage_source.value
    return attributes


def _number(name: str, value: Any) -> int | float | None:
    """A parameter's value if it is the number that it should be; clients may send anything."""
    if name in _WHOLE:
        return value if type(value) is int and abs(value) <= _LARGEST else None
    try:
        return float(value) if type(value) in (int, float) else None
    except OverflowError:
        return None
