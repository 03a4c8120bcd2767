"""How long folding takes as an answer grows, and how large it may grow."""

import gc
from collections.abc import Callable, Iterator
from time import process_time
from typing import Any

import pytest

from statemachine import (
    ChunkReceived,
    Save,
    SessionPolicy,
    SessionRecord,
    State,
    StreamSession,
    Transcript,
)
from statemachine.transcript import MOST_CHOICES, MOST_ITEMS
from tests.statemachine.conftest import asked, chunk, finish_chunk, text_after, text_chunk

Shape = Callable[[int], Any]
"""Number → the chunk of that number."""


def call(index: Any, **fields: Any) -> dict[str, Any]:
    function = {"name": "add", "arguments": "{}"}
    return {"index": index, "id": f"call-{index}", "function": function, **fields}


def delta(**fields: Any) -> Any:
    return chunk(fields)


SHAPES: dict[str, Shape] = {
    "text": lambda n: text_chunk("word "),
    "reasoning": lambda n: delta(reasoning="word "),
    "an empty text each": lambda n: text_chunk(""),
    "a tool call each": lambda n: delta(tool_calls=[call(n)]),
    "pieces of many tool calls": lambda n: delta(tool_calls=[call(n % 500, id="")]),
    "a new call at the same index": lambda n: delta(tool_calls=[call(0, id=str(n))]),
    "an index that is a text": lambda n: delta(tool_calls=[call(str(n))]),
    "an index that is a fraction": lambda n: delta(tool_calls=[call(n + 0.5)]),
    "an index that is true or false": lambda n: delta(tool_calls=[call(bool(n % 2), id=str(n))]),
    "an index that is a list": lambda n: delta(tool_calls=[call([n], id=str(n))]),
    "an index that is huge": lambda n: delta(tool_calls=[call(10**18 + n)]),
    "an index that is negative": lambda n: delta(tool_calls=[call(-n)]),
    "items without an index": lambda n: delta(images=[{"url": str(n)}]),
    "one thing in pieces without an index": lambda n: delta(x=[{"type": "text", "text": "a"}]),
    "parts of two types in turn": lambda n: delta(
        content=[{"type": "text" if n % 2 else "thinking", "text": "a"}]
    ),
    "text behind a part": lambda n: delta(content="word" if n else [{"type": "image"}]),
    "text and a part in turn": lambda n: delta(content="word" if n % 2 else [{"type": "image"}]),
    "text and a number in turn": lambda n: delta(x="word" if n % 2 else n),
    "a text, an object, a list": lambda n: delta(x=("word", {"a": "b"}, [n])[n % 3]),
    "lists within lists": lambda n: delta(x=[[[n]]]),
    "a list within one item": lambda n: delta(x=[{"index": 0, "parts": [{"index": n}]}]),
    "a field each": lambda n: delta(**{f"x{n}": "word"}),
    "a field of an object each": lambda n: delta(x={f"x{n}": "word"}),
    "a field of the chunk each": lambda n: {**text_chunk("a"), f"x{n}": "word"},
    "log probabilities": lambda n: {
        "choices": [{"index": 0, "delta": {}, "logprobs": {"content": [{"token": "a"}]}}]
    },
    "a choice each": lambda n: chunk({"content": "a"}, index=n),
    "a finished choice each": lambda n: chunk({"content": "a"}, "stop", index=n),
}
TIMES = 4
"""How much longer the long answer is. Folding that takes time for all that came before would take the
square of that."""


def seconds_for(shape: Shape, count: int) -> float:
    """For folding so many chunks and closing; the best of some tries."""
    payloads = [shape(number) for number in range(count)]

    def tries() -> Iterator[float]:
        for _ in range(3):
            transcript = Transcript()
            begun = process_time()
            for payload in payloads:
                transcript.fold(payload)
            transcript.choices()
            yield process_time() - begun

    gc.disable()  # it looks through all that is there, the chunks that wait to be folded too
    try:
        return min(tries())
    finally:
        gc.enable()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_longer_answer_takes_longer_in_proportion(shape: Shape) -> None:
    """A chunk costs what is in it, whatever came before, in every shape."""
    # Quadratic folding fails each time; a busy machine, now and then.
    ratios = (seconds_for(shape, TIMES * 300) / seconds_for(shape, 300) for _ in range(5))
    assert any(ratio < 2 * TIMES for ratio in ratios)


@pytest.mark.parametrize("name", ["text", "a tool call each", "text behind a part"])
def test_twenty_thousand_take_about_twice_as_long_as_ten(name: str) -> None:
    """The same for long answers, more exactly."""
    shape = SHAPES[name]
    ratios = (seconds_for(shape, 20_000) / seconds_for(shape, 10_000) for _ in range(5))
    assert any(ratio < 2.3 for ratio in ratios)


def test_one_chunk_with_many_items_takes_as_long_as_many_chunks() -> None:
    """Ten thousand tool calls at once are folded in milliseconds."""
    payload = delta(tool_calls=[call(number) for number in range(MOST_ITEMS)])
    transcript = Transcript()
    begun = process_time()
    transcript.fold(payload)
    (choice,) = transcript.choices()
    assert process_time() - begun < 0.5
    assert payload["choices"][0]["delta"]["tool_calls"] == choice.message["tool_calls"]


# --- how large it may grow ----------------------------------------------------------------------


def grown(payloads: Any, max_bytes: int | None = None, **request: Any) -> SessionRecord | None:
    """The record that these chunks end in; None if the answer may go on."""
    session = StreamSession(asked(**request), SessionPolicy(max_answer_bytes=max_bytes))
    for payload in payloads:
        event = payload if isinstance(payload, ChunkReceived) else ChunkReceived(payload)
        for effect in session.handle(event, 1.0):
            if isinstance(effect, Save):
                return effect.record
    return None


LIMIT = 100_000
LONG = "long text " * 100
BIG: dict[str, Any] = {
    "text": text_chunk(LONG),
    "text of more than a byte each": text_chunk("你" * 333),
    "repeated text": text_after(text_chunk("a"), *[LONG] * 4),
    "reasoning": delta(reasoning_content=LONG),
    "arguments": delta(tool_calls=[{"index": 0, "function": {"arguments": LONG}}]),
    "images": delta(images=[{"url": LONG}]),
    "audio": delta(audio={"data": LONG}),
    "numbers": delta(x=[[[number] for number in range(20)]]),
    "objects": delta(x=[{"a": {}}] * 20),
    "log probabilities": {
        "choices": [{"index": 0, "logprobs": {"content": [{"token": "a", "logprob": -1}] * 20}}]
    },
}


@pytest.mark.parametrize("payload", BIG.values(), ids=BIG)
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_grows_too_large_ends(payload: Any, stream: bool) -> None:
    """Past its limit it fails with a code of its own, and what came is kept, in whatever field."""
    record = grown([payload] * 1000, LIMIT, stream=stream)
    assert record is not None
    assert record.failure is not None
    assert (State.FAILED, "answer_too_large") == (record.state, record.failure.code)
    assert not record.whole
    assert record.finish_reason is None
    assert 10 < record.chunk_count < 500


@pytest.mark.parametrize("text", [LONG, "你" * 333, "\ud800\0" * 200])
def test_text_up_to_the_limit_is_whole(text: str) -> None:
    """A text's size is that of its UTF-8, whichever way it came and however it was escaped; a byte
    more is too much."""
    size = len(text.encode("utf-8", "surrogatepass"))
    room = 50 * size + 2000  # for what isn't text
    repeated = text_after(text_chunk(text), *[text] * 10)
    assert grown([repeated] * 5, room) is None
    assert grown([text_chunk(text)] * 50, room) is None
    assert grown([repeated] * 5, 50 * size - 1) is not None
    assert grown([text_chunk(text)] * 50, 50 * size - 1) is not None


def test_no_limit_is_none() -> None:
    """Without one an answer may be as large as it likes."""
    assert grown([text_chunk("x" * 1_000_000)] * 100) is None


def test_the_chunk_that_was_too_much_is_sent_and_kept() -> None:
    """Client and row agree: both have it, and then the end."""
    session = StreamSession(asked(), SessionPolicy(max_answer_bytes=1000))
    session.handle(ChunkReceived(text_chunk("small")), 1.0)
    effects = session.handle(ChunkReceived(text_chunk("x" * 1000)), 2.0)
    names = [type(effect).__name__ for effect in effects]
    assert ["SendChunk", "StopUpstream", "Save", "SendError"] == names
    contents = [save.record.choices[0].message["content"] for save in effects if type(save) is Save]
    assert ["small" + "x" * 1000] == contents
    assert () == session.handle(ChunkReceived(text_chunk("late")), 3.0)


def test_all_choices_together_are_the_answer() -> None:
    """With `n` over 1 the limit is on the sum."""
    several = [chunk({"content": LONG}, index=number % 4) for number in range(1000)]
    record = grown(several, LIMIT, choices_expected=4)
    assert record is not None
    assert 4 == len(record.choices)
    assert 80 < record.chunk_count < 120


def test_what_is_said_again_counts_once() -> None:
    """Fields of which the latest counts don't add up."""
    same = {**text_chunk("a"), "citations": [LONG]}
    other = [{**text_chunk("a"), "timings": {"so far": number}} for number in range(1000)]
    assert grown([same] * 1000, LIMIT) is None
    assert grown(other, LIMIT) is None


def test_items_and_choices_are_bounded() -> None:
    """So many tool calls, or choices, mean that something is wrong with the backend."""
    for payloads in (
        (delta(tool_calls=[call(number)]) for number in range(MOST_ITEMS + 1)),
        (delta(x=[[number]]) for number in range(MOST_ITEMS + 1)),
        (chunk({"content": "a"}, index=number) for number in range(MOST_CHOICES + 1)),
    ):
        record = grown(payloads)
        assert record is not None
        assert record.failure is not None
        assert "upstream_malformed" == record.failure.code


def test_log_probabilities_are_no_items() -> None:
    """There is one for each token."""
    logprobs = {"content": [{"token": "a"}] * 100}
    one = {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": logprobs}]}
    assert grown([one] * (MOST_ITEMS // 100 + 1)) is None


def test_a_whole_answer_may_be_of_any_size_below() -> None:
    """The limit changes nothing for an answer within it."""
    session = StreamSession(asked(), SessionPolicy(max_answer_bytes=LIMIT))
    session.handle(ChunkReceived(text_chunk(LONG)), 1.0)
    session.handle(ChunkReceived(finish_chunk()), 1.0)
    assert session.transcript.is_whole
    assert session.transcript.excess is None
