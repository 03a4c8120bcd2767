"""What every store promises of the tools that were called for an answer."""

from typing import Any

import pytest
from attrs import evolve

from db.journal.replay import PROCESS_DIED
from db.store import Paging, Store
from statemachine import Choice, Outcome, SessionRecord, State, ToolCall, Turn
from tests.db.records import make_record, user

NASTY = "NUL \0, lone \ud800, the escape ␛0000"


def with_calls(*messages: Any, **fields: Any) -> SessionRecord:
    """An answer of two turns, between which two tools were called."""
    calls = (
        ToolCall(
            "call_a",
            1,
            0,
            "docs",
            "search",
            f'{{"q": "{NASTY}"}}',
            1_750_000_001.5,
            1_750_000_002.25,
            Outcome.OK,
            NASTY,
            40,
        ),
        ToolCall("call_b", 1, 1, "dice", "roll", "{}", 1_750_000_001.5, outcome=Outcome.UNKNOWN),
    )
    text = "Let me look.\n\nIt is so."
    return make_record(
        *messages, answer=text, turns=(Turn(1, 12, None),), tool_calls=calls, **fields
    )


async def test_calls_are_kept_with_their_answer(store: Store) -> None:
    """Exactly, in their order, and once."""
    record, other = with_calls(user("Look")), make_record(user("Other"))
    await store.save([record, other])
    await store.save([record])
    view = await store.view("alice", record.completion_id)
    assert view is not None
    first, second = view.tool_calls
    assert ("call_a", "docs", "search", 1, 0) == (
        first.call_id,
        first.server,
        first.tool,
        first.turn,
        first.position,
    )
    assert (record.tool_calls[0].arguments, NASTY) == (first.arguments, first.result)
    assert (1_750_000_001.5, 1_750_000_002.25) == (first.asked_at, first.ended_at)
    assert ("ok", 40, False, 12) == (first.outcome, first.bytes, first.is_truncated, first.text_end)
    assert ("unknown", None, None) == (second.outcome, second.ended_at, second.result)
    plain = await store.view("alice", other.completion_id)
    assert plain is not None
    assert () == plain.tool_calls


async def test_the_tree_has_them_too(store: Store) -> None:
    """At the answer's node; a client that comes back with the text alone finds its branch."""
    record = with_calls(user("Look"))
    again = make_record(
        user("Look"), {"role": "assistant", "content": "Let me look.\n\nIt is so."}, user("Why?")
    )
    await store.save([record])
    await store.save([again])
    view = await store.view("alice", record.completion_id)
    assert view is not None
    name = view.completion.conversation_id
    tree = await store.view_conversation("alice", name, Paging(100))
    assert tree is not None
    found = {node.node_id: node for node in tree.nodes.items}
    assert 4 == len(found)
    answers = [node for node in found.values() if node.tool_calls]
    assert [record.completion_id] == [
        node.completion and node.completion.completion_id for node in answers
    ]
    asked_why = [node for node in found.values() if node.parent_id == answers[0].node_id]
    assert ["Why?"] == [node.message and node.message.content for node in asked_why]


@pytest.mark.parametrize("chunks", [3, 9])
async def test_the_longer_truth_brings_its_calls(store: Store, chunks: int) -> None:
    """Where an answer is brought to an end twice, those of the record that stays are there, and once; also
    where a call's outcome is all that it has more, since clients aren't told of calls."""
    failed: Any = {"state": State.FAILED, "failure": PROCESS_DIED, "whole": False, "tape": None}
    longer = with_calls(user("Look"), chunk_count=9, **failed)
    begun = evolve(longer.tool_calls[0], outcome=Outcome.UNKNOWN, ended_at=None, result=None)
    shorter = evolve(
        longer,
        chunk_count=chunks,
        tool_calls=(begun,),
        choices=(Choice(0, {"role": "assistant", "content": "Let me look."}),),
    )
    await store.save([shorter])
    await store.save([longer])
    view = await store.view("alice", longer.completion_id)
    assert view is not None
    assert ["ok", "unknown"] == [call.outcome for call in view.tool_calls]


async def test_deleting_an_answer_deletes_its_calls(store: Store) -> None:
    """Saving its record again brings nothing back."""
    record = with_calls(user("Look"))
    await store.save([record])
    assert await store.delete("alice", record.completion_id)
    await store.save([record])
    assert await store.view("alice", record.completion_id) is None
