"""Repeated chunks are a parsed chunk for each text, to all who are told: clients, the record, the
journal."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.journal import Fsync, Journal
from db.journal.format import events_of, events_record
from db.journal.reading import Damage, read_lines
from service.agents.openai.pattern import learn
from service.wire import ChunkEncoder, decode_json
from statemachine import (
    ChunkPattern,
    ChunkReceived,
    ChunkRun,
    ClientGone,
    ClientLeft,
    Effect,
    Event,
    JsonObject,
    ParsedChunk,
    RepeatedChunks,
    Save,
    SendChunk,
    SessionPolicy,
    StreamSession,
    UpstreamFinished,
)
from statemachine.chunks import text_field
from statemachine.tape import Cursor, Tape
from tests.db.journal.journals import replayed
from tests.service.agents.test_pattern import WRITERS, Write
from tests.service.wire.test_encoder import data_of
from tests.statemachine.conftest import asked, chunk, finish_chunk, text_chunk

USAGE = {"choices": [], "usage": {"total_tokens": 5, "completion_tokens": 3}}


def pattern_of(payload: Any, write: Write) -> ChunkPattern:
    """What is learned of this chunk, as this writer puts it."""
    key = text_field(payload)
    assert key is not None
    text = write(payload)
    pattern = learn(text, decode_json(text), key)
    assert pattern is not None
    return pattern


def repeated(pattern: ChunkPattern, said: Sequence[str], write: Write) -> RepeatedChunks:
    """So many chunks of the pattern; where it has paddings, each has one that is like no other."""
    lines = list(map(write, said))
    if pattern.between:
        paddings = [write(f"{number} {text}") for number, text in enumerate(said)]
        lines = list(map(pattern.between.join, zip(lines, paddings, strict=True)))
    return RepeatedChunks(pattern, said, b"\n".join(lines))


def received(pattern: ChunkPattern, said: Sequence[str], write: Write) -> ChunkReceived:
    """The event that tells of them."""
    return ChunkReceived(repeated(pattern, said, write))


def one_by_one(event: Event) -> list[Event]:
    """The event, told chunk by chunk."""
    if not isinstance(event, ChunkReceived):
        return [event]
    return [ChunkReceived(payload) for payload in chunks_in(event.run)]


def chunks_in(run: ChunkRun) -> list[JsonObject]:
    if isinstance(run, ParsedChunk):
        return [run.payload]
    before, after = run.pattern.before, run.pattern.after
    chunks = [decode_json(before + line + after) for line in run.literals.split(b"\n")]
    assert [run.pattern.chunk(text).keys() for text in run.texts] == [it.keys() for it in chunks]
    return chunks


texts = st.text(max_size=6) | st.sampled_from(
    [
        '"\\',
        "\n\n",
        "\r",
        "\0",
        "\0\0",
        "\u2028",
        "🙂",
        'data: {"choices":[]}\n\n',
        '"}}]}',
        '"a","b"',
    ]
)
somewhat = st.none() | texts | st.integers(-5, 5) | st.just({"a": ["b", {"c": None}]})
choice_fields = st.fixed_dictionaries(
    {}, optional={"index": st.sampled_from([0, 1, None]), "filter": somewhat, "logprobs": st.none()}
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "created": st.sampled_from([0, 8, None, "7"]),
        "id": texts,
        "usage": st.none() | st.just(5),
        "fingerprint": somewhat,
        "\0": texts,
        "obfuscation": texts,
    },
)


REPEATABLE: list[Any] = [{}, {"role": None}, {"refusal": None}]
"""What stands beside the text in chunks that repeat. One that says a role doesn't."""


@st.composite
def chunks_of_text(draw: st.DrawFn, beside: Any) -> Any:
    delta = dict(draw(st.sampled_from(beside)))
    delta[draw(st.sampled_from(["content", "content", "reasoning_content", "id"]))] = draw(texts)
    payload = {**chunk(delta), **draw(fields)}
    payload["choices"][0].update(draw(choice_fields))
    return payload


payloads = chunks_of_text([*REPEATABLE, {"role": "assistant"}])
writers = st.sampled_from(WRITERS)
patterns = st.builds(pattern_of, chunks_of_text(REPEATABLE), writers)


@st.composite
def repeated_chunks(draw: st.DrawFn, patterns: Any = patterns) -> RepeatedChunks:
    said = draw(st.lists(texts, min_size=1, max_size=4))
    return repeated(draw(patterns), said, draw(writers))


repeats_received = st.builds(ChunkReceived, repeated_chunks())


# --- what clients read ----------------------------------------------------------------------------


@settings(max_examples=75, deadline=None)
@given(
    runs=st.lists(repeated_chunks() | st.builds(ParsedChunk, payloads), min_size=1, max_size=5),
    repeats=st.integers(1, 2),
    include_usage=st.booleans(),
)
def test_repeats_are_encoded_as_their_chunks_would_be(
    runs: list[ChunkRun], repeats: int, include_usage: bool
) -> None:
    """Encoded together or one by one, each text is the event that its chunk would be."""
    runs = runs * repeats  # the same patterns once more, with others between
    quick, slow = (ChunkEncoder("chatcmpl-1", "ours", 100, include_usage) for _ in range(2))
    together = [quick.encode_all(runs[:2]), *[quick.encode_all([run]) for run in runs[2:]]]
    expected = [data_of(slow.encode(payload)) for run in runs for payload in chunks_in(run)]
    events = b"".join(together).split(b"\n\n")
    assert b"" == events.pop()
    assert expected == [data_of(event + b"\n\n") for event in events]


@pytest.mark.parametrize("said", ["", "\0", "\0\0", '\0"'])
@pytest.mark.parametrize("field", ["", "\0", "\0\0", "\0\0\0"])
def test_a_text_is_put_in_its_own_place(field: str, said: str) -> None:
    """Other fields may hold anything, even what the text's place is looked for by."""
    payload = {**text_chunk("a"), "system_fingerprint": field, field: field}
    pattern = pattern_of(payload, json_of)
    encoder = ChunkEncoder("\0", "\0\0", 1, False)
    sent = data_of(encoder.encode_run(repeated(pattern, [said], json_of)))
    assert sent == data_of(encoder.encode(pattern.chunk(said)))
    padded = pattern_of({**payload, "obfuscation": field}, json_of)
    run = repeated(padded, [said, field], json_of)
    events = encoder.encode_run(run).split(b"\n\n")[:-1]
    for sent_event, expected in zip(events, chunks_in(run), strict=True):
        assert data_of(sent_event + b"\n\n") == data_of(encoder.encode(expected))


def json_of(value: Any) -> bytes:
    return json.dumps(value).encode()


# --- what is kept ---------------------------------------------------------------------------------

OTHERS: list[Any] = [
    finish_chunk(),
    chunk({}, "length", index=1),
    USAGE,
    {"choices": []},
    text_chunk("more"),
    chunk({"content": None, "role": "assistant"}),
    chunk({"content": [{"type": "text", "text": "part"}]}),
    chunk({"reasoning_content": {"text": "thought"}}),
    chunk({"reasoning_content": ["thought"]}),
    chunk({"content": 5, "id": 5}),
    chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"arguments": "{"}}]}),
    chunk({"content": "changed"}, fingerprint="changed"),
    {**chunk({"content": "b"}), "choices": [{"delta": {"content": "b"}, "filter": "changed"}]},
    chunk({"content": "c"}, index=1),
]
SOME_PATTERNS = [
    pattern_of(payload, json_of)
    for payload in (
        text_chunk("a"),
        chunk({"content": "a"}, fingerprint="constant", obfuscation="b"),
        chunk({"content": "a"}, index=1),
        chunk({"reasoning_content": "a"}),
        chunk({"id": "a"}, created=8),
        {**text_chunk("a"), "choices": [{"delta": {"content": "a"}, "filter": {"safe": True}}]},
    )
]
sentences = st.lists(st.sampled_from(["", "", "a", "é\n"]), min_size=1, max_size=3)
steps: st.SearchStrategy[Event] = (
    st.builds(received, st.sampled_from(SOME_PATTERNS), sentences, st.just(json_of))
    | st.builds(received, st.sampled_from(SOME_PATTERNS[:2]), sentences, st.just(json_of))
    | st.sampled_from([ChunkReceived(payload) for payload in OTHERS])
    | repeats_received
)


def handled(session: StreamSession, events: Sequence[Event], now: float) -> list[Effect]:
    """The effects of events, with runs told chunk by chunk."""
    effects = [effect for event in events for effect in session.handle(event, now)]
    return [
        one
        for effect in effects
        for one in (
            [SendChunk(payload) for payload in chunks_in(effect.run)]
            if isinstance(effect, SendChunk)
            else [effect]
        )
    ]


def visible(session: StreamSession) -> Any:
    """What a driver sees of a session, and what its timers go by."""
    return (
        *(session.state, session.opened, session.attached, session.milestones, session.wakes_at),
        *(session.first_token_at, session.transcript.choices(), session.transcript.extra),
        *(session.transcript.chunk_count, session.transcript.is_whole),
    )


@settings(max_examples=100, deadline=None)
@given(
    told=st.lists(steps, max_size=12),
    stream=st.booleans(),
    expected=st.integers(1, 2),
    leaves_after=st.integers(0, 20),
)
def test_repeats_give_a_session_what_single_chunks_give(
    told: list[Event], stream: bool, expected: int, leaves_after: int
) -> None:
    """In any order with others, a session has the same effects, looks the same at every moment,
    and keeps the same record."""
    request = asked(stream=stream, choices_expected=expected, include_usage=True)
    policy = SessionPolicy(client_gone=ClientGone.FINISH)
    quick, slow = (StreamSession(request, policy) for _ in range(2))
    begun = [ChunkReceived(pattern.payload) for pattern in SOME_PATTERNS]
    for number, event in enumerate([*begun, *told]):
        events = [event, ClientLeft()] if number == leaves_after else [event]
        long = [one for event in events for one in one_by_one(event)]
        assert handled(slow, long, number) == handled(quick, events, number)
        assert visible(slow) == visible(quick)
    end = handled(quick, [UpstreamFinished()], 99.0)
    assert handled(slow, [UpstreamFinished()], 99.0) == end
    (save,) = [effect for effect in end if isinstance(effect, Save)]
    kept = {choice.index: choice.message for choice in save.record.choices}
    assert kept.keys() >= {0, 1}


def test_only_a_text_that_isnt_empty_is_a_token() -> None:
    """Empty texts neither end the wait for the first token nor show that the model lives."""
    session = StreamSession(asked(), SessionPolicy(idle_seconds=7.0))

    def noted_after(now: float, *said: str) -> tuple[float | None, int, float]:
        session.handle(received(SOME_PATTERNS[0], said, json_of), now)
        return session.first_token_at, session.milestones, session.wakes_at

    session.handle(ChunkReceived(text_chunk("")), 1.0)
    assert (None, 0, 17.0) == noted_after(2.0, "", "")  # then a ping is due
    assert (3.0, 1, 10.0) == noted_after(3.0, "", "a", "")
    assert (3.0, 1, 10.0) == noted_after(4.0, "", "")
    assert (3.0, 1, 12.0) == noted_after(5.0, "b")


# --- what is journaled ----------------------------------------------------------------------------

ids = st.sampled_from(["chatcmpl-1", "", '"', "\0\n", "é", "\ud800"])
times = st.floats(0, 1e10)


@settings(max_examples=50, deadline=None)
@given(
    completion_id=ids,
    number=st.integers(0),
    told=st.lists(
        repeats_received | st.builds(ChunkReceived, payloads) | st.just(UpstreamFinished()),
        min_size=1,
        max_size=4,
    ),
    now=times,
)
def test_the_journal_reads_back_every_chunk(
    completion_id: str, number: int, told: list[Event], now: float
) -> None:
    """A record with repeats in it, among other events or not, holds each of their chunks."""
    line = events_record(completion_id, number, told, now)
    assert 1 == line.count(b"\n")
    (record,) = read_lines(line)
    assert not isinstance(record, Damage)
    assert (record["id"], record["n"], record["at"]) == (completion_id, number, now)
    assert [one for event in told for one in one_by_one(event)] == events_of(record)


@settings(max_examples=75, deadline=None)
@given(told=st.lists(st.lists(steps, min_size=1, max_size=2), max_size=12))
def test_a_session_read_back_from_texts_alone_ends_the_same(told: list[list[Event]]) -> None:
    """Where only texts were written of chunks like those before, what was written gives the record
    that the chunks gave."""
    request, policy = asked(), SessionPolicy()
    begun: list[list[Event]] = [[ChunkReceived(one.payload)] for one in SOME_PATTERNS]
    twice = [events for read in told for events in (read, read)]
    reads: list[list[Event]] = [*begun, *twice, [UpstreamFinished()]]
    with TemporaryDirectory() as directory:
        journal = Journal.open(Path(directory), Fsync.NEVER, 2**30)
        assert journal.begin(request, policy)
        for events in reads:
            journal.append(request.completion_id, events, 9.0)
        (restored,) = replayed(journal.directory)
        journal.forget([request.completion_id])
        journal.close()
    live = StreamSession(request, policy)
    for events in reads:
        effects = [effect for event in events for effect in live.handle(event, 9.0)]
    (record,) = (effect.record for effect in effects if isinstance(effect, Save))
    assert record == restored
    assert record.tape is not None and restored.tape is not None
    assert sent_from(record.tape) == sent_from(restored.tape)


def sent_from(tape: Tape) -> bytes:
    """What a reader of all of a tape is sent."""
    encoder = ChunkEncoder("chatcmpl-1", "demo", 1, include_usage=True)
    sent, cursor = b"", Cursor(tape)
    while block := cursor.read():
        sent += encoder.encode_written(block)
    return sent


def test_only_the_text_is_written_of_chunks_like_the_one_before(tmp_path: Path) -> None:
    """What they have in common is written once, until there is another such pattern."""
    request = asked()
    journal = Journal.open(tmp_path, Fsync.NEVER, 2**30)
    assert journal.begin(request, SessionPolicy())
    plain, padded, *_ = SOME_PATTERNS
    assert padded.between
    finish = ChunkReceived(finish_chunk())
    said = [(plain, "b"), (plain, "c"), None, (plain, "e"), (padded, "f"), (padded, "g")]
    for item in said:
        event = finish if item is None else received(item[0], [item[1], "é"], json_of)
        journal.append(request.completion_id, [event], 9.0)
    (segment,) = journal.segments_of([request.completion_id])
    _, *lines = read_lines(segment.read_bytes())
    kinds = []
    for number, line in enumerate(lines, 1):
        assert not isinstance(line, Damage)
        assert number == line["n"]
        kinds.append("pattern" if "pattern" in line else line.get("like", "whole"))
    assert ["pattern", 1, "whole", 1, "pattern", 5] == kinds
    journal.close()
