"""What every store promises those who read their completions."""

import pytest
from attrs import evolve

from db.rows.history import rows_of
from db.store import CompletionFilter, Paging, Store, StoreUnavailable, UnknownCursor
from statemachine import Choice, State
from tests.db.records import assistant, make_partial, make_record, user
from tests.db.test_store_contract import NASTY
from tests.db.views import ALL, HIDDEN, TOOLS, ids, listed, prompt

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
async def test_hidden_and_foreign_completions_are_not_there(store: Store, hidden: bool) -> None:
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


async def test_odd_ids_owners_cursors_and_filters_find_nothing(store: Store) -> None:
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
        store.replayable("alice", "x"),
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


async def test_completions_saved_meanwhile_shift_no_page(store: Store) -> None:
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


async def test_a_deleted_item_is_still_good_as_a_cursor(store: Store) -> None:
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


async def test_all_given_filters_hold(store: Store) -> None:
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


async def test_completions_are_listed_by_how_they_ended(store: Store) -> None:
    """With the other filters, page by page; none is listed as running, as none that runs is here."""
    left = {"state": State.CLIENT_GONE, "finish_reason": None, "whole": False}
    makers = (make_record, make_partial, lambda **fields: make_record(**fields, **left))
    records = [
        makers[place % 3](request={"model": f"m{place % 2}", "metadata": {"a": str(place % 4)}})
        for place in range(12)
    ]
    await store.save(records)
    names = [record.completion_id for record in records]

    async def found(state: State, model: str | None = None, **pairs: str) -> list[int]:
        wanted = CompletionFilter(model, pairs or None, state)
        return [names.index(name) for name in await listed(store, wanted)]

    assert [0, 3, 6, 9] == await found(State.COMPLETED)
    assert [1, 4, 7, 10] == await found(State.FAILED)
    assert [2, 5, 8, 11] == await found(State.CLIENT_GONE)
    assert [1, 7] == await found(State.FAILED, "m1")
    assert [1] == await found(State.FAILED, a="1")
    assert [8] == await found(State.CLIENT_GONE, "m0", a="0")
    assert [] == await found(State.STREAMING)
    wanted = CompletionFilter(state=State.FAILED)
    page = await store.list_completions("alice", wanted, Paging(2, names[2]))
    assert ([names[4], names[7]], True) == (ids(page), page.has_more)
    page = await store.list_completions("alice", wanted, Paging(2, names[5], True))
    assert ([names[4], names[1]], False) == (ids(page), page.has_more)


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
