"""What every store promises whoever runs the service."""

import pytest
from attrs import evolve

from db.overview import Place, Sought, Stretch, WholeStore
from db.store import Paging, StoreUnavailable
from statemachine import Failure, SessionRecord, State
from tests.db.records import NOW, assistant, make_partial, make_record, user
from tests.db.test_store_contract import NASTY
from tests.db.views import HIDDEN


def ids(stretch: Stretch) -> list[str]:
    return [row.completion_id for row in stretch.items]


def failed(
    code: str = "idle_timeout", upstream: str | None = None, **fields: object
) -> SessionRecord:
    return make_partial(failure=Failure(code, "Why.", upstream_code=upstream), **fields)


async def everything(store: WholeStore, sought: Sought, limit: int = 2) -> list[str]:
    """The ids of all that fit, page by page."""
    found, after = list[str](), None
    while True:
        stretch = await store.list_all(sought, limit, after)
        assert len(stretch.items) <= limit
        found += ids(stretch)
        if (after := stretch.next) is None:
            return found


async def test_everybodys_completions_are_listed_newest_first(store: WholeStore) -> None:
    """Whoever owns them, page by page; hidden ones aren't there."""
    records = [
        make_record(request={"owner": owner}) for owner in ("alice", "bob", "alice", "carol")
    ]
    hidden = make_record(request=HIDDEN)
    await store.save([*records, hidden])
    newest = [record.completion_id for record in reversed(records)]
    stretch = await store.list_all(Sought(), 3)
    assert newest[:3] == ids(stretch)
    assert stretch.next is not None
    assert newest[3:] == ids(rest := await store.list_all(Sought(), 3, stretch.next))
    assert None is rest.next
    assert newest == await everything(store, Sought())


async def test_a_page_goes_on_from_any_place(store: WholeStore) -> None:
    """Also from one whose completion was never there, and between two of the same moment."""
    request = {"created_at": NOW + 5}
    one, two = (make_record(request={**request, "completion_id": name}) for name in "ab")
    await store.save([one, two])
    assert ["b", "a"] == await everything(store, Sought(), 1)
    assert ["a"] == ids(await store.list_all(Sought(), 5, Place(NOW + 5, "aa")))
    assert [] == ids(await store.list_all(Sought(), 5, Place(NOW, "z")))


@pytest.mark.parametrize(
    ("sought", "expected"),
    [
        (Sought(state=State.FAILED), "gfe"),
        (Sought(state=State.COMPLETED), "dcba"),
        (Sought(error="idle_timeout"), "fe"),
        (Sought(error="upstream_error"), "g"),
        (Sought(error="rate_limit_exceeded"), ""),
        (Sought(model="m2"), "gd"),
        (Sought(agent="other"), "cb"),
        (Sought(owner="bob"), "fb"),
        (Sought(since=NOW + 3, until=NOW + 6), "edc"),
        (Sought(model="m2", state=State.FAILED), "g"),
        (Sought(model="m2", state=State.COMPLETED), "d"),
        (Sought(owner="bob", agent="other", model="m1"), "b"),
        (Sought(owner="bob", model="m2"), ""),
        (Sought(error="idle_timeout", owner="bob", since=NOW + 1), "f"),
        (Sought(model="nobody's"), ""),
        (Sought(owner=NASTY, model=NASTY, agent=NASTY, error=NASTY, conversation_id=NASTY), ""),
    ],
)
async def test_filters_narrow_the_list(store: WholeStore, sought: Sought, expected: str) -> None:
    """Each alone and together with others; codes of errors are ours where there is one."""
    await store.save(
        [
            make_record(request=about("a")),
            make_record(request=about("b", owner="bob"), agent="other"),
            make_record(request=about("c"), agent="other"),
            make_record(request=about("d", model="m2")),
            failed(request=about("e")),
            failed(request=about("f", owner="bob")),
            failed("upstream_error", "rate_limit_exceeded", request=about("g", model="m2")),
        ]
    )
    assert list(expected) == await everything(store, sought)


def about(name: str, **fields: object) -> dict[str, object]:
    at = NOW + "abcdefg".index(name) + 1
    return {"completion_id": name, "created_at": at, "model": "m1", **fields}


async def test_a_conversations_completions_are_listed(store: WholeStore) -> None:
    """By the conversation that they are in."""
    first = make_record(user("One"))
    second = make_record(user("One"), assistant("Hi!"), user("Two"))
    await store.save([first, second, make_record(user("Other"))])
    row = await store.find(first.completion_id)
    assert row is not None
    expected = [second.completion_id, first.completion_id]
    assert expected == await everything(store, Sought(conversation_id=row.conversation_id))


async def test_long_names_are_found(store: WholeStore) -> None:
    """No name is too long to be stored and found again."""
    long = "x" * 100_000
    record = make_record(request={"model": long, "request_id": long}, agent=long, upstream_id=long)
    await store.save([evolve(record, request=evolve(record.request, request_id="short"))])
    assert [record.completion_id] == await everything(store, Sought(model=long, agent=long))
    found = await store.find_any(long, 5)
    assert [record.completion_id] == [row.completion_id for row in found.completions]


async def test_any_id_is_found(store: WholeStore) -> None:
    """A completion's, its request's, its trace's, its upstream's, its conversation's."""
    first = make_record(request={"request_id": "req_1", "trace_id": "a" * 32}, upstream_id="up")
    second = make_record(request={"request_id": "req_2", "trace_id": "a" * 32}, upstream_id=None)
    hidden = make_record(request={"request_id": "req_1", **HIDDEN})
    await store.save([first, second, hidden])
    row = await store.find(first.completion_id)
    assert row is not None and "req_1" == row.request_id

    async def found(name: str) -> tuple[list[str], str | None]:
        what = await store.find_any(name, 5)
        return [one.completion_id for one in what.completions], what.conversation_id

    assert ([first.completion_id], None) == await found(first.completion_id)
    assert ([first.completion_id], None) == await found("req_1")
    assert ([second.completion_id, first.completion_id], None) == await found("a" * 32)
    assert ([first.completion_id], None) == await found("up")
    assert ([], row.conversation_id) == await found(row.conversation_id)
    assert ([], None) == await found("")
    assert ([], None) == await found(NASTY)
    assert ([], None) == await found(hidden.completion_id)


async def test_a_request_without_an_id_is_stored(store: WholeStore) -> None:
    """Journals of before it was written have none."""
    record = make_record()
    await store.save([record])
    row = await store.find(record.completion_id)
    assert row is not None and None is row.request_id


async def test_anybodys_are_viewed(store: WholeStore) -> None:
    """A completion, its prompt and its conversation, without their owner's name; hidden ones not."""
    record = make_record(user("One"), request={"owner": "bob"})
    hidden = make_record(user("Two"), request=HIDDEN)
    await store.save([record, hidden])
    view = await store.view_any(record.completion_id)
    assert view is not None
    assert view == await store.view("bob", record.completion_id)
    paging = Paging(10)
    prompt = await store.list_any_prompt(record.completion_id, paging)
    assert prompt is not None
    assert ["One"] == [message.content for message in prompt.items]
    name = view.completion.conversation_id
    conversation = await store.view_any_conversation(name, paging)
    assert conversation is not None
    assert conversation == await store.view_conversation("bob", name, paging)
    assert None is await store.view_any(hidden.completion_id)
    assert None is await store.list_any_prompt(hidden.completion_id, paging)
    assert None is await store.view_any("nobody's")
    assert None is await store.view_any_conversation("nobody's", paging)


async def test_a_closed_store_is_unavailable(store: WholeStore) -> None:
    """As for all calls."""
    await store.close()
    for call in (store.list_all(Sought(), 1), store.find_any("a", 1), store.view_any("a")):
        with pytest.raises(StoreUnavailable):
            await call
