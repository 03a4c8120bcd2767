"""Decides everything about one completion: `StreamSession.handle(event, now)` → effects, in order.

Does nothing itself: no I/O, no clock. A live stream and the journal's recovery drive the same class.
The rules:

1. Ask the table first; an illegal event raises and changes nothing, an ignored one does nothing.
2. Exactly one `Save` per life, among the effects of the event that makes the state final.
3. `StopUpstream` comes before `Save`, and `Save` before `SendDone` or `SendError`: whoever saw
   the end can read the record.
4. "Opened" is a flag, not a state: `OpenStream` comes once, before the first thing sent; never
   for a plain request, which is sent nothing but its end.
5. While nobody is there nothing is sent. Whoever comes back is sent what comes from then on, pings
   included; what it missed is for its driver to send.
6. Usage that came in a chunk of its own is held back; a client that asked for it gets it once,
   last, and estimated (marked so) if the upstream gave none.
7. After every choice's finish reason nothing of the answer is missing: a break, junk, a deadline, a
   drain or the end of a wait ends it well. Only an error that the upstream reports is one. Of an
   upstream that just stops, without `[DONE]`, the choices that began count: some know of one only,
   whatever was asked.
8. An upstream that says it is done and has begun no choice, not even with a role, has failed.
9. An answer that grows too large ends with the chunk that was too much, which is still sent.
"""

from attrs import evolve

from statemachine.chunks import ChunkRun, ParsedChunk, is_for_clients
from statemachine.endings import (
    BODY_ENDED,
    BROKEN_OFF,
    MALFORMED,
    NOTHING_CAME,
    STOPPED,
    expired,
    failure_of,
    prompt_tokens_of,
)
from statemachine.messages import (
    AnswerExceeded,
    AttemptStarted,
    ChunkReceived,
    ClientLeft,
    ClientReturned,
    DeadlineExpired,
    DrainExpired,
    Effect,
    Event,
    OpenStream,
    Save,
    SendActivity,
    SendChunk,
    SendDone,
    SendError,
    SendPing,
    SessionPolicy,
    SessionRecord,
    SessionRequest,
    StopUpstream,
    TimePassed,
    ToolCallEnded,
    ToolCallStarted,
    TurnEnded,
    UpstreamFailed,
    UpstreamFinished,
    WaitExpired,
)
from statemachine.recording import record_of
from statemachine.states import ClientGone, State
from statemachine.table import IGNORED, IllegalTransition, transitions
from statemachine.transcript import Transcript
from statemachine.work import Work, told_of

TRAILER_SECONDS = 5.0
"""How long a whole answer waits, from its last token or finish reason, for its usage chunk and
`[DONE]`. They come within milliseconds
where they come at all; a chat page keeps its message unfinished until the body ends."""

NEVER = float("inf")


class StreamSession:
    """The state of one completion. One owner, one thread; every method is synchronous and quick.

    Attributes:
        state: where the completion is.
        opened: the 200 is committed.
        attached: somebody is there.
        transcript: the answer so far.
        work: its turns and the tools it called; None before the first turn's end.
        agent: the name of the agent that is being asked.
        first_token_at, client_left_at: POSIX seconds, or None. The latter is the last reader's
            leaving, and None again once somebody has come back.
        longest_gap_seconds: the longest silence between two tokens so far, less what was excused.
        milestones: how many of these have come: the first token, the answer's being whole, a
            reader's return, and under `client_gone: wait` the last one's leaving. Only then may
            `wakes_at` have moved closer.
    """

    __slots__ = (
        "_idle_seconds",
        "_last_sent_at",
        "_last_token_at",
        "_prompt_tokens",
        "_row",
        "_table",
        "_whole_at",
        "agent",
        "attached",
        "client_left_at",
        "first_token_at",
        "longest_gap_seconds",
        "milestones",
        "opened",
        "policy",
        "request",
        "state",
        "transcript",
        "work",
    )

    def __init__(self, request: SessionRequest, policy: SessionPolicy) -> None:
        self.request = request
        self.policy = policy
        self.state = State.PENDING
        self.opened = False
        self.attached = True
        self.agent = request.agent
        self.transcript = Transcript(
            request.choices_expected, policy.max_answer_bytes, policy.max_tape_bytes
        )
        self.first_token_at: float | None = None
        self.client_left_at: float | None = None
        self.longest_gap_seconds = 0.0
        self.milestones = 0
        self._table = transitions(policy.client_gone)
        self._row = self._table[self.state]
        self._idle_seconds = policy.idle_seconds
        self._last_sent_at = request.created_at
        self._last_token_at: float | None = None
        self._whole_at: float | None = None
        self.work: Work | None = None
        self._prompt_tokens: int | None = None

    def __repr__(self) -> str:
        flags = "opened" if self.opened else "not opened"
        left = "" if self.attached else ", nobody there"
        chunks = self.transcript.chunk_count
        return f"<StreamSession {self.request.completion_id} {self.state} ({flags}{left}), {chunks} chunks>"

    def handle(self, event: Event, now: float) -> tuple[Effect, ...]:
        """Take in what happened, and return what follows from it.

        Args:
            now: when, in POSIX seconds; must not run backwards between calls.

        Returns:
            The effects, to be carried out in this order.

        Raises:
            IllegalTransition: the event cannot happen in this state; nothing was changed.
        """
        kind = type(event)
        target = self._row.get(kind)
        if target is None:
            raise IllegalTransition(self.state, event)
        if target is IGNORED:
            return ()
        if type(event) is ChunkReceived:  # first and alone: nearly every event is one
            if target is not self.state:
                self._enter(target)
            return self._receive(event.run, now)
        match event:
            case UpstreamFailed() | DeadlineExpired() | DrainExpired() | WaitExpired() if (
                self._is_good_end(event)
            ):
                return self.handle(UpstreamFinished(), now)
            case UpstreamFinished() if not self.transcript.has_begun:
                return self.handle(UpstreamFailed(NOTHING_CAME), now)
            case TimePassed():
                return self._ping(now)
            case AttemptStarted():
                self.agent, self._idle_seconds = event.agent, event.idle_seconds
            case TurnEnded() | ToolCallStarted() | ToolCallEnded():
                return self._note_work(event, target, now)
            case ClientLeft() | ClientReturned() | WaitExpired():
                self._note_attendance(isinstance(event, ClientReturned), now)
        if not target.is_final:
            return ()
        return self._end(event, target, now)

    def _is_good_end(self, event: Event) -> bool:
        """True of what ends an answer that lacks nothing, and is no error of its upstream's."""
        if not isinstance(event, UpstreamFailed):
            return self.transcript.is_whole
        if event.failure == BODY_ENDED:
            return self.transcript.is_whole_so_far
        return event.failure.code in (BROKEN_OFF, MALFORMED) and self.transcript.is_whole

    def _enter(self, state: State) -> None:
        self.state = state
        self._row = self._table[state]

    @property
    def wakes_at(self) -> float:
        """When `due` is worth asking next, in POSIX seconds; `inf` if never.

        It moves closer only when `milestones` grows; otherwise each chunk and ping moves it
        away, so a driver need not ask after each.
        """
        return min(
            self._trailer_at, self._total_at, self._idle_at, self._wait_ends_at, self._ping_at
        )

    def due(self, now: float) -> Event | None:
        """Return the event that time alone has made due by `now`, or None."""
        if now < self.wakes_at:
            return None
        if self._trailer_at <= now:
            return UpstreamFinished()
        if self._total_at <= now:
            return expired(
                "total_timeout",
                f"The answer was not complete after {self.policy.total_seconds:g} s, "
                "the longest that is allowed.",
            )
        if self._idle_at <= now:
            return expired(
                "idle_timeout",
                f"The model fell silent: no further token came within {self._idle_seconds:g} s.",
            )
        if self._wait_ends_at <= now:
            return WaitExpired()
        return TimePassed()

    def excuse_silence(self, now: float) -> None:
        """Count the idle deadline from `now` at the earliest: until then the upstream wasn't read,
        because the client had to take what came before, so the silence isn't the model's."""
        if self._last_token_at is not None:
            self._last_token_at = max(self._last_token_at, now)

    @property
    def _trailer_at(self) -> float:
        if self._whole_at is None or not self.transcript.is_whole or self.state.is_final:
            return NEVER
        return self._whole_at + TRAILER_SECONDS

    @property
    def _total_at(self) -> float:
        total_seconds = self.policy.total_seconds
        if total_seconds is None or self.state.is_final:
            return NEVER
        return self.request.created_at + total_seconds

    @property
    def _idle_at(self) -> float:
        waiting = not (self.transcript.is_whole or self.state.is_final)
        if self._last_token_at is None or self._idle_seconds is None or not waiting:
            return NEVER
        return self._last_token_at + self._idle_seconds

    @property
    def _wait_ends_at(self) -> float:
        left_at = self.client_left_at
        if left_at is None or self.policy.client_gone is not ClientGone.WAIT or self.state.is_final:
            return NEVER
        return left_at + self.policy.client_gone_wait_seconds

    @property
    def _ping_at(self) -> float:
        interval = self.policy.keep_alive_interval_seconds
        if interval is None or not self.attached or self.state.is_final:
            return NEVER
        return self._last_sent_at + interval

    # --- what each kind of event does -------------------------------------------------------

    def _receive(self, run: ChunkRun, now: float) -> tuple[Effect, ...]:
        is_shown = True
        if type(run) is ParsedChunk:
            is_shown = is_for_clients(run.payload)
            if is_shown:
                self.transcript.tape.add(run)
        if self.transcript.fold_run(run):
            last = self._last_token_at
            if last is None:
                self._note_token_after_none(now)
            elif now - last > self.longest_gap_seconds:
                self.longest_gap_seconds = now - last
            self._last_token_at = now
        effects: tuple[Effect, ...] = ()
        if is_shown and self.attached and self.request.stream:
            self._last_sent_at = now
            effects = (SendChunk(run),) if self.opened else self._opening(SendChunk(run))
        return self._go_on_over(effects, now) if self.transcript.is_over else effects

    def _note_token_after_none(self, now: float) -> None:
        if self.first_token_at is None:
            self.first_token_at = now
        self.milestones += 1  # the idle deadline begins, perhaps again

    def _note_work(
        self, event: TurnEnded | ToolCallStarted | ToolCallEnded, target: State, now: float
    ) -> tuple[Effect, ...]:
        """A turn's end, or a tool's call: silence isn't the model's from now on to its next token."""
        self._enter(target)
        self._last_token_at = None
        if self.work is None:
            self.work = Work()
        call = self.work.note(event, self.transcript, now)
        chunk = None if call is None else told_of(call, self.request, self.policy)
        if chunk is None:
            return ()
        self.transcript.put_beside(chunk)
        if not self.attached:
            return ()
        self._last_sent_at = now
        return self._opening(SendActivity(chunk))

    def _go_on_over(self, effects: tuple[Effect, ...], now: float) -> tuple[Effect, ...]:
        """Note that the answer is whole; or end it, as it is in excess."""
        excess = self.transcript.excess
        if excess is not None:
            return (*effects, *self.handle(AnswerExceeded(excess), now))
        whole_at, token_at = self._whole_at, self._last_token_at
        # Where tokens come all the same, it is whole from the last one on.
        if whole_at is None or (token_at is not None and token_at > whole_at):
            self._whole_at = now
            self.milestones += 1
        return effects

    def _note_attendance(self, attached: bool, now: float) -> None:
        """Note whether somebody is there, if that is news. `WaitExpired` is taken at its word that
        nobody is: a journal may have lost the line in which the last reader left."""
        if attached is self.attached:
            return
        self.attached = attached
        self.client_left_at = None if attached else now
        if attached:
            self._last_sent_at = now  # no pings for the time when nobody was there
        if attached or self.policy.client_gone is ClientGone.WAIT:
            self.milestones += 1

    def _ping(self, now: float) -> tuple[Effect, ...]:
        if now < self._ping_at:
            return ()
        self._last_sent_at = now
        return self._opening(SendPing())

    def _end(self, event: Event, target: State, now: float) -> tuple[Effect, ...]:
        failure = failure_of(event)
        record = record_of(self, target, event, now)
        self._enter(target)  # nothing below can fail, so a life can't end without its Save
        if failure is None:
            if not self.attached:
                return (Save(record),)
            return self._opening(*self._usage_chunk(record), Save(record), SendDone(record))
        effects: list[Effect] = [Save(record)]
        if not isinstance(event, UpstreamFailed):
            effects.insert(0, StopUpstream())
        if self.attached and not (failure is STOPPED and self.opened):
            effects.append(SendError(failure))  # a stopped stream just ends, without [DONE]
        return tuple(effects)

    def _opening(self, *effects: Effect) -> tuple[Effect, ...]:
        if self.opened or not self.request.stream:
            return effects
        self.opened = True
        return (OpenStream(), *effects)

    # --- what is kept -----------------------------------------------------------------------

    def let_go_of_prompt(self) -> None:
        """Hold what was sent no longer: `request` then has neither messages nor tools, and so has the
        record's. For a driver that can put them back into the record."""
        if self._prompt_tokens is None:
            self._prompt_tokens = prompt_tokens_of(self.request)
            self.request = evolve(self.request, messages=(), tools=None)

    @property
    def has_prompt(self) -> bool:
        """True unless it was let go of."""
        return self._prompt_tokens is None

    def estimate_prompt(self) -> int:
        """Estimate the tokens of what was sent, also once it was let go of."""
        tokens = self._prompt_tokens
        return prompt_tokens_of(self.request) if tokens is None else tokens

    def _usage_chunk(self, record: SessionRecord) -> tuple[Effect, ...]:
        """Make the one extra chunk for a client that asked for usage."""
        if not self.request.include_usage:
            return ()
        frame = self.transcript.usage_frame or {}
        return (SendChunk({**frame, "choices": [], "usage": record.usage}),)
