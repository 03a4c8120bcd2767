"""What every store promises those who read, change and delete what is theirs."""

from typing import Any

import pytest
from attrs import evolve

from db.rows.history import rows_of
from db.store import (
    CompletionFilter,
    CompletionView,
    ConversationView,
    Page,
    Paging,
    Store,
    StoreUnavailable,
    UnknownCursor,
)
from statemachine import Choice, SessionRecord, State
from tests.db.records import assistant, make_partial, make_record, user
from tests.db.test_store_contract import NASTY

ALL = CompletionFilter()
HIDDEN = {"parameters": {"store": False}}
TOOLS = [{"type": "function", "function": {"name": "look"}}]


def ids(page: Page[CompletionView]) -> list[str]:
    return [view.completion.completion_id for view in page.items]


async def listed(
    store: Store, wanted: CompletionFilter = ALL, *, owner: str = "alice", limit: int = 100
) -> list[str]:
    return ids(await store.list_completions(owner, wanted, Paging(limit)))


async def prompt(store: Store, record: SessionRecord) -> list[Any]:
    """What the completion's client sent, as the store gives it."""
    page = await store.list_prompt("alice", record.completion_id, Paging(100))
    assert page is not None
    return [message.content for message in page.items]


async def tree(store: Store, record: SessionRecord) -> ConversationView | None:
    name = rows_of(record).conversation.conversation_id
    return await store.view_conversation("alice", name, Paging(1000))


async def shown_tree(store: Store, record: SessionRecord) -> dict[str, str | None]:
    """Each text of the conversation with the text above it."""
    view = await tree(store, record)
    assert view is not None
    texts = {node.node_id: text_of(node.message) for node in view.nodes.items}
    return {
        texts[node.node_id]: None if node.parent_id is None else texts[node.parent_id]
        for node in view.nodes.items
    }


def text_of(message: Any) -> str:
    return "(nothing)" if message is None else message.content


# --- one completion ---------------------------------------------------------------------------


async def test_a_completion_is_viewed_as_it_was_saved(store: Store) -> None:
    """Choices, tools and all fields come back: to each choice its own reason, logprobs, extras."""
    calls = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    choices = (
        Choice(0, assistant("One", reasoning_content="Hm.", choice={"odd": 1}), "stop"),
        Choice(1, assistant(None, tool_calls=calls), "tool_calls", {"content": []}, {"x": 1}),
        Choice(2, assistant("", refusal="No."), "stop"),
    )
    record = make_record(choices=choices, request={"tools": TOOLS, "metadata": {"a": "b"}})
    await store.save([record])
    view = await store.view("alice", record.completion_id)
    assert view is not None
    assert choices == view.choices
    assert TOOLS == view.tools
    assert await store.find(record.completion_id) == view.completion


async def test_a_vendors_choice_is_not_taken_for_ours(store: Store) -> None:
    """A delta field called `choice`, of whatever kind, comes back and changes nothing else."""
    for odd in ("stop", {"finish_reason": "stop"}, [1]):
        record = make_partial(answer=assistant("cut", choice=odd))
        record = evolve(record, choices=(evolve(record.choices[0], finish_reason=None),))
        await store.save([record])
        view = await store.view("alice", record.completion_id)
        assert view is not None
        assert record.choices == view.choices


async def test_any_text_comes_back_exactly(store: Store) -> None:
    """NUL, surrogates and the escape character, in what was sent as in what was answered."""
    record = make_record(user(NASTY), answer=assistant(NASTY, reasoning=NASTY))
    await store.save([record])
    view = await store.view("alice", record.completion_id)
    assert view is not None
    assert record.choices == view.choices
    assert [NASTY] == await prompt(store, record)


async def test_partial_answers_are_viewed(store: Store) -> None:
    """A failed completion is shown with its state, error and text, one without a word too."""
    cut, silent = make_partial(answer="cut o"), make_partial(choices=())
    await store.save([cut, silent])
    view = await store.view("alice", cut.completion_id)
    assert view is not None and view.completion.error is not None
    assert State.FAILED is view.completion.state
    assert "cut o" == view.choices[0].message["content"]
    view = await store.view("alice", silent.completion_id)
    assert view is not None and () == view.choices


@pytest.mark.parametrize("hidden", [False, True], ids=["another owner's", "hidden"])
async def test_what_is_not_to_be_seen_is_not_there(store: Store, hidden: bool) -> None:
    """No call shows or changes another owner's completion, or one asked for with store: false."""
    record = make_record(request={"metadata": {"a": "b"}, **(HIDDEN if hidden else {})})
    await store.save([record])
    owner, name = "alice" if hidden else "bob", record.completion_id
    conversation = rows_of(record).conversation.conversation_id
    assert [] == await listed(store, owner=owner)
    assert [] == await listed(store, CompletionFilter("demo-model"), owner=owner)
    assert [] == await listed(store, CompletionFilter(metadata={"a": "b"}), owner=owner)
    assert await store.view(owner, name) is None
    assert await store.list_prompt(owner, name, Paging(5)) is None
    assert await store.set_metadata(owner, name, {"stolen": "yes"}) is None
    assert not await store.delete(owner, name)
    assert () == (await store.list_conversations(owner, Paging(5))).items
    assert await store.view_conversation(owner, conversation, Paging(5)) is None
    for call in (
        store.list_completions(owner, ALL, Paging(5, name)),
        store.list_conversations(owner, Paging(5, conversation)),
    ):
        with pytest.raises(UnknownCursor):
            await call
    found = await store.find(name)
    assert found is not None and {"a": "b"} == found.metadata


async def test_odd_names_are_just_not_there(store: Store) -> None:
    """No id, owner, cursor or filter is an error."""
    for odd in ("", NASTY, "%s", "'; --", "x" * 10_000):
        assert await store.view("alice", odd) is None
        assert not await store.delete(odd, odd)
        assert await store.list_prompt(odd, odd, Paging(5, odd)) is None
        assert await store.view_conversation(odd, odd, Paging(5, odd)) is None
        assert [] == await listed(store, CompletionFilter(odd, {odd: odd}))
        with pytest.raises(UnknownCursor):
            await store.list_completions("alice", ALL, Paging(5, odd))


async def test_a_closed_store_shows_nothing(store: Store) -> None:
    """After `close` every call says so."""
    await store.close()
    for call in (
        store.view("alice", "x"),
        store.delete("alice", "x"),
        store.set_metadata("alice", "x", None),
        store.list_prompt("alice", "x", Paging(1)),
        store.list_completions("alice", ALL, Paging(1)),
        store.list_conversations("alice", Paging(1)),
        store.view_conversation("alice", "x", Paging(1)),
    ):
        with pytest.raises(StoreUnavailable):
            await call


# --- lists ------------------------------------------------------------------------------------


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 7, 8])
async def test_pages_make_up_the_list(store: Store, limit: int, descending: bool) -> None:
    """Page after page gives every completion once, by time of creation and by id among equals."""
    records = [
        make_record(request={"created_at": 1_750_000_000.0 + place // 3}) for place in range(8)
    ]
    await store.save(records[::-1])
    expected = [record.completion_id for record in records]
    found: list[str] = []
    after = None
    while True:
        page = await store.list_completions("alice", ALL, Paging(limit, after, descending))
        found += ids(page)
        if not page.has_more:
            break
        assert limit == len(page.items)
        after = found[-1]
    assert (expected[::-1] if descending else expected) == found


async def test_what_comes_meanwhile_shifts_nothing(store: Store) -> None:
    """Completions saved between two pages change nothing of what the next page goes on with."""
    old = [make_record() for _ in range(4)]
    await store.save(old)
    first = await store.list_completions("alice", ALL, Paging(2))
    early = make_record(request={"created_at": old[0].request.created_at - 1})
    late = make_record()
    await store.save([early, late])
    second = await store.list_completions("alice", ALL, Paging(9, ids(first)[-1]))
    rest = [record.completion_id for record in [*old[2:], late]]
    assert rest == ids(second)


async def test_a_list_can_be_deleted_while_it_is_read(store: Store) -> None:
    """A deleted completion is still good for going on after it; so is a deleted conversation."""
    records = [make_record(user(f"{place}")) for place in range(5)]
    await store.save(records)
    first = await store.list_completions("alice", ALL, Paging(2))
    conversations = await store.list_conversations("alice", Paging(2))
    for name in ids(first):
        assert await store.delete("alice", name)
    rest = await store.list_completions("alice", ALL, Paging(9, ids(first)[-1]))
    assert [record.completion_id for record in records[2:]] == ids(rest)
    after = conversations.items[-1].conversation_id
    page = await store.list_conversations("alice", Paging(9, after))
    assert 3 == len(page.items)


async def test_filters_choose_by_model_and_metadata(store: Store) -> None:
    """All given filters hold for what is shown; order and pages are the same as without."""
    metadata = [{"a": "1"}, {"a": "1", "b": "2"}, {"b": "2"}, None, {"a": "1", "b": "3"}]
    records = [
        make_record(request={"metadata": each, "model": f"m{place % 2}"})
        for place, each in enumerate(metadata)
    ]
    await store.save(records)
    names = [record.completion_id for record in records]

    async def found(model: str | None = None, **pairs: str) -> list[int]:
        return [names.index(n) for n in await listed(store, CompletionFilter(model, pairs or None))]

    assert [0, 1, 4] == await found(a="1")
    assert [1] == await found(a="1", b="2")
    assert [] == await found(a="1", b="4")
    assert [0, 2, 4] == await found("m0")
    assert [0, 4] == await found("m0", a="1")
    assert [] == await found("m")
    wanted = CompletionFilter(None, {"a": "1"})
    page = await store.list_completions("alice", wanted, Paging(1, names[4], True))
    assert ([names[1]], True) == (ids(page), page.has_more)
    page = await store.list_completions("alice", wanted, Paging(1, names[0], True))
    assert ((), False) == (page.items, page.has_more)


@pytest.mark.parametrize(
    "pair",
    [
        ("it's", "100%"),
        ("%s", "%(owner)s"),
        ("ключ", "值😀"),
        ("", ""),
        ("a]", '"b'),
        (NASTY, NASTY),
    ],
)
async def test_odd_metadata_is_found(store: Store, pair: tuple[str, str]) -> None:
    """A filter finds exactly its pair, whatever characters are in it."""
    key, value = pair
    right, other = (make_record(request={"metadata": {key: text}}) for text in (value, "other"))
    await store.save([right, other])
    assert [right.completion_id] == await listed(store, CompletionFilter(None, {key: value}))


async def test_pairs_are_not_confused(store: Store) -> None:
    """Key and value stay apart, and owners too."""
    await store.save([make_record(request={"metadata": {"ab": "c"}})])
    assert [] == await listed(store, CompletionFilter(None, {"a": "bc"}))


async def test_long_models_are_told_apart(store: Store) -> None:
    """Models that begin with the same thousands of characters are different models."""
    long = "m" * 5_000
    one, other = (make_record(request={"model": long + end}) for end in "ab")
    await store.save([one, other])
    assert [one.completion_id] == await listed(store, CompletionFilter(long + "a"))


async def test_a_prompt_is_listed_in_pages(store: Store) -> None:
    """What was sent comes in its order, or backwards; an unknown cursor is an error."""
    history = [user("A"), assistant("B"), user([{"type": "text", "text": "C"}]), user("D")]
    record = make_record(*history)
    await store.save([record])
    name = record.completion_id
    page = await store.list_prompt("alice", name, Paging(3))
    assert page is not None and page.has_more
    assert history[:3] == [row.message for row in page.items]
    page = await store.list_prompt("alice", name, Paging(3, page.items[-1].message_id))
    assert page is not None and ["D"] == [row.content for row in page.items]
    assert not page.has_more
    page = await store.list_prompt("alice", name, Paging(2, None, True))
    assert page is not None and history[:1:-1] == [row.message for row in page.items]
    with pytest.raises(UnknownCursor):
        await store.list_prompt("alice", name, Paging(3, "msg_unknown"))


# --- metadata ---------------------------------------------------------------------------------


async def test_metadata_is_replaced(store: Store) -> None:
    """The new pairs are shown and found, the old ones are not; nothing else changes."""
    record = make_record(request={"metadata": {"old": "1", "both": "1"}})
    await store.save([record])
    before = await store.view("alice", record.completion_id)
    after = await store.set_metadata("alice", record.completion_id, {"both": "1", "new": NASTY})
    assert before is not None and after is not None
    assert {"both": "1", "new": NASTY} == after.completion.metadata
    assert before == evolve(
        after, completion=evolve(after.completion, metadata=before.completion.metadata)
    )
    assert after == await store.view("alice", record.completion_id)
    for pair, found in ({"old": "1"}, []), ({"both": "1", "new": NASTY}, [record.completion_id]):
        assert found == await listed(store, CompletionFilter(None, pair))
    cleared = await store.set_metadata("alice", record.completion_id, None)
    assert cleared is not None and cleared.completion.metadata is None
    assert [] == await listed(store, CompletionFilter(None, {"both": "1"}))


# --- deletion ---------------------------------------------------------------------------------


async def test_deleting_removes_for_good(store: Store) -> None:
    """A deleted completion is gone with its texts, and saving its record again changes nothing."""
    record = make_record(request={"tools": TOOLS})
    await store.save([record])
    assert await store.delete("alice", record.completion_id)
    assert not await store.delete("alice", record.completion_id)
    await store.save([record])
    assert await store.find(record.completion_id) is None
    assert [] == await store.answer(record.completion_id)
    assert [] == await store.thread(rows_of(record).sent[-1].digest)
    assert await tree(store, record) is None
    assert [] == await listed(store)


async def test_what_is_deleted_shows_no_conversation(store: Store) -> None:
    """Saved again together with a hidden completion of its conversation, a deleted one has no say
    in whether that is shown, nor since when it is there."""
    deleted = make_record(user("A"), answer="seen", request={"metadata": {"a": "b"}})
    await store.save([deleted])
    assert await store.delete("alice", deleted.completion_id)
    hidden = make_record(user("A"), answer="secret", request=HIDDEN)
    await store.save([deleted, hidden])
    assert await store.find(deleted.completion_id) is None
    assert await store.find(hidden.completion_id) is not None
    assert await tree(store, hidden) is None


async def test_what_others_share_stays(store: Store) -> None:
    """Deleting a branch leaves what the other branches go over."""
    opening = [user("A"), assistant("B")]
    one, other = make_record(*opening, user("C"), answer="c"), make_record(*opening, user("D"))
    await store.save([one, other])
    assert await store.delete("alice", one.completion_id)
    assert ["A", "B", "D"] == await prompt(store, other)
    assert {"A": None, "B": "A", "D": "B", "Hi!": "D"} == await shown_tree(store, other)


async def test_a_branch_goes_up_to_its_fork(store: Store) -> None:
    """All of a branch that nobody else has is deleted, however long, and nothing above it."""
    branch = make_record(user("A"), assistant("B"), user("C"), assistant("D"), user("E"))
    other = make_record(user("A"))
    await store.save([branch, other])
    assert await store.delete("alice", branch.completion_id)
    kept = [len(await store.thread(message.digest)) for message in rows_of(branch).sent]
    assert [1, 0, 0, 0, 0] == kept


async def test_a_regenerated_answer_goes_alone(store: Store) -> None:
    """Of two answers to the same words, deleting one leaves the other and the words."""
    one, other = make_record(user("A"), answer="1"), make_record(user("A"), answer="2")
    await store.save([one, other])
    assert await store.delete("alice", one.completion_id)
    assert {"A": None, "2": "A"} == await shown_tree(store, other)
    assert await store.delete("alice", other.completion_id)
    assert await tree(store, other) is None


@pytest.mark.parametrize("silent", [False, True])
async def test_an_answer_that_others_follow_stays_as_sent(store: Store, silent: bool) -> None:
    """The follow-up's prompt stays whole: of the deleted answer, what its client sent back."""
    answer = assistant("<think>Hm.</think> B ", reasoning_content="Hm.", name="bot")
    first = make_record(user("A"), answer=answer)
    fields = {"choices": ()} if silent else {}
    second = make_partial(user("A"), assistant("B", name="bot"), **fields)
    third = make_partial(user("A"), assistant("B", name="bot"), user("C"), **fields)
    await store.save([first, second, third])
    assert await store.delete("alice", first.completion_id)
    page = await store.list_prompt("alice", third.completion_id, Paging(9))
    assert page is not None
    expected = [user("A"), assistant("B", name="bot"), user("C")]
    assert expected == [row.message for row in page.items]
    assert ["complete"] * 3 == [row.state for row in page.items]
    for record in (third, second):
        assert await store.delete("alice", record.completion_id)
    assert [] == await store.thread(rows_of(third).sent[-1].digest)
    assert [] == await store.thread(rows_of(third).sent[0].digest)
    assert await tree(store, third) is None


# --- conversations ----------------------------------------------------------------------------


async def test_conversations_are_listed(store: Store) -> None:
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


async def test_a_conversation_is_a_tree(store: Store) -> None:
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
    parents = [None if above[name] is None else names.index(above[name]) for name in names]
    assert [None, 0, 0, 2, 3, 2, 5, 5] == parents
    answers = [node.completion.completion_id for node in nodes if node.completion]
    assert [record.completion_id for record in records] == answers


async def test_a_tree_comes_in_pages(store: Store) -> None:
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


async def test_one_save_may_hide_and_show(store: Store) -> None:
    """Of records saved together, what any visible one was sent is shown."""
    hidden = make_record(user("A"), assistant("x"), user("B"), answer="h", request=HIDDEN)
    shown = make_record(user("A"), answer="1")
    await store.save([hidden, shown])
    assert {"A": None, "1": "A"} == await shown_tree(store, shown)
