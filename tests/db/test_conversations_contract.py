"""What every store promises those who read their conversations, lists and trees."""

from typing import Any

import pytest

from db.store import Paging, Store, UnknownCursor
from tests.db.records import assistant, make_partial, make_record, user
from tests.db.views import HIDDEN, prompt, shown_tree, text_of, tree


async def test_conversations_are_listed_once_each_by_their_beginning(store: Store) -> None:
    """Each conversation once, by when it began; the client's key is shown."""
    records = [
        make_record(user("A"), request={"conversation_key": "chat-1"}),
        make_record(user("B")),
        make_record(user("C"), request={"conversation_key": "chat-1"}),
    ]
    await store.save(records)
    page = await store.list_conversations("alice", Paging(1))
    assert page.has_more
    (first,) = page.items
    assert ("chat-1", records[0].request.created_at) == (first.client_key, first.created_at)
    assert round(records[2].finished_at, 6) == first.updated_at
    page = await store.list_conversations("alice", Paging(1, first.conversation_id))
    assert (1, False) == (len(page.items), page.has_more)
    assert page.items[0].client_key is None


async def test_edits_and_regenerations_are_branches_of_a_tree(store: Store) -> None:
    """Edits and regenerations are branches; every node knows its completion and what is above."""
    first = make_record(user("A"), answer="1")
    again = make_record(user("A"), answer="2")
    follow_up = make_record(user("A"), assistant("2"), user("B"), answer="3")
    edited = make_partial(user("A"), assistant("2"), user("B!"), answer="4")
    silent = make_partial(user("A"), assistant("2"), user("B!"), choices=())
    records = [first, again, follow_up, edited, silent]
    for record in records:
        await store.save([record])
    view = await tree(store, first)
    assert view is not None
    nodes = view.nodes.items
    assert ["A", "1", "2", "B", "3", "B!", "4", "(nothing)"] == [text_of(n.message) for n in nodes]
    above = {node.node_id: node.parent_id for node in nodes}
    names = [node.node_id for node in nodes]
    parents = [None if (it := above[name]) is None else names.index(it) for name in names]
    assert [None, 0, 0, 2, 3, 2, 5, 5] == parents
    answers = [node.completion.completion_id for node in nodes if node.completion]
    assert [record.completion_id for record in records] == answers


async def test_pages_make_up_the_tree(store: Store) -> None:
    """Page after page, either way, gives every node once, in one order."""
    history: list[dict[str, Any]] = [{"role": "system", "content": "S"}]
    for turn in range(5):
        history = [*history, user(f"Q{turn}")]
        silent = make_partial(*history, choices=())
        record = make_record(*history, answer=f"A{turn}")
        await store.save([silent, record])
        history = [*history, assistant(f"A{turn}")]
    view = await tree(store, record)
    assert view is not None
    whole = [node.node_id for node in view.nodes.items]
    assert 16 == len(whole)
    placed = {name: place for place, name in enumerate(whole)}
    assert all(placed[n.parent_id] < placed[n.node_id] for n in view.nodes.items if n.parent_id)
    conversation = view.conversation.conversation_id
    for descending in (False, True):
        for limit in (1, 2, 3, 5, 15, 16):
            found: list[str] = []
            after = None
            has_more = True
            while has_more:
                paging = Paging(limit, after, descending)
                part = await store.view_conversation("alice", conversation, paging)
                assert part is not None
                found += [node.node_id for node in part.nodes.items]
                after, has_more = found[-1], part.nodes.has_more
            assert (whole[::-1] if descending else whole) == found
    with pytest.raises(UnknownCursor):
        await store.view_conversation("alice", conversation, Paging(1, "msg_unknown"))


async def test_a_copy_sent_back_is_the_answer_itself(store: Store) -> None:
    """Whichever of an answer and its copy came first, the tree has one node for both."""
    first = make_record(user("A"), answer=assistant("1", reasoning_content="Hm."))
    second = make_record(user("A"), assistant("1"), user("B"), answer="2")
    await store.save([second])
    await store.save([first])
    assert {"A": None, "1": "A", "B": "1", "2": "B"} == await shown_tree(store, first)
    view = await tree(store, first)
    assert view is not None and 4 == len(view.nodes.items)


async def test_hidden_completions_leave_no_trace_in_a_tree(store: Store) -> None:
    """A conversation shows what its visible completions were sent and answered, and no more."""
    hidden = make_record(user("A"), answer="secret", request=HIDDEN)
    secret = make_record(user("A"), assistant("secret"), user("B"), answer="more", request=HIDDEN)
    await store.save([hidden])
    await store.save([secret])
    assert await tree(store, hidden) is None
    shown = make_record(user("A"), answer="open")
    await store.save([shown])
    assert {"A": None, "open": "A"} == await shown_tree(store, hidden)
    # Somebody who sends it back shows it.
    told = make_record(user("A"), assistant("secret"), user("C"), answer="ok")
    await store.save([told])
    expected = {"A": None, "open": "A", "secret": "A", "C": "secret", "ok": "C"}
    assert expected == await shown_tree(store, hidden)
    assert ["A", "secret", "C"] == await prompt(store, told)
    # And once that is deleted it is hidden again.
    assert await store.delete("alice", told.completion_id)
    assert {"A": None, "open": "A"} == await shown_tree(store, hidden)
    assert await store.delete("alice", shown.completion_id)
    assert await tree(store, hidden) is None
    found = await store.find(secret.completion_id)
    assert found is not None and found.prompt_digest is not None
    thread = await store.thread(found.prompt_digest)
    assert ["A", "secret", "B"] == [row.content for row in thread]


async def test_of_records_saved_together_a_visible_one_shows_its_prompt(store: Store) -> None:
    """Of records saved together, what any visible one was sent is shown."""
    hidden = make_record(user("A"), assistant("x"), user("B"), answer="h", request=HIDDEN)
    shown = make_record(user("A"), answer="1")
    await store.save([hidden, shown])
    assert {"A": None, "1": "A"} == await shown_tree(store, shown)
