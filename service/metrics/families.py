"""Lists every metric: its name, kind and labels, the question it answers, and how workers' figures add up.

The list is the contract with dashboards and alerts; docs/operations.md has the same one, and a test
compares them. Never here: numbers.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal

from attrs import evolve, frozen

from statemachine import ClientGone, State

Kind = Literal["counter", "gauge", "histogram", "info"]
Merge = Literal["sum", "max", "min"]


@frozen
class Family:
    """One metric.

    Attributes:
        name: as it is exposed; a counter's ends in `_total`, an info's in `_info`.
        kind: its type.
        labels: names of its labels, in the order in which values are given.
        question: what it tells; the text of `# HELP`.
        merge: how the figures of several workers become one.
        from_start: labels of what is there from the start, as 0, so that its first step is seen.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    question: str
    merge: Merge = "sum"
    from_start: Sequence[tuple[str, ...]] = ()


REFUSALS = ("draining", "journal_full", "rate_limited", "too_many_readers", "too_many_streams")
"""Of all codes, those that say that the service is at its limits."""
OWNER = "owner"
TOKENS = "verbatim_tokens_total"

_ALL = (
    Family(
        "verbatim_completions_total",
        "counter",
        ("agent", "model", "stream", "state", "error"),
        "How many completions ended, how, and why.",
    ),
    Family(
        "verbatim_completion_seconds",
        "histogram",
        ("agent", "model", "stream"),
        "How long completions take from the request to their end.",
    ),
    Family(
        "verbatim_first_token_seconds",
        "histogram",
        ("agent", "model", "stream"),
        "How long a client waits for the first token: from the request's arrival until it is sent.",
    ),
    Family(
        "verbatim_no_first_token_total",
        "counter",
        ("agent", "reason"),
        "How many completions ended before their first token, and why.",
    ),
    Family(
        "verbatim_upstream_first_chunk_seconds",
        "histogram",
        ("agent",),
        "How long a backend takes from being asked to its first chunk, be it an empty one.",
    ),
    Family(
        "verbatim_added_seconds",
        "histogram",
        ("stage",),
        "How long this service itself takes: from a request's arrival until the backend is asked "
        "(to_upstream), and from the first token's coming until it is sent (to_client).",
    ),
    Family(
        "verbatim_output_token_seconds",
        "histogram",
        ("agent", "model"),
        "How far apart tokens come, as each stream's mean after its first token.",
    ),
    Family(
        "verbatim_longest_gap_seconds",
        "histogram",
        ("agent", "model"),
        "How long the longest silence between two tokens of a stream is.",
    ),
    Family(
        TOKENS,
        "counter",
        ("agent", "model", "kind", "source"),
        "How many tokens were read and written; cached ones are among input, reasoning among output.",
    ),
    Family(
        "verbatim_attempts_total",
        "counter",
        ("agent", "outcome"),
        "How often each agent was asked, retries included, and what came of it.",
    ),
    Family(
        "verbatim_tool_calls_total",
        "counter",
        ("agent", "server", "outcome"),
        "How many tools were called for answers, whose, and what became of the calls.",
    ),
    Family(
        "verbatim_tool_call_seconds",
        "histogram",
        ("agent", "server"),
        "How long a tool takes to answer.",
    ),
    Family(
        "verbatim_streams",
        "gauge",
        ("phase",),
        "How many completions run now: waiting for their first token, answering, or read by nobody.",
    ),
    Family(
        "verbatim_readers",
        "gauge",
        ("kind",),
        "How many read a running answer now: who asked for it (first), and others (later).",
    ),
    Family(
        "verbatim_resumes_total",
        "counter",
        ("kind",),
        "How many readers came later, to an answer that ran or to one that had ended.",
        from_start=(("running",), ("ended",)),
    ),
    Family(
        "verbatim_idempotent_total",
        "counter",
        ("outcome",),
        "What became of requests with an Idempotency-Key.",
        from_start=(("new",), ("replayed",), ("mismatch",), ("pending",)),
    ),
    Family(
        "verbatim_refused_total",
        "counter",
        ("reason",),
        "How many requests were refused, and why; no completion failed by it.",
        from_start=tuple((reason,) for reason in REFUSALS),
    ),
    Family(
        "verbatim_clients_gone_total",
        "counter",
        ("phase", "policy"),
        "How often the last reader left a running answer, before or after its first token.",
        from_start=tuple(
            product(("waiting", "answering"), (policy.value for policy in ClientGone))
        ),
    ),
    Family(
        "verbatim_keepalives_total",
        "counter",
        (),
        "How many keep-alive comments were sent.",
        from_start=((),),
    ),
    Family(
        "verbatim_journal_bytes",
        "gauge",
        (),
        "How large the journals are; at verbatim_journal_limit_bytes new completions are refused.",
    ),
    Family(
        "verbatim_journal_limit_bytes",
        "gauge",
        (),
        "How large the journals may become (journal.max_bytes, for each worker).",
    ),
    Family(
        "verbatim_journal_oldest_unsaved_seconds",
        "gauge",
        (),
        "How long the oldest answer has been waiting for the database; 0 if none is.",
        "max",
    ),
    Family(
        "verbatim_records_waiting",
        "gauge",
        (),
        "How many answers have ended and aren't in the database yet.",
    ),
    Family(
        "verbatim_dead_letters",
        "gauge",
        (),
        "How many answers the database would never take; they are files that wait for a person.",
        "max",
    ),
    Family(
        "verbatim_database_up",
        "gauge",
        (),
        "Whether the database takes answers now (1) or not (0).",
        "min",
    ),
    Family(
        "verbatim_saves_total",
        "counter",
        ("outcome",),
        "How many answers were saved, became dead letters, or could be kept nowhere.",
        from_start=(("saved",), ("dead_letter",), ("not_kept",)),
    ),
    Family(
        "verbatim_save_seconds",
        "histogram",
        (),
        "How long an answer takes from its end to the database.",
    ),
    Family(
        "verbatim_recovered_total",
        "counter",
        ("state",),
        "How many answers of dead processes were brought back from their journals.",
        from_start=tuple((state.value,) for state in State if state.is_final),
    ),
    Family(
        "verbatim_loop_lag_seconds",
        "histogram",
        ("worker",),
        "How late the event loop is: each second, how long a timer had to wait.",
    ),
    Family(
        "verbatim_process_resident_bytes",
        "gauge",
        ("worker",),
        "How much memory each process holds.",
    ),
    Family(
        "verbatim_process_cpu_seconds_total",
        "counter",
        ("worker",),
        "How much CPU each process has used.",
    ),
    Family(
        "verbatim_workers",
        "gauge",
        (),
        "How many processes serve, as far as they answer.",
    ),
    Family(
        "verbatim_build_info",
        "info",
        ("version", "python", "worker"),
        "Which version runs.",
        "max",
    ),
)

_FLEET = (
    Family(
        "verbatim_fleet_engine_up",
        "gauge",
        (),
        "Whether the fleet's engine answers and takes what runs here (1) or not (0).",
        "min",
    ),
    Family(
        "verbatim_fleet_calls_failed_total",
        "counter",
        (),
        "How many calls to the fleet's engine failed.",
        from_start=((),),
    ),
    Family(
        "verbatim_fleet_append_seconds",
        "histogram",
        (),
        "How long the engine takes to add what came in a turn of the loop to its logs.",
    ),
    Family(
        "verbatim_fleet_lag_lines",
        "gauge",
        (),
        "How many lines of running completions the engine doesn't have yet.",
    ),
    Family(
        "verbatim_fleet_lag_seconds",
        "gauge",
        (),
        "How long the oldest of these lines has waited; 0 if there is none.",
        "max",
    ),
    Family(
        "verbatim_fleet_replicas",
        "gauge",
        ("state",),
        "How many replicas there are, alive, or dead and not brought to an end.",
        "max",
    ),
    Family(
        "verbatim_fleet_lease_held",
        "gauge",
        ("worker",),
        "Whether each process's own lease holds (1) or others take it for dead (0).",
    ),
    Family(
        "verbatim_fleet_mirrors",
        "gauge",
        (),
        "How many completions of other replicas are followed here.",
    ),
    Family(
        "verbatim_fleet_mirror_readers",
        "gauge",
        (),
        "How many read them here.",
    ),
    Family(
        "verbatim_fleet_commands_total",
        "counter",
        ("outcome",),
        "How much other replicas asked of this one, and whether it answered.",
        from_start=(("answered",), ("unanswered",)),
    ),
    Family(
        "verbatim_fleet_listener_silent_seconds",
        "gauge",
        (),
        "How long ago it was last heard whether other replicas ask something.",
        "max",
    ),
    Family(
        "verbatim_fleet_adopted_total",
        "counter",
        (),
        "How many completions of dead replicas were brought to an end here.",
        from_start=((),),
    ),
    Family(
        "verbatim_fleet_adopting",
        "gauge",
        (),
        "How many are being brought to an end here now.",
    ),
    Family(
        "verbatim_fleet_fenced_total",
        "counter",
        (),
        "How many completions other replicas brought to an end while they ran here.",
        from_start=((),),
    ),
    Family(
        "verbatim_fleet_limit_fallbacks_total",
        "counter",
        (),
        "How often callers' limits fell back to this replica's share of them.",
        from_start=((),),
    ),
)


def families(*, per_owner: bool = False, has_fleet: bool = True) -> Mapping[str, Family]:
    """Name → metric, in the order in which they are exposed.

    Args:
        per_owner: tokens are counted by caller too.
        has_fleet: with those of a fleet.
    """
    listed = (*_ALL, *_FLEET) if has_fleet else _ALL
    found = {family.name: family for family in listed}
    if per_owner:
        tokens = found[TOKENS]
        found[TOKENS] = evolve(tokens, labels=(*tokens.labels, OWNER))
    return found
