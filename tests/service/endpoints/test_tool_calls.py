"""Turns and calls as they are shown."""

from db.store import StoredToolCall
from service.endpoints.tool_calls import messages_of, tool_call_object
from statemachine import Outcome, ToolCall

TEXT = "Let me look.\n\nIt is so."


def stored(turn: int, position: int, text_end: int, result: str | None = "found") -> StoredToolCall:
    return StoredToolCall(
        completion_id="chatcmpl-1",
        turn=turn,
        position=position,
        call_id=f"call_{turn}_{position}",
        server="docs",
        tool="search",
        arguments="{}",
        asked_at=1.0,
        ended_at=2.0,
        outcome="ok",
        result=result,
        bytes=5,
        is_truncated=False,
        text_end=text_end,
    )


def test_turns_are_messages_as_openai_writes_them() -> None:
    """What was said and called in each, what each call brought, and what was said last."""
    calls = [stored(1, 0, 12), stored(1, 1, 12, None), stored(2, 0, 12)]
    shown = messages_of({"role": "assistant", "content": TEXT, "refusal": None}, calls)
    assert ["assistant", "tool", "assistant", "tool", "assistant"] == [
        message["role"] for message in shown
    ]
    assert ["Let me look.", None, "It is so."] == [
        message["content"] for message in shown if message["role"] == "assistant"
    ]
    assert ["call_1_0", "call_1_1"] == [call["id"] for call in shown[0]["tool_calls"]]
    assert {"name": "docs__search", "arguments": "{}"} == shown[0]["tool_calls"][0]["function"]
    assert {"role": "tool", "tool_call_id": "call_1_0", "content": "found"} == shown[1]
    assert "refusal" in shown[-1]


def test_an_answer_that_broke_off_at_a_call_has_said_no_last_word() -> None:
    """Nor anything at all, maybe."""
    assert ["assistant", "tool"] == [each["role"] for each in messages_of(None, [stored(1, 0, 0)])]


def test_a_call_is_shown_alike_while_it_runs_and_later() -> None:
    """By the same keys."""
    running = ToolCall("call_a", 1, 0, "docs", "search", "{}", 1.0)
    over = ToolCall("call_a", 1, 0, "docs", "search", "{}", 1.0, 2.0, Outcome.OK, "found", 5)
    assert (None, None) == (
        tool_call_object(running)["outcome"],
        tool_call_object(running)["ended_at"],
    )
    assert {**tool_call_object(stored(1, 0, 12)), "id": "call_a"} == tool_call_object(over)
