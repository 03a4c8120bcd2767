"""What every store promises those who change and delete their completions."""

import pytest
from attrs import evolve

from db.rows.history import rows_of
from db.store import CompletionFilter, Paging, Store
from tests.db.records import assistant, make_partial, make_record, user
from tests.db.test_store_contract import NASTY
from tests.db.views import HIDDEN, TOOLS, listed, prompt, shown_tree, tree

# --- metadata ---------------------------------------------------------------------------------


async def test_new_metadata_replaces_the_old(store: Store) -> None:
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


async def test_a_deleted_completion_shows_no_conversation(store: Store) -> None:
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


async def test_messages_that_other_branches_share_stay(store: Store) -> None:
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
