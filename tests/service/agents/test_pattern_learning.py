"""What is learned of an answer's chunks, when, and that it is used."""

from collections.abc import Iterable
from typing import Any

import pytest

from service.agents.openai import pattern as pattern_module
from service.agents.openai.decoder import SseDecoder
from service.agents.openai.pattern import learn
from service.wire import decode_json
from statemachine import JsonObject
from statemachine.chunks import text_field
from tests.service.agents.test_decoder import NO_LIMIT, event
from tests.service.agents.test_pattern import RUN, WRITERS, Write
from tests.statemachine.conftest import chunk

# --- it is used where it should be ----------------------------------------------------------------


def taken(pieces: Iterable[bytes]) -> list[tuple[str, ...]]:
    """The texts that each piece brought by the shortcut; none for one that went the other."""
    decoder = SseDecoder(NO_LIMIT)
    found: list[tuple[str, ...]] = []
    for piece in pieces:
        received = decoder.take(piece)
        found.append(() if received is None else tuple(received.texts))
        if received is None:
            decoder.feed(piece)
    return found


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("delta", [{"content": "a"}, {"role": "assistant", "reasoning": "a"}])
def test_a_run_takes_the_shortcut_from_its_second_chunk_on(write: Write, delta: Any) -> None:
    """The first chunk of an answer is like no other; one like the rest is enough to learn from."""

    def said(text: str) -> bytes:
        payload = chunk({key: text if value == "a" else value for key, value in delta.items()})
        return b"data: " + write(payload) + b"\n\n"

    first = b"data: " + write(chunk({"role": "assistant", "content": ""})) + b"\n\n"
    pieces = [first, said("a"), said('"é\n'), said("b") + said("") + said("c"), said("d")]
    assert [(), (), ('"é\n',), ("b", "", "c"), ("d",)] == taken(pieces)


def test_events_that_were_cut_take_the_shortcut_once_they_are_whole() -> None:
    """Neither a beginning that waits nor one that comes along keeps the rest from the shortcut."""
    pieces = [*RUN[:2], b"".join(RUN)[:-9], RUN[2][-9:] + RUN[0][:9], RUN[0][9:], RUN[1]]
    assert [(), (), ("a", "b"), ("c",), ("a",), ("b",)] == taken(pieces)


def test_a_change_of_what_was_constant_is_learned() -> None:
    """After another kind of chunk, or none at all, a run takes the shortcut from its second chunk
    on."""
    thought = [event(chunk({"reasoning": text})) for text in "abc"]
    said = [event(chunk({"content": text}, created=8)) for text in "abc"]
    pieces = [
        event(chunk({"role": "assistant"})),
        *thought,
        event({"choices": []}),
        *said,
        *thought,
    ]
    assert [(), (), ("b",), ("c",), (), *[(), ("b",), ("c",)] * 2] == taken(pieces)


def test_a_stranger_now_and_then_costs_the_shortcut_little() -> None:
    """A run with strangers in it, however long, takes the shortcut for the greater part."""
    strange = event(chunk({"content": "a", "tool_calls": []}))
    pieces = [strange if number % 10 == 0 else RUN[0] for number in range(1000)]
    assert sum(map(len, taken(pieces))) > 700


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The chunks that were learned from."""
    lessons: list[bytes] = []

    def count(text: bytes, payload: JsonObject, key: str) -> Any:
        lessons.append(text)
        return learn(text, payload, key)

    monkeypatch.setattr(pattern_module, "learn", count)
    return lessons


def test_chunks_that_come_together_are_one_lesson(lessons: list[bytes]) -> None:
    """Nothing is learned of chunks that fit what was learned before."""
    first = event(chunk({"role": "assistant"}))
    assert [(), ("a",)] == taken([first + b"".join(RUN) * 5, RUN[0]])
    assert 1 == len(lessons)


def test_a_change_between_text_and_padding_is_learned() -> None:
    """Such a chunk begins and ends as before, and is learned from all the same."""
    one, other = (
        [event(chunk({"content": text}, vendor=vendor, obfuscation="x")) for text in "abc"]
        for vendor in "yz"
    )
    assert [(), (), ("c",), (), ("b",), ("c",)] == taken([*one, *other])


def test_chunks_that_vary_each_time_are_seldom_learned_from(lessons: list[bytes]) -> None:
    """An upstream with something new in every chunk costs a lesson in 64 chunks, not one each; and
    it is noticed within as many that it has stopped doing so."""
    varying = [event(chunk({"content": "a"}, created=number)) for number in range(1500)]
    found = taken([*varying, *RUN[:1] * 100])
    assert not any(found[:1500])
    assert 10 < len(lessons) < 40
    assert all(found[1566:])


# --- what is learned -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "delta", "key"),
    [
        ({}, {"content": "a"}, "content"),
        ({}, {"content": ""}, "content"),
        ({}, {"role": None, "content": "a", "refusal": None}, "content"),
        ({}, {"role": "assistant", "content": "a", "refusal": None}, None),
        ({"usage": None, "x": [1]}, {"reasoning": "a"}, "reasoning"),
        ({}, {}, None),
        ({}, None, None),
        ({}, {"role": "assistant"}, None),
        ({}, {"content": "a", "reasoning": "b"}, None),
        ({}, {"content": "a", "tool_calls": []}, None),
        ({}, {"content": ["a"]}, None),
        ({"usage": {"total_tokens": 1}}, {"content": "a"}, None),
        ({"x_groq": {"usage": {"total_tokens": 1}}}, {"content": "a"}, None),
        ({"choices": []}, {"content": "a"}, None),
        ({"choices": None}, {"content": "a"}, None),
        ({"choices": [{"delta": {"content": "a"}}] * 2}, {}, None),
        ({"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}, {}, None),
        ({"choices": [{"delta": {"content": "a"}, "logprobs": {}}]}, {}, None),
        ({"choices": [{"delta": {"content": "a"}}]}, {}, "content"),
    ],
)
def test_only_a_chunk_with_one_growing_text_has_a_text_field(
    fields: Any, delta: Any, key: str | None
) -> None:
    """The chunk has one choice that goes on, with one text, no role and nothing that adds up."""
    assert key == text_field({**chunk(delta), **fields})


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        (b'{"choices":[{"delta":{"content":HERE}}],"content":"b"}', True),
        (b'{"choices":[{"delta":{"content": HERE}}],"n":{"content":"a"}}', True),
        (b'{"content":"a","choices":[{"delta":{"content":HERE}}]}', True),
        (b'{"choices":[{"delta":{"content":"b","content":HERE}}]}', True),
        (b'{"choices":[{"delta":{"content":HERE,"content"  :"a"}}]}', False),
        (b'{"choices":[{"delta":{"content":HERE}}],"content":"a"}', False),
        (b'{"choices":[{"delta":{"content"  :HERE}}],"n":{"content":"a"}}', False),
        (
            b'{"choices":[{"delta":{"content":HERE}}],"choices":[{"delta":{"content"  :"a"}}]}',
            False,
        ),
    ],
)
def test_a_place_is_learned_only_if_it_is_the_right_one(text: bytes, is_found: bool) -> None:
    """Where the same text stands elsewhere too, the place that counts is found, or none."""
    before, after = text.split(b"HERE")
    written = before + b'"a"' + after
    pattern = learn(written, decode_json(written), "content")
    found = None if pattern is None else (pattern.before, pattern.after)
    assert found == ((before, after) if is_found else None)


@pytest.mark.parametrize(
    ("text", "between"),
    [
        (b'{"choices":[{"delta":{"content":"a"}}],"obfuscation":"x"}', b'}}],"obfuscation":'),
        (b'{"choices":[{"delta":{"content":"a"}}], "obfuscation": "x"}', b'}}], "obfuscation": '),
        (
            b'{"choices":[{"delta":{"content":"a"}}],"n":{"obfuscation":"x"},"obfuscation":"x"}',
            b'}}],"n":{"obfuscation":"x"},"obfuscation":',
        ),
        (
            b'{"choices":[{"delta":{"content":"a"}}],"obfuscation":"y","obfuscation":"x"}',
            b'}}],"obfuscation":"y","obfuscation":',
        ),
        (b'{"obfuscation":"x","choices":[{"delta":{"content":"a"}}]}', b""),
        (b'{"obfuscation":"x","choices":[{"delta":{"content":"a"}}],"obfuscation":"x"}', b""),
        (b'{"choices":[{"delta":{"content":"a"}}],"obfuscation":"x","n":{"obfuscation":"x"}}', b""),
        (b'{"choices":[{"delta":{"content":"a"}}],"obfuscation"  :"x"}', b""),
        (b'{"choices":[{"delta":{"content":"a"}}],"obfuscation":5}', b""),
        (b'{"choices":[{"delta":{"content":"a"}}],"obfuscation":null}', b""),
    ],
)
def test_a_padding_is_learned_only_where_it_stands_behind_the_text(
    text: bytes, between: bytes
) -> None:
    """A padding elsewhere, or one that doesn't count, is constant like all the rest."""
    pattern = learn(text, decode_json(text), "content")
    assert pattern is not None
    assert between == pattern.between
    padding = b'"x"' if between else b""
    assert text == pattern.before + b'"a"' + between + padding + pattern.after


def test_a_padded_run_takes_the_shortcut_from_its_second_chunk_on() -> None:
    """OpenAI's runs are like this, and the chunk before them without a padding is no obstacle."""
    run = [event(chunk({"content": text}, obfuscation=text * 3)) for text in "abcd"]
    first = event(chunk({"role": "assistant", "content": ""}))
    assert [(), (), ("b",), ("c", "d")] == taken([first, *run[:2], run[2] + run[3]])


def test_events_that_were_sent_apart_are_read_together() -> None:
    """Each must have its blank line: if one is cut, none of them is taken."""
    decoder = SseDecoder(NO_LIMIT)
    decoder.feed(b"".join(RUN))
    received = decoder.take_events(RUN)
    assert received is not None
    assert ["a", "b", "c"] == list(received.texts)
    assert decoder.take_events([RUN[0], RUN[1][:-9]]) is None
    assert decoder.take_events([RUN[0][:-1], b"\n" + RUN[1]]) is None


@pytest.mark.parametrize("before", [RUN[0][:-9], RUN[0][:-1] + b"\r", b"data: [DONE]\n\n"])
def test_nothing_is_taken_behind_what_it_may_belong_to(before: bytes) -> None:
    """The rest of an event, the second half of a line end, and what follows the end are left to
    `feed`."""
    decoder = SseDecoder(NO_LIMIT)
    decoder.feed(b"".join(RUN) + before)
    assert decoder.take_events(RUN) is None
