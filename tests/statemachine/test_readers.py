"""Readers that come and go: what a session does while nobody is there, and for how long."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemachine import (
    ChunkReceived,
    ClientGone,
    ClientLeft,
    ClientReturned,
    DeadlineExpired,
    Effect,
    Event,
    Failure,
    OpenStream,
    Save,
    SendChunk,
    SendDone,
    SendError,
    SendPing,
    SessionPolicy,
    SessionRecord,
    State,
    StreamSession,
    TimePassed,
    UpstreamFailed,
    UpstreamFinished,
    WaitExpired,
)
from statemachine.endings import CLIENT_LEFT
from tests.statemachine.conftest import asked, finish_chunk, made_up, text_chunk

SENDS = (OpenStream, SendChunk, SendPing, SendDone, SendError)
WORD = ChunkReceived(text_chunk("word"))
REASON = ChunkReceived(finish_chunk())


def waiting(seconds: float = 30.0, **policy: Any) -> StreamSession:
    """A session that waits so long for somebody to come back, without any other deadline."""
    defaults: dict[str, Any] = {
        "client_gone": ClientGone.WAIT,
        "client_gone_wait_seconds": seconds,
        "keep_alive_interval_seconds": None,
        "idle_seconds": None,
        "total_seconds": None,
    }
    return StreamSession(asked(), SessionPolicy(**{**defaults, **policy}))


def play(target: StreamSession, *events: Event, at: float) -> list[Effect]:
    return [effect for event in events for effect in target.handle(event, at)]


def names(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def saved(effects: list[Effect]) -> SessionRecord:
    (save,) = (effect for effect in effects if isinstance(effect, Save))
    return save.record


def text_of(record: SessionRecord) -> str:
    return "".join(str(choice.message["content"] or "") for choice in record.choices)


# --- the wait -----------------------------------------------------------------------------------


def test_nobody_comes_back_in_time() -> None:
    """The answer goes on, its text is kept, and to the second when the wait is over the upstream is
    stopped; the row says when the last reader left."""
    target = waiting(30.0)
    play(target, WORD, at=1.0)
    assert [] == play(target, ClientLeft(), at=2.0)
    assert [] == play(target, WORD, at=3.0)
    assert 32.0 == target.wakes_at
    assert target.due(31.999) is None
    assert WaitExpired() == target.due(32.0)
    effects = play(target, WaitExpired(), at=32.0)
    assert ["StopUpstream", "Save"] == names(effects)
    record = saved(effects)
    assert (State.CLIENT_GONE, CLIENT_LEFT) == (record.state, record.failure)
    assert (2.0, 32.0) == (record.client_left_at, record.finished_at)
    assert ("wordword", False) == (text_of(record), record.whole)


def test_nobody_comes_back_before_the_first_token() -> None:
    """An answer that hasn't begun waits as long, and ends without a message."""
    target = waiting(5.0)
    play(target, ClientLeft(), at=2.0)
    assert WaitExpired() == target.due(7.0)
    effects = play(target, WaitExpired(), at=7.0)
    assert ["StopUpstream", "Save"] == names(effects)
    assert (State.CLIENT_GONE, ()) == (saved(effects).state, saved(effects).choices)


def test_whoever_comes_back_in_time_finds_the_answer_running() -> None:
    """Nothing is due any more, what comes is sent again, and the row knows of no leaving."""
    target = waiting(30.0)
    play(target, WORD, ClientLeft(), WORD, at=2.0)
    assert [] == play(target, ClientReturned(), at=31.999)
    assert target.attached
    assert float("inf") == target.wakes_at
    assert target.due(1e9) is None
    assert ["SendChunk"] == names(play(target, WORD, at=40.0))
    effects = play(target, UpstreamFinished(), at=41.0)
    assert ["Save", "SendDone"] == names(effects)
    assert saved(effects).client_left_at is None
    assert "wordwordword" == text_of(saved(effects))


def test_each_leaving_waits_anew() -> None:
    """The wait counts from the last reader's last leaving, and that is the one that is kept."""
    target = waiting(10.0)
    play(target, WORD, ClientLeft(), at=1.0)
    play(target, ClientReturned(), at=9.0)
    play(target, ClientLeft(), at=20.0)
    assert 30.0 == target.wakes_at
    record = saved(play(target, WaitExpired(), at=30.0))
    assert 20.0 == record.client_left_at


def test_leaving_an_empty_room_prolongs_nothing() -> None:
    """Nor does entering one that isn't empty put anything off."""
    target = waiting(10.0, keep_alive_interval_seconds=15.0)
    play(target, ClientReturned(), at=10.0)
    assert 15.0 == target.wakes_at, "the ping's moment stays"
    play(target, ClientLeft(), at=11.0)
    play(target, ClientLeft(), at=12.0)
    assert 21.0 == target.wakes_at
    assert 11.0 == target.client_left_at


def test_an_answer_that_is_whole_when_the_wait_is_over_has_ended_well() -> None:
    """Nothing of it is missing, as with every other deadline."""
    target = waiting(1.0)
    play(target, WORD, ClientLeft(), REASON, at=2.0)
    assert WaitExpired() == target.due(3.0)
    effects = play(target, WaitExpired(), at=3.0)
    assert ["Save"] == names(effects)
    record = saved(effects)
    assert (State.COMPLETED, None, 2.0) == (record.state, record.failure, record.client_left_at)


@pytest.mark.parametrize("event", [UpstreamFinished(), UpstreamFailed(Failure("x", "Broke."))])
def test_an_end_during_the_wait_is_told_to_nobody(event: Event) -> None:
    """It is kept as what it is, and the wait is over with it."""
    target = waiting()
    play(target, WORD, ClientLeft(), at=2.0)
    effects = play(target, event, at=3.0)
    assert ["Save"] == names(effects)
    assert 2.0 == saved(effects).client_left_at
    assert float("inf") == target.wakes_at
    assert [] == play(target, WaitExpired(), ClientReturned(), at=32.0), "both come late"
    assert 2.0 == target.client_left_at


def test_a_wait_that_expired_has_nobody_there() -> None:
    """A session whose journal has lost the line of a leaving takes the event at its word: nobody is
    told, and the row has a moment at which somebody left."""
    target = waiting()
    effects = play(target, WORD, WaitExpired(), at=40.0)
    assert ["StopUpstream", "Save"] == names(effects)[2:]
    assert (CLIENT_LEFT, 40.0) == (saved(effects).failure, saved(effects).client_left_at)


def test_under_finish_nobody_waits() -> None:
    """However long nobody is there, the answer goes on; a return ends the leaving there too."""
    target = waiting(client_gone=ClientGone.FINISH)
    play(target, WORD, ClientLeft(), at=2.0)
    assert float("inf") == target.wakes_at
    assert target.due(1e9) is None
    play(target, ClientReturned(), at=1e6)
    effects = play(target, UpstreamFinished(), at=1e6 + 1)
    assert ["Save", "SendDone"] == names(effects)
    assert saved(effects).client_left_at is None


# --- among the other deadlines ------------------------------------------------------------------


def test_of_deadlines_that_are_due_at_once_the_more_telling_wins() -> None:
    """The trailer ends an answer well, the upstream's deadlines say what was wrong with it, and the
    wait comes before a ping."""
    both = {"keep_alive_interval_seconds": 1.0, "total_seconds": 10.0, "idle_seconds": 8.0}
    whole = waiting(8.0, **both)
    play(whole, WORD, REASON, ClientLeft(), at=2.0)
    assert UpstreamFinished() == whole.due(100.0)
    for policy, code in (
        ({**both}, "total_timeout"),
        ({**both, "total_seconds": None}, "idle_timeout"),
    ):
        target = waiting(8.0, **policy)
        play(target, WORD, ClientLeft(), at=2.0)
        event = target.due(100.0)
        assert isinstance(event, DeadlineExpired)
        assert code == event.failure.code
    last = waiting(8.0, keep_alive_interval_seconds=1.0)
    play(last, WORD, ClientLeft(), at=2.0)
    assert WaitExpired() == last.due(100.0)


def test_pings_count_from_a_return() -> None:
    """While nobody is there nothing is sent, and what was not sent is not made up for."""
    target = waiting(1000.0, keep_alive_interval_seconds=15.0)
    play(target, WORD, ClientLeft(), at=1.0)
    assert [] == play(target, TimePassed(), at=100.0)
    assert [] == play(target, ClientReturned(), at=200.0)
    assert 215.0 == target.wakes_at
    assert [] == play(target, TimePassed(), at=214.999)
    assert ["SendPing"] == names(play(target, TimePassed(), at=215.0))


@pytest.mark.parametrize(
    ("client_gone", "counted"),
    [(ClientGone.WAIT, [0, 1, 2, 2, 3]), (ClientGone.FINISH, [0, 0, 1, 1, 1])],
)
def test_what_may_bring_a_deadline_closer_is_a_milestone(
    client_gone: ClientGone, counted: list[int]
) -> None:
    """A leaving brings the wait's end, a return the next ping; neither is one where it is no news."""
    target = waiting(client_gone=client_gone)
    found = [target.milestones]
    for event in (ClientLeft(), ClientReturned(), ClientReturned(), ClientLeft()):
        play(target, event, at=1.0)
        found.append(target.milestones)
    assert counted == found


# --- walks ----------------------------------------------------------------------------------------


class Driver:
    """Asks a session what is due as a relay does: it reads `wakes_at` after a wake-up, and else only
    when `milestones` grew. Checks on the way what is promised of readers."""

    def __init__(self, policy: SessionPolicy) -> None:
        self.session = StreamSession(asked(), policy)
        self.effects: list[Effect] = []
        self.left_at: float | None = None
        self.heard_at = 0.0
        self._wakes_at, self._milestones = self.session.wakes_at, self.session.milestones

    def handle(self, event: Event, now: float) -> None:
        was_running = not self.session.state.is_final
        new = self.session.handle(event, now)
        self.effects += new
        if was_running and isinstance(event, ClientReturned):
            self.left_at, self.heard_at = None, now
        elif was_running and isinstance(event, ClientLeft) and self.left_at is None:
            self.left_at = now
        if self.left_at is not None:
            assert [] == [effect for effect in new if isinstance(effect, SENDS)]
        for effect in new:
            if isinstance(effect, SendPing):
                assert now >= self.heard_at + (self.session.policy.keep_alive_interval_seconds or 0)
            if isinstance(effect, (SendPing, SendChunk)):
                self.heard_at = now
        if self.session.milestones != self._milestones:
            self._milestones = self.session.milestones
            self._wakes_at = min(self._wakes_at, self.session.wakes_at)

    def run_until(self, now: float) -> None:
        """Wake up whenever a relay's timer would until then."""
        while self._wakes_at <= now and not self.session.state.is_final:
            woken_at = self._wakes_at
            event = self.session.due(woken_at)
            if event is not None:
                self.handle(event, woken_at)
            self._wakes_at = self.session.wakes_at
            assert self._wakes_at > woken_at, "it doesn't spin"


steps = st.sampled_from([WORD, WORD, REASON, ClientLeft(), ClientLeft(), ClientReturned()])
# Whole seconds, so that deadlines often fall on one moment.
visits = st.lists(st.tuples(st.integers(0, 12), steps), max_size=20)


@made_up(60)
@given(
    visits=visits,
    client_gone=st.sampled_from(ClientGone),
    wait_seconds=st.integers(1, 20),
    ping_seconds=st.none() | st.integers(1, 20),
)
def test_readers_come_and_go_and_the_answer_ends_once(
    visits: list[tuple[int, Event]],
    client_gone: ClientGone,
    wait_seconds: int,
    ping_seconds: int | None,
) -> None:
    """One `Save` for each life and all the text in it; nothing is sent while nobody is there; under
    `cancel` a leaving ends the answer at once, under `wait` to the second when the wait is over, and
    under `finish` never."""
    policy = waiting(
        wait_seconds, client_gone=client_gone, keep_alive_interval_seconds=ping_seconds
    ).policy
    driver, now, words = Driver(policy), 0.0, 0
    session = driver.session
    for delay, event in visits:
        now += delay
        driver.run_until(now)
        if isinstance(event, ClientReturned) and driver.left_at is None:
            continue
        if session.state is State.COMPLETED and isinstance(event, ChunkReceived):
            continue
        words += event is WORD and not session.state.is_final
        driver.handle(event, now)
    if not session.state.is_final:
        ends_at = now + 1000.0
        driver.run_until(ends_at)
        if not session.state.is_final:
            assert client_gone is ClientGone.FINISH or driver.left_at is None
            driver.handle(UpstreamFinished(), ends_at)
    record = saved(driver.effects)
    assert driver.left_at == record.client_left_at
    assert "word" * words == text_of(record)
    if record.state is State.CLIENT_GONE:
        assert driver.left_at is not None
        assert CLIENT_LEFT == record.failure
        patience = {ClientGone.CANCEL: 0, ClientGone.WAIT: wait_seconds}[client_gone]
        assert driver.left_at + patience == record.finished_at
    elif client_gone is ClientGone.WAIT and driver.left_at is not None:
        assert record.finished_at <= driver.left_at + wait_seconds
    if record.whole and client_gone is not ClientGone.CANCEL:
        assert State.COMPLETED is record.state
