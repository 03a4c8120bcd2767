"""The journal's lines: written and read back exactly, and what damage to a file costs."""

import json
import re
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.journal.format import (
    begin_line,
    dump_json,
    events_of,
    events_record,
    load_json,
    request_of,
    saved_line,
)
from db.journal.reading import Damage, read_lines, read_saved
from service.wire.jsontext import DEEPEST_NESTING, decode_json
from statemachine import (
    AttemptStarted,
    ChunkReceived,
    ClientGone,
    ClientLeft,
    ClientReturned,
    DeadlineExpired,
    DrainExpired,
    Event,
    Failure,
    SessionPolicy,
    SessionRequest,
    StopRequested,
    UpstreamFailed,
    UpstreamFinished,
    WaitExpired,
)
from tests.statemachine.conftest import asked, text_chunk

NASTY = 'NUL \0, lone \ud800 and \udc00, "quotes", \\, \n, \r\n, \u2028, é, 漢, 😀'
INFINITIES: Any = {"allow_nan": False, "allow_infinity": False}


def joined(text: str) -> str:
    """JSON has no way to write the two halves of a pair that stand side by side in one text."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


texts = st.text(st.characters(exclude_categories=()), max_size=20).map(joined)
numbers = st.floats(**INFINITIES)
leaves = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | numbers | texts
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
objects = st.dictionaries(texts, values, max_size=4).map(
    # As our decoder makes them of a client's or an upstream's bytes.
    lambda value: decode_json(json.dumps(value).encode())
)
failures = st.builds(
    Failure,
    code=texts,
    message=texts,
    type=texts,
    param=st.none() | texts,
    upstream_code=st.none() | texts,
    status=st.none() | st.integers(400, 599),
    retry_after_seconds=st.none() | numbers,
)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(ChunkReceived, objects),
    st.builds(AttemptStarted, texts, st.none() | numbers),
    st.builds(UpstreamFailed, failures),
    st.builds(DeadlineExpired, failures),
    st.sampled_from([UpstreamFinished(), ClientLeft(), ClientReturned(), WaitExpired()]),
    st.sampled_from([StopRequested(), DrainExpired()]),
)
requests = st.builds(
    SessionRequest,
    completion_id=texts,
    created_at=numbers,
    trace_id=texts,
    owner=texts,
    agent=texts,
    model=texts,
    messages=st.lists(objects, max_size=3),
    conversation_key=st.none() | texts,
    tools=st.none() | st.lists(objects, max_size=2),
    parameters=objects,
    metadata=st.none() | objects,
    choices_expected=st.integers(1, 128),
    include_usage=st.booleans(),
    stream=st.booleans(),
)
policies = st.builds(
    SessionPolicy,
    client_gone=st.sampled_from(ClientGone),
    client_gone_wait_seconds=numbers,
    keep_alive_interval_seconds=st.none() | numbers,
    idle_seconds=st.none() | numbers,
    total_seconds=st.none() | numbers,
)

LINES = [
    begin_line(asked(), SessionPolicy()),
    events_record("chatcmpl-1", 1, [AttemptStarted("demo", 60.0)], 0.5),
    events_record("chatcmpl-1", 2, [ChunkReceived(text_chunk(NASTY))], 0.75),
    saved_line(["chatcmpl-0"]),
    events_record("chatcmpl-1", 3, [ChunkReceived(text_chunk("漢")), UpstreamFinished()], 1.0),
]
WHOLE = b"".join(LINES)
STARTS = [sum(map(len, LINES[:count])) for count in range(len(LINES) + 1)]


def lines_in(data: bytes) -> list[Any]:
    return [item for item in read_lines(data) if not isinstance(item, Damage)]


def damages_in(data: bytes) -> list[Damage]:
    return [item for item in read_lines(data) if isinstance(item, Damage)]


READ = lines_in(WHOLE)


def line_of(body: bytes) -> bytes:
    """A line with a right header, whatever is in it."""
    return b"%08x %d %b\n" % (zlib.crc32(body), len(body), body)


def nested(levels: int) -> Any:
    value: Any = "x"
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


# --- writing and reading back -----------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(written=st.lists(events, min_size=1, max_size=4), number=st.integers(0), at=numbers)
def test_events_are_read_back_as_they_were(written: list[Event], number: int, at: float) -> None:
    """Every kind of event, with whatever text and numbers in it, comes back equal."""
    (line,) = lines_in(events_record("chatcmpl-\ud800", number, written, at))
    assert ("chatcmpl-\ud800", number, at) == (line["id"], line["n"], line["at"])
    assert written == events_of(line)


@settings(max_examples=60, deadline=None)
@given(request=requests, policy=policies)
def test_a_beginning_is_read_back_as_it_was(request: SessionRequest, policy: SessionPolicy) -> None:
    """A request and its policy come back equal, down to the kinds of their sequences."""
    (line,) = lines_in(begin_line(request, policy))
    assert (request, policy) == request_of(line)
    assert 0 == line["n"]


def test_nesting_as_deep_as_any_request_is_read_back() -> None:
    """What the service accepts at its deepest can be journaled."""
    request = asked(messages=[{"role": "user", "content": nested(DEEPEST_NESTING)}])
    chunk = ChunkReceived({"choices": [], "deep": nested(DEEPEST_NESTING)})
    beginning, said = lines_in(
        begin_line(request, SessionPolicy()) + events_record("chatcmpl-1", 1, [chunk], 0.0)
    )
    assert request == request_of(beginning)[0]
    assert [chunk] == events_of(said)


@pytest.mark.parametrize("value", [2**64 - 1, -(2**63), NASTY, {NASTY: [10**30, "\ud800"]}, 5e-324])
def test_numbers_and_texts_come_back_exactly(value: Any) -> None:
    """Numbers and texts at the edges of what orjson takes come back exactly."""
    assert value == load_json(dump_json(value))
    assert b"\n" not in dump_json(value)


@settings(max_examples=50, deadline=None)
@given(written=st.lists(events, min_size=1, max_size=3))
def test_ordinary_tools_can_take_a_line_apart(written: list[Event]) -> None:
    """A checksum, a length and JSON, separated by single spaces, and no newline within."""
    line = events_record("chatcmpl-1", 1, written, 1.0)
    assert 1 == line.count(b"\n")
    checksum, length, body = line.rstrip(b"\n").split(b" ", 2)
    assert re.fullmatch(rb"[0-9a-f]{8}", checksum)
    assert (zlib.crc32(body), len(body)) == (int(checksum, 16), int(length))
    assert {"id", "n", "at", "events"} == json.loads(body).keys()


# --- damage -----------------------------------------------------------------------------------


def test_a_whole_file_has_no_damage() -> None:
    """Undamaged, every line is there and nothing else."""
    assert [] == damages_in(WHOLE)
    assert len(LINES) == len(READ)


def test_a_torn_end_costs_the_torn_line() -> None:
    """Cut anywhere, a file keeps every line that ends before the cut; the rest is a tail."""
    for length in range(len(WHOLE)):
        whole = sum(1 for start in STARTS[1:] if start - 1 <= length)
        torn = length - STARTS[whole]
        expected = [Damage(STARTS[whole], torn, is_tail=True)] if torn > 0 else []
        assert READ[:whole] == lines_in(WHOLE[:length]), length
        assert expected == damages_in(WHOLE[:length]), length


@pytest.mark.parametrize("index", range(len(LINES)))
def test_a_flipped_byte_costs_at_most_its_own_line(index: int) -> None:
    """Wherever a byte changes, digits and newline included, all other lines are read."""
    others = READ[:index] + READ[index + 1 :]
    for offset in range(STARTS[index], STARTS[index + 1]):
        was = WHOLE[offset]
        changed = {was ^ (1 << bit) for bit in range(8)} | {*b"\n 0\0"}
        for byte in changed - {was}:
            data = WHOLE[:offset] + bytes([byte]) + WHOLE[offset + 1 :]
            found = lines_in(data)
            assert found in (others, READ), (offset, byte)
            if found == others:
                (damage,) = damages_in(data)
                assert STARTS[index] == damage.offset
                assert (index == len(LINES) - 1) == damage.is_tail


@settings(max_examples=60, deadline=None)
@given(garbage=st.binary(min_size=1, max_size=40), index=st.integers(0, len(LINES)))
def test_garbage_between_lines_costs_nothing(garbage: bytes, index: int) -> None:
    """Garbage hides no line, even where no newline ends it."""
    data = WHOLE[: STARTS[index]] + garbage + WHOLE[STARTS[index] :]
    assert READ == lines_in(data)
    assert [index == len(LINES)] == [damage.is_tail for damage in damages_in(data)]


def test_a_torn_line_in_the_middle_hides_none() -> None:
    """A line written in part, with the next one right behind it, costs itself alone."""
    for length in range(1, len(LINES[2])):
        data = b"".join((*LINES[:2], LINES[2][:length], *LINES[3:]))
        whole = length == len(LINES[2]) - 1  # only its newline is missing
        assert READ[:2] + READ[2:3] * whole + READ[3:] == lines_in(data), length


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, len(WHOLE)), length=st.integers(1, 300))
def test_a_hole_of_zeros_costs_what_it_covers(start: int, length: int) -> None:
    """A block that never reached the disk costs the lines that it touches."""
    end = min(start + length, len(WHOLE))
    data = WHOLE[:start] + bytes(end - start) + WHOLE[end:]
    untouched = [
        line
        for line, begins, ends in zip(READ, STARTS[:-1], STARTS[1:], strict=True)
        if end <= begins or start >= ends - 1
    ]
    assert untouched == lines_in(data)


@pytest.mark.parametrize("data", [bytes(5000), b"\n" * 5000, b'00000000 9 {"' * 400, b"\xff" * 99])
def test_a_file_of_garbage_is_one_damage(data: bytes) -> None:
    """Nothing is read of zeros, newlines and beginnings of nothing."""
    assert [Damage(0, len(data), is_tail=True)] == list(read_lines(data))


@given(data=st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    """Whatever a file holds, reading it ends."""
    assert [] == lines_in(data)
    assert [] == list(read_saved(data))


@pytest.mark.parametrize("body", [b"[]", b"5", b'"text"', b"null", b"{", b"", b'{"a":1}{'])
def test_a_right_checksum_does_not_make_a_line(body: bytes) -> None:
    """Only JSON objects are lines."""
    data = LINES[0] + line_of(body) + LINES[1]
    assert READ[:2] == lines_in(data)


def test_text_cannot_pose_as_a_line() -> None:
    """A line of the journal within a message is a message, also when its own line is damaged."""
    forged = saved_line(["chatcmpl-1"]).decode() + LINES[1].decode() + line_of(b"{}").decode()
    line = events_record("chatcmpl-2", 1, [ChunkReceived(text_chunk(f"x\n {forged}"))], 0.0)
    assert ["chatcmpl-0"] == list(read_saved(line + WHOLE))
    for offset in range(len(line) - 1):
        damaged = line[:offset] + b"~" + line[offset + 1 :]
        assert READ == [item for item in lines_in(damaged + WHOLE) if item in READ]
        assert len(READ) == len(lines_in(damaged + WHOLE))


# --- what is saved ----------------------------------------------------------------------------


def test_saved_completions_are_found_without_reading_the_rest() -> None:
    """The quick search names what a full reading would, damaged marks left out."""
    data = saved_line(["a", "b\ud800"]) + WHOLE + saved_line(["c"])
    assert ["a", "b\ud800", "chatcmpl-0", "c"] == list(read_saved(data))
    assert ["chatcmpl-0"] == list(read_saved(data[1:-2]))
    assert ["b"] == list(read_saved(saved_line(["a"])[1:] + saved_line(["b"])))


def test_a_journal_of_before_the_limit_has_none() -> None:
    """An answer that was shown whole comes back whole, however large it was."""
    line = json.loads(begin_line(asked(), SessionPolicy(max_answer_bytes=5)).split(b" ", 2)[2])
    assert 5 == request_of(line)[1].max_answer_bytes
    del line["policy"]["max_answer_bytes"]
    assert request_of(line)[1].max_answer_bytes is None


def test_a_journal_of_before_the_wait_is_read() -> None:
    """Its sessions never waited; the figure that they get is never asked for."""
    policy = SessionPolicy(ClientGone.FINISH)
    line = json.loads(begin_line(asked(), policy).split(b" ", 2)[2])
    del line["policy"]["client_gone_wait_seconds"]
    assert policy == request_of(line)[1]
