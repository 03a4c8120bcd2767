"""Prints the state table, its diagram and the endings as Markdown, from the code that runs:
`python -m statemachine`. `make docs` has it in docs/state-machine.md.

The table and the diagram are read from `statemachine.table`; the endings are what real
`StreamSession`s say when they are led through each. The only file of this package that does I/O.
"""

from collections.abc import Iterator, Sequence

from attrs import frozen

from statemachine.endings import BROKEN_OFF, MALFORMED
from statemachine.messages import (
    AnswerExceeded,
    ChunkReceived,
    ClientLeft,
    ClientReturned,
    DeadlineExpired,
    DrainExpired,
    Effect,
    Event,
    Failure,
    Save,
    SendDone,
    SendError,
    SessionPolicy,
    SessionRecord,
    SessionRequest,
    StopRequested,
    TimePassed,
    UpstreamFailed,
    UpstreamFinished,
    WaitExpired,
)
from statemachine.session import StreamSession
from statemachine.states import ClientGone, State
from statemachine.table import IGNORED, MATRIX, Cell, transitions

EVENTS = tuple(MATRIX)


# --- the table ------------------------------------------------------------------------------


def state_table(client_gone: ClientGone) -> str:
    """A row per event, a column per state; cells that another policy has otherwise are bold."""
    rows = [["event", *(f"`{state.value}`" for state in State)]]
    for event in EVENTS:
        rows.append([f"`{event.__name__}`", *(_cell(event, state, client_gone) for state in State)])
    return _markdown_table(rows)


def _cell(event: type[Event], state: State, client_gone: ClientGone) -> str:
    targets = _targets(event, state)
    text = _words(targets[client_gone])
    return text if len(set(targets.values())) == 1 else f"**{text}**"


def _words(cell: Cell | None) -> str:
    if cell is None:
        return "illegal"
    return "ignored" if cell is IGNORED else f"`{cell.value}`"


def _targets(event: type[Event], state: State) -> dict[ClientGone, Cell | None]:
    """What stands in this cell under each policy."""
    return {policy: transitions(policy)[state].get(event) for policy in ClientGone}


# --- the diagram ----------------------------------------------------------------------------


def state_diagram() -> str:
    """A Mermaid state diagram of all policies; ignored cells change nothing and aren't drawn."""
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR", "    [*] --> pending"]
    for (source, target), labels in _arrows().items():
        # Mermaid ends a label at a second colon or a semicolon; these have neither.
        lines.append(f"    {source.value} --> {target.value} : {'<br>'.join(labels)}")
    lines += [f"    {state.value} --> [*]" for state in State if state.is_final]
    return "\n".join([*lines, "```"])


def _arrows() -> dict[tuple[State, State], list[str]]:
    """(from, to) → the events that lead there, in the order of the states and the events."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for source in State:
        for event in EVENTS:
            targets = _targets(event, source)
            for target in dict.fromkeys(targets.values()):
                if not isinstance(target, State):
                    continue
                policies = [policy.value for policy in ClientGone if targets[policy] is target]
                is_always = len(policies) == len(ClientGone)
                under = "" if is_always else f" under {' and '.join(policies)}"
                arrows.setdefault((source, target), []).append(event.__name__ + under)
    return arrows


# --- the endings ----------------------------------------------------------------------------

_REQUEST = SessionRequest(
    completion_id="chatcmpl-1",
    created_at=0.0,
    trace_id="",
    owner="anonymous",
    agent="demo",
    model="demo",
    messages=({"role": "user", "content": "Hello!"},),
)
_BROKEN = UpstreamFailed(Failure("upstream_error", ""))
_BROKEN_OFF = UpstreamFailed(Failure(BROKEN_OFF, ""))
_JUNK = UpstreamFailed(Failure(MALFORMED, ""))
_EXPIRED = DeadlineExpired(Failure("total_timeout", ""))
_WORD = ChunkReceived({"choices": [{"index": 0, "delta": {"content": "Hello"}}]})
_REASON = ChunkReceived({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})


@frozen
class Ending:
    """One way for a completion to end. `events` come a keep-alive interval apart."""

    words: str
    events: tuple[Event, ...]
    client_gone: ClientGone = ClientGone.CANCEL


ENDINGS = (
    Ending("a whole answer", (_WORD, _REASON, UpstreamFinished())),
    Ending("an empty answer", (_REASON, UpstreamFinished())),
    Ending("an end without a beginning", (UpstreamFinished(),)),
    Ending("a slow first token, then a whole answer", (TimePassed(), _WORD, UpstreamFinished())),
    Ending("failed before anything was sent", (_BROKEN,)),
    Ending("failed after a keep-alive", (TimePassed(), _BROKEN)),
    Ending("failed in the middle", (_WORD, _BROKEN)),
    Ending("failed after its finish reason", (_WORD, _REASON, _BROKEN)),
    Ending("broken off after its finish reason", (_WORD, _REASON, _BROKEN_OFF)),
    Ending("junk after its finish reason", (_WORD, _REASON, _JUNK)),
    Ending("it grows too large", (_WORD, AnswerExceeded(Failure("answer_too_large", "")))),
    Ending("a deadline before anything was sent", (_EXPIRED,)),
    Ending("a deadline in the middle", (_WORD, _EXPIRED)),
    Ending("the service stops", (_WORD, DrainExpired())),
    Ending("the client leaves, `cancel`", (_WORD, ClientLeft())),
    Ending(
        "the client leaves, `wait`, and nobody comes back",
        (_WORD, ClientLeft(), _WORD, WaitExpired()),
        ClientGone.WAIT,
    ),
    Ending(
        "the client leaves, `wait`, and somebody comes back",
        (_WORD, ClientLeft(), _WORD, ClientReturned(), _REASON, UpstreamFinished()),
        ClientGone.WAIT,
    ),
    Ending(
        "the client leaves, `wait`, and the answer is whole when the wait is over",
        (_WORD, ClientLeft(), _REASON, WaitExpired()),
        ClientGone.WAIT,
    ),
    Ending(
        "the client leaves, `finish`",
        (_WORD, ClientLeft(), _REASON, UpstreamFinished()),
        ClientGone.FINISH,
    ),
    Ending(
        "the client leaves, `finish`, then a failure",
        (_WORD, ClientLeft(), _BROKEN),
        ClientGone.FINISH,
    ),
    Ending("a stop before anything was sent", (StopRequested(),)),
    Ending("a stop in the middle", (_WORD, StopRequested())),
)


def endings_table() -> str:
    """A row per ending: what happened, the effects in order, what is seen and kept."""
    rows = [["ending", "events", "effects, in order", "the client sees last", "kept"]]
    for ending in ENDINGS:
        session = _session(ending)
        effects = list(_effects(session, ending))
        rows.append(
            [
                ending.words,
                _names(ending.events),
                _names(effects),
                _seen_last(session, effects),
                _kept(effects),
            ]
        )
    return _markdown_table(rows)


def _session(ending: Ending) -> StreamSession:
    return StreamSession(_REQUEST, SessionPolicy(client_gone=ending.client_gone))


def _effects(session: StreamSession, ending: Ending) -> Iterator[Effect]:
    interval = session.policy.keep_alive_interval_seconds or 0.0
    for step, event in enumerate(ending.events, start=1):
        yield from session.handle(event, step * interval)


def _names(messages: Sequence[Event | Effect]) -> str:
    return ", ".join(f"`{type(message).__name__}`" for message in messages)


def _seen_last(session: StreamSession, effects: Sequence[Effect]) -> str:
    if any(isinstance(effect, SendDone) for effect in effects):
        return "`[DONE]`"
    if any(isinstance(effect, SendError) for effect in effects):
        return "an error event, no `[DONE]`" if session.opened else "an HTTP error"
    return "the body's end, no `[DONE]`" if session.attached else "nothing: it has left"


def _kept(effects: Sequence[Effect]) -> str:
    (record,) = (effect.record for effect in effects if isinstance(effect, Save))
    return f"`{record.state.value}`, {_messages_kept(record)}{_code(record)}"


def _messages_kept(record: SessionRecord) -> str:
    if not record.choices:
        return "no message"
    return "message `complete`" if record.whole else "message `partial`"


def _code(record: SessionRecord) -> str:
    return f", error `{record.failure.code}`" if record.failure else ""


# --- all of it ------------------------------------------------------------------------------


def _state_tables() -> Iterator[str]:
    for policy in ClientGone:
        yield f"### Under `client_gone: {policy.value}`"
        yield state_table(policy)


def printed() -> str:
    """Everything, as Markdown."""
    return "\n\n".join(
        (
            *_state_tables(),
            "### As a diagram",
            state_diagram(),
            "### What each ending does",
            endings_table(),
        )
    )


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(printed())
