"""Counts completions' moments: once a stream each, never once a chunk.

What a stream was like is in its record already when it ends. Nothing here keeps anything of a
completion, nor any text of one. Where figures of one kind of stream go is looked up once for all of
them (`_Kind`): a request counts some twenty things.
"""

from bisect import bisect_left
from collections.abc import Sequence

from service.metrics.counts import BOUNDS, SUM, Counts, Labels
from service.metrics.families import TOKENS
from service.metrics.labels import ModelLabels, code_label
from service.stream.moments import Attempt, Watcher
from statemachine import SessionRecord, SessionRequest, State, StreamSession

_NO_TOKEN = {State.CLIENT_GONE: "client_left", State.COMPLETED: "empty"}
"""Why a completion that didn't fail has no first token."""
_DETAILS = (
    # kind, where the provider says it, and under which name
    ("cached", "prompt_tokens_details", "cached_tokens"),
    ("reasoning", "completion_tokens_details", "reasoning_tokens"),
)
_MOST_TOKENS = 10**9
"""No answer has more; a backend that reports more is not believed."""


class _Kind:
    """Where the figures of all streams go that have the same agent, model and form.

    Args:
        labels: `agent`, `model` and `stream`.
    """

    __slots__ = ("_completions", "_gap", "_labels", "_seconds", "_token_seconds", "first_token")

    def __init__(self, counts: Counts, labels: Labels) -> None:
        cells = counts.cells
        self._labels = labels
        self._completions = counts.figures["verbatim_completions_total"]
        self._seconds = cells("verbatim_completion_seconds", labels)
        self.first_token = cells("verbatim_first_token_seconds", labels)
        self._token_seconds = cells("verbatim_output_token_seconds", labels[:2])
        self._gap = cells("verbatim_longest_gap_seconds", labels[:2])

    def count(self, record: SessionRecord, error: str) -> None:
        """Count a stream's end, and its pace if it had a first token."""
        labels = (*self._labels, record.state.value, error)
        self._completions[labels] = self._completions.get(labels, 0.0) + 1
        seconds = record.duration_ms / 1000
        cells = self._seconds
        cells[bisect_left(BOUNDS, seconds)] += 1
        cells[SUM] += seconds
        if record.ttft_ms is None:
            return
        gap, cells = record.longest_gap_seconds, self._gap
        cells[bisect_left(BOUNDS, gap)] += 1
        cells[SUM] += gap
        if record.token_count > 1:
            pace = (seconds - record.ttft_ms / 1000) / (record.token_count - 1)
            cells = self._token_seconds
            cells[bisect_left(BOUNDS, pace)] += 1
            cells[SUM] += pace


class Counting(Watcher):
    """Counts what it is told.

    Args:
        counts: where to.
        models: which models may be labels.
        per_owner: tokens get the label of their caller.
    """

    def __init__(self, counts: Counts, models: ModelLabels, *, per_owner: bool) -> None:
        self._counts = counts
        self._model = models.label
        self._per_owner = per_owner
        self._kinds: dict[tuple[str, str, bool], _Kind] = {}
        counter, histogram = counts.counter, counts.histogram
        self._no_token = counter("verbatim_no_first_token_total")
        self._first_chunk = histogram("verbatim_upstream_first_chunk_seconds")
        self._to_upstream = counts.cells("verbatim_added_seconds", ("to_upstream",))
        self._to_client = counts.cells("verbatim_added_seconds", ("to_client",))
        self._tokens = counter(TOKENS)
        self._attempts = counter("verbatim_attempts_total")
        self._resumes = counter("verbatim_resumes_total")
        self._repeats = counter("verbatim_idempotent_total")
        self._refused = counter("verbatim_refused_total")
        self._gone = counter("verbatim_clients_gone_total")
        self._pings = counter("verbatim_keepalives_total")
        self._calls = counter("verbatim_tool_calls_total")
        self._call_seconds = histogram("verbatim_tool_call_seconds")

    def _kind(self, agent: str, model: str, stream: bool) -> _Kind:  # a label
        """The kind of these streams. `model` is a label."""
        key = (agent, model, stream)
        kind = self._kinds.get(key)
        if kind is None:
            labels = (agent, model, "true" if stream else "false")
            kind = self._kinds[key] = _Kind(self._counts, labels)
        return kind

    # --- a completion's moments -------------------------------------------------------------

    def tried(self, request: SessionRequest, attempt: Attempt) -> None:
        failure, agent = attempt.failure, attempt.agent
        self._attempts.add((agent, "answered" if failure is None else code_label(failure)))
        if attempt.first_chunk_seconds is not None:
            self._first_chunk.observe(attempt.first_chunk_seconds, (agent,))
        if (seconds := attempt.arrived_seconds) is not None:
            self._to_upstream[bisect_left(BOUNDS, seconds)] += 1
            self._to_upstream[SUM] += seconds

    def sent_first_token(self, session: StreamSession, seconds: float, held_seconds: float) -> None:
        cells = self._to_client
        cells[bisect_left(BOUNDS, held_seconds)] += 1
        cells[SUM] += held_seconds
        cells = self._kind(session.agent, self._model(session.request.model), True).first_token
        cells[bisect_left(BOUNDS, seconds)] += 1
        cells[SUM] += seconds

    def pinged(self) -> None:
        self._pings.add()

    def left_alone(self, session: StreamSession) -> None:
        phase = "waiting" if session.first_token_at is None else "answering"
        self._gone.add((phase, session.policy.client_gone.value))

    def ended(self, record: SessionRecord) -> None:
        request, agent, ttft_ms = record.request, record.agent, record.ttft_ms
        model, error = self._model(request.model), code_label(record.failure)
        kind = self._kind(agent, model, request.stream)
        kind.count(record, error)
        if ttft_ms is None:
            reason = _NO_TOKEN.get(record.state, error) if record.failure is None else error
            self._no_token.add((agent, reason))
        elif not request.stream:
            kind.first_token[bisect_left(BOUNDS, ttft_ms / 1000)] += 1
            kind.first_token[SUM] += ttft_ms / 1000
        if record.tool_calls:
            self._count_calls(record)
        if (usage := record.usage) is not None:
            labels = (agent, model), (record.usage_source.value, request.owner)
            self._count_tokens("input", usage.get("prompt_tokens"), *labels)
            self._count_tokens("output", usage.get("completion_tokens"), *labels)
            for kind_of_token, place, name in _DETAILS:
                if isinstance(details := usage.get(place), dict):
                    self._count_tokens(kind_of_token, details.get(name), *labels)

    def _count_calls(self, record: SessionRecord) -> None:
        for call in record.tool_calls:
            labels = (record.agent, call.server)
            self._calls.add((*labels, str(call.outcome)))
            if call.ended_at is not None:
                self._call_seconds.observe(call.ended_at - call.asked_at, labels)

    def _count_tokens(
        self, kind: str, count: object, first: tuple[str, str], last: tuple[str, str]
    ) -> None:
        if type(count) is int and 0 < count <= _MOST_TOKENS:
            self._tokens.add((*first, kind, *(last if self._per_owner else last[:1])), count)

    # --- other requests ---------------------------------------------------------------------

    def refused(self, code: str) -> None:
        self._refused.add((code,))

    def resumed(self, kind: str) -> None:
        self._resumes.add((kind,))

    def repeated(self, outcome: str) -> None:
        self._repeats.add((outcome,))


class SaveCounting:
    """Counts what becomes of records.

    Args:
        counts: where to.
    """

    def __init__(self, counts: Counts) -> None:
        self._saves = counts.counter("verbatim_saves_total")
        self._seconds = counts.histogram("verbatim_save_seconds")
        self._recovered = counts.counter("verbatim_recovered_total")

    def saved(self, outcome: str, seconds: Sequence[float]) -> None:
        """So many records, as there are seconds, had this outcome (`db.saver.NoteSaves`)."""
        self._saves.add((outcome,), len(seconds))
        if outcome == "saved":
            for each in seconds:
                self._seconds.observe(each)

    def recovered(self, record: SessionRecord) -> None:
        """A record of a dead process was brought back."""
        self._recovered.add((record.state.value,))
