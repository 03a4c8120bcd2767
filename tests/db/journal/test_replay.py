"""Replaying is living: what comes back from a journal is what the session itself would have said."""

import asyncio
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from db.journal import replay as replay_module
from db.journal.format import dump_json, events_record, saved_line
from db.journal.replay import JOURNAL_DAMAGED, PROCESS_DIED, Replay
from db.memory.store import MemoryStore
from db.postgres.store import PostgresStore
from db.store import Store
from statemachine import (
    AttemptStarted,
    ChunkReceived,
    ClientGone,
    ClientLeft,
    ClientReturned,
    Effect,
    Event,
    Failure,
    Save,
    SessionPolicy,
    State,
    StreamSession,
    TimePassed,
    UpstreamFailed,
    UpstreamFinished,
    WaitExpired,
)
from statemachine.endings import CLIENT_LEFT
from statemachine.table import transitions
from tests.db.journal.journals import (
    begin,
    collect,
    ids,
    live,
    open_journal,
    replayed,
    say,
    segments,
    segments_of,
    words,
)
from tests.statemachine.conftest import asked, chunk, finish_chunk, text_chunk
from tests.statemachine.test_walks import walks as plain_steps

OWN_FAULT = Failure("internal_error", "The service made a mistake and could not go on.")
odd_deltas = st.sampled_from(
    [
        chunk({"reasoning_content": "hm", "content": None}),
        chunk({"content": "\ud83d"}),
        chunk({"content": "\ude00"}),
        chunk({"content": [{"type": "text", "text": "part"}]}),
        chunk({"tool_calls": [{"index": 0, "id": "t", "function": {"arguments": '{"a'}}]}),
        chunk({"content": "other"}, index=1),
        chunk({}, "length", index=1),
        chunk({"content": "x"}, system_fingerprint="fp", citations=[{"n": 2**70}, "\udfff"]),
        {"choices": [], "usage": {"completion_tokens": 5, "cost": 1e-300}},
        {"id": None, "created": "no number", "choices": None},
    ]
).map(ChunkReceived)
odd_steps = st.lists(st.tuples(odd_deltas, st.floats(0, 100)), max_size=6)
walks = st.tuples(plain_steps, odd_steps).flatmap(
    lambda both: st.permutations([*both[0], *both[1]])
)


def write(directory: Path, *lines: bytes) -> Path:
    """A journal of one segment with these lines."""
    directory.mkdir(exist_ok=True)
    (directory / "000001.jsonl").write_bytes(b"".join(lines))
    return directory


def line(value: Any) -> bytes:
    source = dump_json(value)
    return b"%08x %d %b\n" % (zlib.crc32(source), len(source), source)


def said(number: int, *events: Event, name: str = "a", at: float = 1.0) -> bytes:
    return events_record(name, number, events, at)


def written_lives(directory: Path, *names: str) -> list[bytes]:
    """The lines of whole lives, one after the other."""
    journal = open_journal(directory)
    for name in names:
        live(journal, name, ["one ", "two ", "three"])
    data = b"".join(path.read_bytes() for path in segments(journal.directory))
    journal.close()
    return data.splitlines(keepends=True)


# --- replaying -------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    walk=walks,
    policy=st.builds(SessionPolicy, client_gone=st.sampled_from(ClientGone)),
    include_usage=st.booleans(),
    choices=st.integers(1, 2),
    limit=st.sampled_from([1, 10**9]),
)
def test_a_replayed_session_ends_in_the_record_that_it_saved(
    walk: list[tuple[Event, float]],
    policy: SessionPolicy,
    include_usage: bool,
    choices: int,
    limit: int,
) -> None:
    """Whatever happened, the record replayed is the record that the session saved; of a session
    that saved none it is its words so far, failed as `process_died`."""
    request = asked(include_usage=include_usage, choices_expected=choices, created_at=1e9 + 0.1)
    session, now = StreamSession(request, policy), request.created_at
    effects: list[Effect] = []
    with TemporaryDirectory(prefix="verbatim-") as path, segments_of(limit):
        journal = open_journal(Path(path))
        assert journal.begin(request, policy)
        last_at = now
        for event, delay in walk:
            now += delay
            if type(event) in transitions(policy.client_gone)[session.state]:
                if not isinstance(event, TimePassed) and not session.state.is_final:
                    last_at = now
                journal.append(request.completion_id, [event], now)
                effects += session.handle(event, now)
        (record,) = replayed(journal.directory)
        journal.close()
    saved = [effect.record for effect in effects if isinstance(effect, Save)]
    if not saved:
        assert (State.FAILED, PROCESS_DIED) == (record.state, record.failure)
        assert session.transcript.choices() == record.choices
        assert last_at == record.finished_at
        return
    assert saved == [record]


def test_events_of_one_line_are_replayed_one_by_one(tmp_path: Path) -> None:
    """What came in one read and was written in one line ends at its own end."""
    journal = open_journal(tmp_path)
    begin(journal, "chatcmpl-1")
    events = [ChunkReceived(text_chunk("a")), ClientLeft(), ChunkReceived(text_chunk("late"))]
    journal.append("chatcmpl-1", events, 2.0)
    (record,) = replayed(journal.directory)
    assert (State.CLIENT_GONE, "a", 2.0) == (record.state, words(record), record.client_left_at)
    journal.close()


def test_readers_that_came_and_went_are_replayed(tmp_path: Path) -> None:
    """A wait that was over ends the session here too, one that somebody ended leaves no moment of a
    leaving, and of a session that was killed while it waited the last leaving is kept."""
    journal = open_journal(tmp_path)
    for name in ("over", "ended", "killed"):
        assert journal.begin(asked(completion_id=name), SessionPolicy(ClientGone.WAIT))
        say(journal, name, "some ")
        journal.append(name, [ClientLeft()], 2.0)
        say(journal, name, "words", 3.0)
    journal.append("over", [WaitExpired()], 32.0)
    journal.append("ended", [ClientReturned(), UpstreamFinished()], 31.0)
    over, ended, killed = replayed(journal.directory)
    assert (State.CLIENT_GONE, CLIENT_LEFT, 2.0) == (over.state, over.failure, over.client_left_at)
    assert (State.COMPLETED, None, None) == (ended.state, ended.failure, ended.client_left_at)
    assert (PROCESS_DIED, 2.0) == (killed.failure, killed.client_left_at)
    assert ["some words"] * 3 == [words(record) for record in (over, ended, killed)]
    journal.close()


def test_a_wait_whose_beginning_was_lost_still_has_a_moment(tmp_path: Path) -> None:
    """Where a disk has eaten the line of the leaving, the end of the wait counts as one."""
    journal = open_journal(tmp_path)
    assert journal.begin(asked(completion_id="a"), SessionPolicy(ClientGone.WAIT))
    say(journal, "a", "some ")
    journal.append("a", [ClientLeft()], 2.0)
    journal.append("a", [WaitExpired()], 32.0)
    (path,) = segments(journal.directory)
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    (record,) = replayed(path.parent)
    assert (State.CLIENT_GONE, CLIENT_LEFT) == (record.state, record.failure)
    assert (32.0, False) == (record.client_left_at, record.whole)


def test_an_event_that_could_not_happen_is_replayed_as_it_was_handled(tmp_path: Path) -> None:
    """An event that couldn't happen was journaled before that was known; the failure that
    followed ends the session here too, with its words."""
    journal = open_journal(tmp_path)
    begin(journal, "a")
    say(journal, "a", "shown")
    journal.append("a", [UpstreamFinished(), UpstreamFinished()], 2.0)
    begin(journal, "b")
    say(journal, "b", "shown")
    journal.append("b", [AttemptStarted("demo")], 2.0)
    journal.append("b", [UpstreamFailed(OWN_FAULT)], 3.0)
    a, b = replayed(journal.directory)
    assert (State.COMPLETED, "shown") == (a.state, words(a))
    assert (State.FAILED, OWN_FAULT, "shown") == (b.state, b.failure, words(b))
    journal.close()


def test_a_killed_session_keeps_every_word(tmp_path: Path) -> None:
    """Without its end a session failed, and says truthfully why."""
    journal = open_journal(tmp_path)
    begin(journal, "a")
    for text in ("Nothing ", "is ", "lost"):
        say(journal, "a", text, 7.0)
    journal.append("a", [ChunkReceived(finish_chunk())], 8.0)
    begin(journal, "b")
    journal.close()
    a, b = replayed(journal.directory)
    assert "Nothing is lost" == words(a)
    assert (State.FAILED, "process_died", True) == (a.state, PROCESS_DIED.code, a.whole)
    assert (8.0, 4) == (a.finished_at, a.chunk_count)
    assert ((), State.FAILED, False, 0) == (b.choices, b.state, b.whole, b.chunk_count)


def test_records_come_back_in_the_order_of_their_ends(tmp_path: Path) -> None:
    """Interleaved over several segments, each is its own; those without an end come last."""
    with segments_of(700):
        journal = open_journal(tmp_path)
        names = ["a", "b", "c", "d"]
        for name in names:
            begin(journal, name)
        for number in range(3):
            for name in names:
                say(journal, name, f"{name}{number} ")
        for name in ("c", "a", "d"):
            journal.append(name, [UpstreamFinished()], 9.0)
        assert len(segments(journal.directory)) > 3
        records = replayed(journal.directory)
        journal.close()
    assert ["c", "a", "d", "b"] == ids(records)
    assert ["c0 c1 c2 ", "a0 a1 a2 ", "d0 d1 d2 ", "b0 b1 b2 "] == [words(it) for it in records]
    assert [State.COMPLETED] * 3 + [State.FAILED] == [record.state for record in records]


# --- gaps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", range(6))
def test_a_gap_is_never_called_complete(tmp_path: Path, lost: int) -> None:
    """With any one line lost, the words of all others are kept, and the completion failed."""
    lines = written_lives(tmp_path, "a")
    assert 6 == len(lines)
    (record,) = replayed(write(tmp_path / "gap", *lines[:lost], *lines[lost + 1 :]))
    texts = ["", "one ", "two ", "three", "", ""]
    assert "".join(texts[:lost] + texts[lost + 1 :]) == words(record)
    assert State.FAILED == record.state
    last = lost == 5  # then nothing shows that there was more
    assert (PROCESS_DIED if last else JOURNAL_DAMAGED) == record.failure
    assert last == record.whole
    assert ("stop" if last else None) == record.finish_reason


def test_an_ending_that_was_no_success_stays_itself(tmp_path: Path) -> None:
    """Damage doesn't replace what is known to have gone wrong."""
    failure = Failure("idle_timeout", "Silence.")
    chunks = [ChunkReceived(text_chunk(text)) for text in "ab"]
    (record,) = replayed(
        write(tmp_path, said(2, chunks[0]), said(4, chunks[1]), said(5, UpstreamFailed(failure)))
    )
    assert (State.FAILED, failure, "ab") == (record.state, record.failure, words(record))
    assert not record.whole


async def test_words_without_their_beginning_are_saved(tmp_path: Path, database_url: str) -> None:
    """Who asked is lost, what was said is kept: both stores take the record."""
    lines = written_lives(tmp_path, "chatcmpl-x")
    replay = Replay(segments(write(tmp_path / "headless", *lines[1:])))
    (record,) = await collect(replay)
    assert ("one two three", "chatcmpl-x") == (words(record), record.completion_id)
    store = await PostgresStore.open(database_url)
    stores: list[Store] = [store, MemoryStore()]
    for kept in stores:
        await kept.save([record])
        (answer,) = await kept.answer("chatcmpl-x")
        assert ("one two three", "partial") == (answer.content, answer.state)
        found = await kept.find("chatcmpl-x")
        assert found is not None and found.error is not None
        assert "journal_damaged" == found.error["code"]
    await store.close()


def test_damage_is_counted_and_a_torn_end_is_not(tmp_path: Path) -> None:
    """A torn end is what a kill leaves; damage in the middle is a disk to look at."""
    lines = written_lives(tmp_path, "a", "b")
    torn = Replay(segments(write(tmp_path / "torn", *lines[:-1], lines[-1][:20])))
    with capture_logs() as logs:
        asyncio.run(collect(torn))
    assert (0, ["info"]) == (torn.damages, [entry["log_level"] for entry in logs])
    bad = Replay(segments(write(tmp_path / "bad", *lines[:3], b"garbage", *lines[4:])))
    with capture_logs() as logs:
        a, b = asyncio.run(collect(bad))
    assert 1 == bad.damages
    (entry,) = logs
    assert ("journal damaged", "error", 7) == (entry["event"], entry["log_level"], entry["bytes"])
    assert sum(map(len, lines[:3])) == entry["offset"]
    assert [JOURNAL_DAMAGED, None] == [a.failure, b.failure]


# --- what is left out -------------------------------------------------------------------------


def test_only_the_completions_asked_for_are_replayed(tmp_path: Path) -> None:
    """With a filter, nobody else is replayed."""
    with segments_of(800):
        journal = open_journal(tmp_path)
        expected = [live(journal, name, ["x", name]) for name in ("a", "b", "c", "d")]
        replay = Replay(segments(journal.directory), {"b", "d", "unknown"})
        assert [expected[1], expected[3]] == asyncio.run(collect(replay))
        journal.close()


@pytest.mark.parametrize("place", [0, 6, 12])
def test_a_completion_that_was_saved_is_not_brought_back(tmp_path: Path, place: int) -> None:
    """Wherever the mark stands, in whichever segment: a completion that was deleted from the
    store after its commit must not return with a crash."""
    lines = written_lives(tmp_path, "a", "b")
    lines.insert(place, saved_line(["a"]))
    directory = write(tmp_path / "marked", *lines[:4])
    (directory / "000002.jsonl").write_bytes(b"".join(lines[4:]))
    assert ["b"] == ids(replayed(directory))


STRANGE = [
    {"snapshot": 1},
    {"id": "a"},
    {"id": ["a"], "n": 1, "at": 1.0, "events": []},
    {"id": None, "n": 1, "at": 1.0, "events": [{"chunk": {}}]},
    {"id": "z", "n": 0, "at": 0.0, "request": {"completion_id": "z"}, "policy": {}},
    {"id": "z", "n": 0, "at": 0.0, "request": None, "policy": None},
    {"id": "z", "n": 1, "at": None, "events": [{"event": "ClientLeft"}]},
]


@pytest.mark.parametrize("strange", STRANGE)
def test_a_line_of_another_kind_is_passed_over(tmp_path: Path, strange: Any) -> None:
    """What another version of the service wrote is logged and counted, and spoils no other."""
    lines = written_lives(tmp_path, "a", "b")
    replay = Replay(segments(write(tmp_path / "strange", *lines[:8], line(strange), *lines[8:])))
    with capture_logs() as logs:
        records = asyncio.run(collect(replay))
    assert ["a", "b"] == ids(records)[:2]
    assert [State.COMPLETED] * 2 == [record.state for record in records[:2]]
    if strange.get("id") != "a":  # that is over by then, and nobody looks at it any more
        assert ["journal record not understood"] == [entry["event"] for entry in logs]
        assert 1 == replay.damages


@pytest.mark.parametrize(
    "event",
    [
        {"event": "Unheard"},
        {"event": "UpstreamFailed", "failure": {"odd": 1}},
        {"chunk": {"choices": [5]}},
        {"chunk": 7},
        3,
    ],
)
def test_an_event_of_another_kind_leaves_a_gap(tmp_path: Path, event: Any) -> None:
    """Events that this version doesn't know may have held words: the completion that they belong
    to is not called complete, its other words are kept, and the others aren't touched."""
    lines = written_lives(tmp_path, "a", "b")
    lines[3] = line({"id": "a", "n": 3, "at": 0.25, "events": [event]})
    replay = Replay(segments(write(tmp_path / "strange", *lines)))
    a, b = asyncio.run(collect(replay))
    assert (State.FAILED, JOURNAL_DAMAGED, "one two ") == (a.state, a.failure, words(a))
    assert (State.COMPLETED, "one two three") == (b.state, words(b))
    assert 1 == replay.damages


def test_fields_of_another_version_are_no_obstacle(tmp_path: Path) -> None:
    """A request with a field more is still a request."""
    lines = written_lives(tmp_path, "a")
    request = {"completion_id": "a", "created_at": 0.0, "trace_id": "", "owner": "me"}
    request |= {"agent": "demo", "model": "demo", "messages": [], "priority": "high"}
    beginning = {"id": "a", "n": 0, "at": 0.0, "request": request, "policy": {"odd": 1}, "v": 2}
    (record,) = replayed(write(tmp_path / "newer", line(beginning), *lines[1:]))
    assert ("me", "one two three") == (record.request.owner, words(record))
    assert State.COMPLETED == record.state


def test_a_segment_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    """Rather than bring half of the words back, replaying ends with an OSError."""
    directory = write(tmp_path / "journal", *written_lives(tmp_path, "a"))
    (directory / "000002.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        replayed(directory)


# --- the event loop ---------------------------------------------------------------------------


async def test_replaying_leaves_the_loop_its_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams go on while journals are read: no stretch is longer than a few milliseconds."""
    monkeypatch.setattr(replay_module, "_TURN_SECONDS", 0.0)  # a turn between any two lines
    directory = write(tmp_path / "journal", *written_lives(tmp_path, *map(str, range(50))))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    assert 50 == len(await collect(Replay(segments(directory))))
    counting.cancel()
    assert turns >= 50 * 6
