"""Compares what clients saw with what PostgreSQL holds, stream by stream.

Called once the database is back and the service, or its successor, has nothing left to save. For
each stream:

1. There is exactly one completion, found by the conversation's key or by the id that was shown;
   none only if the request was refused, or may never have been read.
2. Each choice has one message, and what was shown of it is a prefix of that message's content,
   which itself is a prefix of what the upstream said.
3. The state is true: one of those that the plan expects; `[DONE]` means completed, an error means
   failed with that very code, completed means that the upstream did end and every word is there.
4. A finish reason, and `complete`, stand only where the upstream had sent every finish reason.
5. Its readers saw the same (`tests.faults.compare`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import Factory, define, frozen

from db.rows.columns import original_text
from tests.faults.compare import Comparison, compare
from tests.faults.plans import COMPLETED, LEFT, Outcome, Plan

QUERY = """
SELECT v.client_key, c.completion_id, c.state, c.finish_reason, c.error->>'code',
    c.client_left_at IS NOT NULL,
    m.message_id, m.choice_index, m.content, m.content_raw, m.state, m.role
FROM completions c
JOIN conversations v USING (conversation_id)
LEFT JOIN messages m ON m.completion_id = c.completion_id
WHERE v.client_key = ANY (%s) OR c.completion_id = ANY (%s)
"""


@frozen
class Message:
    message_id: str
    choice: int
    text: str
    state: str
    role: str


@define
class Row:
    """A stored completion with its answer's messages."""

    completion_id: str
    key: str | None
    outcome: Outcome
    finish_reason: str | None
    left: bool
    messages: list[Message] = Factory(list)


@define
class Verdict:
    """What is wrong with one stream; nothing if all is empty and zero."""

    plan: Plan
    shown: int = 0
    lost: int = 0
    duplicates: int = 0
    wrong: list[str] = Factory(list)
    broken: list[str] = Factory(list)
    readers: Comparison = Factory(Comparison)

    @property
    def is_clean(self) -> bool:
        mine = self.lost or self.duplicates or self.wrong or self.broken
        return self.readers.is_clean and not mine

    def __str__(self) -> str:
        plan, said = self.plan, [*self.wrong, *self.broken, *self.readers.said[:3]]
        if self.lost:
            said.insert(0, f"{self.lost} of {self.shown} words lost")
        if self.duplicates:
            said.insert(0, f"{self.duplicates} duplicates")
        name = plan.seen.completion_id or "no id seen"
        return f"{plan.fault} × {plan.moment}, stream {plan.number} ({name}): {'; '.join(said)}"


def rows_from(found: Iterable[Sequence[Any]]) -> list[Row]:
    """The completions in the rows of `QUERY`."""
    rows: dict[str, Row] = {}
    for key, completion_id, state, reason, code, left, *message in found:
        outcome = Outcome(state, code)
        row = rows.setdefault(completion_id, Row(completion_id, key, outcome, reason, left))
        message_id, choice, content, raw, message_state, role = message
        if message_id is not None:
            text = original_text(content, None if raw is None else bytes(raw)) or ""
            row.messages.append(Message(message_id, choice, text, message_state, role))
    return list(rows.values())


def judge(plans: Sequence[Plan], rows: Sequence[Row]) -> list[Verdict]:
    """A verdict for each plan. `rows` are all that `QUERY` finds by its keys and ids."""
    by_key: dict[str, list[Row]] = {}
    by_id = {row.completion_id: row for row in rows}
    for row in rows:
        if row.key is not None:
            by_key.setdefault(row.key, []).append(row)
    return [_judge(plan, by_key.get(plan.key, []), by_id) for plan in plans]


def _judge(plan: Plan, by_key: list[Row], by_id: Mapping[str, Row]) -> Verdict:
    seen = plan.seen
    seen.read()
    verdict = Verdict(plan, shown=seen.word_count, broken=list(seen.broken))
    _judge_response(plan, verdict)
    if plan.asks > 1:
        verdict.wrong.append(f"asked for {plan.asks} times")
    rows = by_key
    known = by_id.get(seen.completion_id or plan.completion_id or "")
    if known is not None and known not in rows:
        rows = [*rows, known]
    if not rows:
        _judge_absence(plan, verdict)
        verdict.readers = compare(plan, None)
        return verdict
    if len(rows) > 1:
        verdict.duplicates += len(rows) - 1
    row = next((row for row in rows if row.completion_id == seen.completion_id), rows[0])
    if seen.completion_id not in (None, row.completion_id):
        verdict.wrong.append(f"the row's id is {row.completion_id}")
    _judge_words(plan, row, verdict)
    _judge_state(plan, row, verdict)
    verdict.readers = compare(plan, row.outcome)
    return verdict


def _judge_absence(plan: Plan, verdict: Verdict) -> None:
    seen = plan.seen
    if seen.code in plan.refusals and seen.status >= 400:
        return
    if plan.may_vanish and not seen.raw:
        return
    verdict.lost += verdict.shown
    verdict.wrong.append("no row")


def _judge_response(plan: Plan, verdict: Verdict) -> None:
    """What the bytes alone can tell."""
    seen = plan.seen
    for choice, text in seen.texts.items():
        if not "".join(plan.said(choice)).startswith(text):
            verdict.broken.append(f"choice {choice} shown out of order: {text[-60:]!r}")
    if seen.done and seen.error is not None:
        verdict.broken.append("[DONE] and an error")
    may_just_end = any(outcome.code == "stopped" for outcome in plan.expected)
    silent = seen.whole and seen.status == 200 and not seen.done and seen.error is None
    if silent and not may_just_end:
        verdict.broken.append("a clean end without [DONE] and without an error")
    if seen.reasons and not plan.finished:
        verdict.wrong.append(f"an invented finish reason shown: {seen.reasons}")


def _judge_words(plan: Plan, row: Row, verdict: Verdict) -> None:
    stored: dict[int, str] = {}
    for message in row.messages:
        if message.choice in stored:
            verdict.duplicates += 1
        stored[message.choice] = message.text
        if message.role != "assistant":
            verdict.wrong.append(f"an answer by {message.role!r}")
    for choice in range(plan.choices):
        said = "".join(plan.said(choice))
        shown, kept = plan.seen.texts.get(choice, ""), stored.pop(choice, "")
        if plan.loses:
            _judge_damaged(plan, choice, kept, verdict)
        elif said.startswith(kept):
            verdict.lost += max(0, shown.count(" ") - kept.count(" "))
            if len(kept) < len(shown) and shown.count(" ") == kept.count(" "):
                verdict.lost += 1
        else:
            words = kept.split()
            verdict.duplicates += len(words) - len(set(words))
            missing = [word for word in shown.split() if word not in words]
            verdict.lost += len(missing)
            verdict.wrong.append(f"choice {choice} is not what was said: …{kept[-60:]!r}")
    if stored:
        verdict.wrong.append(f"messages for choices {sorted(stored)}")


def _judge_damaged(plan: Plan, choice: int, kept: str, verdict: Verdict) -> None:
    """Of a damaged completion only the words in the damaged records may be missing."""
    assert plan.loses is not None
    told = [word for word in plan.said(choice) if word not in plan.loses]
    if "".join(told).startswith(kept):
        shown = [word for word in _words(plan, choice) if word not in plan.loses]
        verdict.lost += max(0, len(shown) - kept.count(" "))
    else:
        verdict.wrong.append(f"choice {choice} of a damaged one is wrong: …{kept[-60:]!r}")


def _words(plan: Plan, choice: int) -> list[str]:
    """The words shown of a choice, with their spaces."""
    shown = plan.seen.texts.get(choice, "")
    return [word for word in plan.said(choice) if word in shown]


def _judge_state(plan: Plan, row: Row, verdict: Verdict) -> None:
    seen, wrong = plan.seen, verdict.wrong
    if row.outcome not in plan.expected:
        expected = ", ".join(sorted(map(str, plan.expected)))
        wrong.append(f"{row.outcome} instead of {expected}")
    completed = row.outcome.state == COMPLETED.state
    if seen.done and not completed and plan.loses is None:
        wrong.append(f"[DONE] was shown of what is {row.outcome}")
    if seen.error is not None and seen.code != row.outcome.code and plan.loses is None:
        wrong.append(f"the client was told {seen.code}, the row says {row.outcome}")
    if seen.error is not None and completed:
        wrong.append(f"completed, and the client was told {seen.code}")
    if row.outcome == LEFT and not row.left:
        wrong.append("client_left without the moment when")
    if row.left and not plan.client_left:
        wrong.append("a moment when the client left, who never did")
    states = {message.state for message in row.messages}
    if completed:
        if row.finish_reason != "stop" or states != {"complete"} or not plan.finished:
            wrong.append(f"completed with {row.finish_reason}, {states}")
        text = "".join(message.text for message in sorted(row.messages, key=lambda m: m.choice))
        if text != "".join("".join(plan.said(choice)) for choice in range(plan.choices)):
            wrong.append("completed without every word")
    elif not plan.finished and (row.finish_reason is not None or "complete" in states):
        wrong.append(f"{row.outcome} with finish reason {row.finish_reason} and {states}")
    elif (row.finish_reason is not None) != (states == {"complete"}):
        wrong.append(f"{row.outcome} with finish reason {row.finish_reason} but {states}")
