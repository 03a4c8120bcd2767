"""Counts completions' moments: once a stream each, never once a chunk.

What a stream was like is in its record already when it ends. Nothing here keeps anything of a
completion, nor any text of one.
"""

from collections.abc import Sequence

from service.metrics.counts import Counts
from service.metrics.families import TOKENS
from service.metrics.labels import ModelLabels, code_label
from service.stream.moments import Attempt, Watcher
from statemachine import SessionRecord, SessionRequest, State, StreamSession

_STREAM = {True: "true", False: "false"}
_NO_TOKEN = {State.CLIENT_GONE: "client_left", State.COMPLETED: "empty"}
"""Why a completion that didn't fail has no first token."""
_MOST_TOKENS = 10**9
"""No answer has more; a backend that reports more is not believed."""


class Counting(Watcher):
    """Counts what it is told.

    Args:
        counts: where to.
        models: which models may be labels.
        per_owner: tokens get the label of their caller.
    """

    def __init__(self, counts: Counts, models: ModelLabels, *, per_owner: bool) -> None:
        self._model = models.label
        self._per_owner = per_owner
        counter, histogram = counts.counter, counts.histogram
        self._completions = counter("verbatim_completions_total")
        self._seconds = histogram("verbatim_completion_seconds")
        self._first_token = histogram("verbatim_first_token_seconds")
        self._no_token = counter("verbatim_no_first_token_total")
        self._first_chunk = histogram("verbatim_upstream_first_chunk_seconds")
        self._added = histogram("verbatim_added_seconds")
        self._token_seconds = histogram("verbatim_output_token_seconds")
        self._gap = histogram("verbatim_longest_gap_seconds")
        self._tokens = counter(TOKENS)
        self._attempts = counter("verbatim_attempts_total")
        self._resumes = counter("verbatim_resumes_total")
        self._repeats = counter("verbatim_idempotent_total")
        self._refused = counter("verbatim_refused_total")
        self._gone = counter("verbatim_clients_gone_total")
        self._pings = counter("verbatim_keepalives_total")

    # --- a completion's moments -------------------------------------------------------------

    def asked(self, request: SessionRequest, seconds: float) -> None:
        self._added.observe(seconds, ("to_upstream",))

    def tried(self, request: SessionRequest, attempt: Attempt) -> None:
        failure = attempt.failure
        outcome = "answered" if failure is None else code_label(failure)
        self._attempts.add((attempt.agent, outcome))
        if attempt.first_chunk_seconds is not None:
            self._first_chunk.observe(attempt.first_chunk_seconds, (attempt.agent,))

    def sent_first_token(self, session: StreamSession, seconds: float, held_seconds: float) -> None:
        self._added.observe(held_seconds, ("to_client",))
        self._first_token.observe(
            seconds, (session.agent, self._model(session.request.model), "true")
        )

    def pinged(self) -> None:
        self._pings.add()

    def left_alone(self, session: StreamSession) -> None:
        phase = "waiting" if session.first_token_at is None else "answering"
        self._gone.add((phase, session.policy.client_gone.value))

    def ended(self, record: SessionRecord) -> None:
        request, agent = record.request, record.agent
        model, stream = self._model(request.model), _STREAM[request.stream]
        error = code_label(record.failure)
        self._completions.add((agent, model, stream, record.state.value, error))
        self._seconds.observe(record.duration_ms / 1000, (agent, model, stream))
        if record.ttft_ms is None:
            reason = _NO_TOKEN.get(record.state, error) if record.failure is None else error
            self._no_token.add((agent, reason))
        else:
            self._count_pace(record, record.ttft_ms, model)
            if not request.stream:
                self._first_token.observe(record.ttft_ms / 1000, (agent, model, stream))
        self._count_tokens(record, model)

    def _count_pace(self, record: SessionRecord, ttft_ms: float, model: str) -> None:
        labels = record.agent, model
        if record.token_count > 1:
            seconds = (record.duration_ms - ttft_ms) / 1000 / (record.token_count - 1)
            self._token_seconds.observe(seconds, labels)
        self._gap.observe(record.longest_gap_seconds, labels)

    def _count_tokens(self, record: SessionRecord, model: str) -> None:
        usage = record.usage
        if usage is None:
            return
        source, last = record.usage_source.value, record.request.owner
        for kind, count in (
            ("input", usage.get("prompt_tokens")),
            ("output", usage.get("completion_tokens")),
            ("cached", _detail(usage.get("prompt_tokens_details"), "cached_tokens")),
            ("reasoning", _detail(usage.get("completion_tokens_details"), "reasoning_tokens")),
        ):
            if type(count) is int and 0 < count <= _MOST_TOKENS:
                labels = (record.agent, model, kind, source)
                self._tokens.add((*labels, last) if self._per_owner else labels, count)

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


def _detail(details: object, name: str) -> object:
    return details.get(name) if isinstance(details, dict) else None
