"""How messages find their place in the tree: what is the same message, and whose child it is."""

from typing import Any

import pytest
from attrs import evolve

from db.memory.store import MemoryStore
from db.rows.digest import canonical_content, message_digest
from db.rows.history import rows_of
from statemachine import SessionRecord
from tests.db.records import assistant, make_partial, make_record, user

LONG = "1" + ",1" * 300_000
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}


def digest(message: dict[str, Any]) -> str:
    return message_digest("parent", message["role"], canonical_content(message))


def conversation(record: SessionRecord) -> str:
    return rows_of(record).conversation.conversation_id


def last_sent(record: SessionRecord) -> str:
    return rows_of(record).sent[-1].digest


def sent_back(record: SessionRecord, copy: dict[str, Any]) -> SessionRecord:
    """The follow-up to a record, with this as the client's copy of its answer."""
    return make_record(*map(dict, record.request.messages), copy, user("And then?"))


# --- what is the same message ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (user("Hi"), user([{"type": "text", "text": "Hi"}])),
        (user("Hi there"), user([{"type": "text", "text": t} for t in ("Hi ", "there")])),
        (user("Hi"), {**user("Hi"), "name": None, "tool_calls": [], "refusal": ""}),
        (user("Hi"), {**user("Hi"), "cache_control": {"type": "ephemeral"}}),
        (
            user("Hi"),
            user([{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]),
        ),
        (assistant("Hi"), assistant("\n Hi  \n")),
        (assistant("Hi"), assistant("Hi", reasoning_content="Hm.", reasoning="Hm.")),
        (assistant("Hi"), assistant("<think>\nHm.\n</think>\n\nHi")),
        (assistant("<think>Hi"), assistant(" <reason>Hi</think>")),
        (assistant("b</think>"), assistant("<think>a</reason></think>b</think>")),
        (assistant("Hi"), assistant([{"type": "text", "text": "Hi "}])),
        (
            assistant("Hi"),
            assistant([{"type": "thinking", "thinking": []}, {"type": "text", "text": "Hi"}]),
        ),
        (assistant(None, tool_calls=[CALL]), assistant("", tool_calls=[CALL])),
        (
            assistant(None, tool_calls=[CALL]),
            assistant(
                None,
                tool_calls=[
                    {
                        "index": 0,
                        "id": "c1",
                        "function": {"name": "look", "arguments": '{ "at" : 1 }'},
                    }
                ],
            ),
        ),
        (
            assistant(None, tool_calls=[{**CALL, "function": {"name": "a", "arguments": ""}}]),
            assistant(None, tool_calls=[{**CALL, "function": {"name": "a", "arguments": "{}"}}]),
        ),
    ],
)
def test_spellings_of_one_message_share_their_digest(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """A message is the same however a client spells it."""
    assert canonical_content(one) == canonical_content(other)
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (user("Hi"), user("Hi ")),
        (user("Hi"), assistant("Hi")),
        (user("Hi"), {**user("Hi"), "name": "Bob"}),
        (user("Hi"), {**user("Hi"), "vendor": 1}),
        (user("<think>x</think>Hi"), user("Hi")),
        (user("a\ud800"), user("a\ufffd")),
        (user("a\0"), user("a␀")),
        (assistant("Hi"), assistant("hi")),
        (assistant("Hi"), assistant("Hi", refusal="No.")),
        (assistant(None, tool_calls=[CALL]), assistant(None, tool_calls=[{**CALL, "id": "c2"}])),
        (
            assistant(None, tool_calls=[CALL]),
            assistant(
                None,
                tool_calls=[{**CALL, "function": {"name": "look", "arguments": '{"at":2}'}}],
            ),
        ),
        (
            {"role": "tool", "tool_call_id": "c1", "content": "4"},
            {"role": "tool", "tool_call_id": "c2", "content": "4"},
        ),
        (user([{"type": "image_url", "image_url": {"url": "a"}}]), user("")),
        (
            user([{"type": "image_url", "image_url": {"url": "a"}}]),
            user([{"type": "image_url", "image_url": {"url": "b"}}]),
        ),
        (
            assistant(None, tool_calls=[{**CALL, "function": {"arguments": "{broken"}}]),
            assistant(None, tool_calls=[{**CALL, "function": {"arguments": "{broken "}}]),
        ),
        (  # so long that nobody reads them
            assistant(None, tool_calls=[{**CALL, "function": {"arguments": f"[{LONG}]"}}]),
            assistant(None, tool_calls=[{**CALL, "function": {"arguments": f"[ {LONG}]"}}]),
        ),
    ],
)
def test_different_messages_differ(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Whatever a message says besides its spelling makes it another message."""
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    ("answer", "copy"),
    [
        (assistant("Hi!\n"), assistant("Hi!")),
        (assistant("Hi!", reasoning_content="Hm.", citations=[1], odd_field=2), assistant("Hi!")),
        (assistant(None, tool_calls=[{**CALL, "index": 0}]), assistant("", tool_calls=[CALL])),
        (assistant("cut o"), assistant("cut o")),
        (assistant("split \ud83d\ude00"), assistant("split 😀")),
    ],
)
def test_an_answer_sent_back_is_recognised(answer: dict[str, Any], copy: dict[str, Any]) -> None:
    """The client's copy of an answer has the digest of the answer's own row."""
    for record in (make_record(answer=answer), make_partial(answer=answer)):
        (row,) = rows_of(record).answers
        assert row.digest == rows_of(sent_back(record, copy)).sent[1].digest


def test_digests_are_pinned() -> None:
    """How digests are made never changes: rows in the database are found by them."""
    rows = rows_of(make_record(user("Hello"), answer="Hi!", request={"conversation_key": "chat-1"}))
    assert "conv_a85b271ccbc0b13cae86a3325c241c23" == rows.conversation.conversation_id
    assert "6924c8f7de8581e9244e0e732810e3e80e7feb49cbd09e95aa6d13ab98205aa6" == rows.sent[0].digest
    assert (
        "f3210324ef95a9e1adae60c1981e95d263f073a6b64fbf0fc6c8443d1386d065" == rows.answers[0].digest
    )


# --- conversations --------------------------------------------------------------------------


def test_a_clients_key_names_the_conversation() -> None:
    """With a key, all that comes under it is one conversation, whatever was said."""
    key = {"conversation_key": "chat-1"}
    one, other = make_record(user("A"), request=key), make_record(user("B"), request=key)
    assert conversation(one) == conversation(other)
    assert "chat-1" == rows_of(one).conversation.client_key
    assert conversation(one) != conversation(make_record(user("A")))


def test_a_stateless_follow_up_finds_its_conversation() -> None:
    """Without a key, the opening up to the first user message names the conversation."""
    system = {"role": "system", "content": "Be brief."}
    first = make_record(system, user("One?"))
    follow_up = make_record(system, user("One?"), assistant("1"), user("Two?"))
    assert conversation(first) == conversation(follow_up)
    assert conversation(first) != conversation(make_record(user("One?")))
    assert conversation(first) != conversation(make_record(system, user("Another?")))


def test_without_a_user_message_all_messages_are_the_opening() -> None:
    """A conversation that no user message opens is named by all of its messages."""
    system = {"role": "system", "content": "Go on."}
    assert conversation(make_record(system)) != conversation(make_record(system, assistant("x")))


@pytest.mark.parametrize("key", [None, "chat-1"])
def test_two_owners_share_nothing(key: str | None) -> None:
    """The same words from two owners make different conversations and different rows."""
    alice, bob = (
        rows_of(make_record(request={"owner": owner, "conversation_key": key}))
        for owner in ("alice", "bob")
    )
    assert alice.conversation.conversation_id != bob.conversation.conversation_id
    for one, other in ((alice.sent[0], bob.sent[0]), (alice.answers[0], bob.answers[0])):
        assert one.digest != other.digest
        assert one.message_id != other.message_id


def test_two_conversations_share_no_row() -> None:
    """The same words in two conversations of one owner are different messages."""
    one, other = (
        rows_of(make_record(request={"conversation_key": key})) for key in ("chat-1", "chat-2")
    )
    assert one.sent[0].digest != other.sent[0].digest


# --- the tree -------------------------------------------------------------------------------


def test_messages_are_chained_from_the_root() -> None:
    """Each message's parent is the one before it; the first has none; the answer comes last."""
    rows = rows_of(make_record(user("A"), assistant("B"), user("C"), answer=("D", "E")))
    first, second, third = rows.sent
    assert [None, first.digest, second.digest] == [row.parent_digest for row in rows.sent]
    assert {third.digest} == {answer.parent_digest for answer in rows.answers}
    assert third.digest == rows.completion.prompt_digest


def test_an_edit_is_a_branch() -> None:
    """Changing an earlier message changes everything below it and nothing above."""
    before = rows_of(make_record(user("A"), assistant("B"), user("C"), user("D"))).sent
    after = rows_of(make_record(user("A"), assistant("B"), user("X"), user("D"))).sent
    same = [one.digest == other.digest for one, other in zip(before, after, strict=True)]
    assert [True, True, False, False] == same


def test_a_regenerated_answer_is_a_row_of_its_own() -> None:
    """Asking again gives a sibling, even where it says the same."""
    one, other = make_record(answer="Same"), make_record(answer="Same")
    (first,), (second,) = rows_of(one).answers, rows_of(other).answers
    assert (first.digest, first.parent_digest) == (second.digest, second.parent_digest)
    assert first.message_id != second.message_id


def test_the_same_record_makes_the_same_rows() -> None:
    """Saving again after a lost answer can't make anything new."""
    record = make_record(user("A"), assistant("B"), user("C"))
    assert rows_of(record) == rows_of(record)


async def test_a_long_chat_grows_by_the_turn() -> None:
    """A chat of 200 turns, resent whole each time, keeps two messages per turn."""
    store = MemoryStore()
    history: list[dict[str, Any]] = []
    for turn in range(200):
        history = [*history, user(f"Question {turn}")]
        record = make_record(*history, answer=f"Answer {turn}")
        await store.save([record])
        history = [*history, assistant(f"Answer {turn}")]
    (answer,) = await store.answer(record.completion_id)
    thread = await store.thread(answer.digest)
    assert 400 == len(thread) == sum(len(rows) for rows in store._messages.values())
    assert 200 == len({message.completion_id for message in thread} - {None})


# --- what rows hold -------------------------------------------------------------------------


def test_parts_hold_what_is_no_plain_text() -> None:
    """Role and text have columns; whatever else a message holds is in its parts."""
    plain, rich = rows_of(
        make_record(user("x"), {**user([{"type": "text", "text": "y"}]), "name": "Bob", "no": None})
    ).sent
    assert ("x", None) == (plain.content, plain.parts)
    assert rich.content is None
    assert {"content": [{"type": "text", "text": "y"}], "name": "Bob"} == rich.parts


def test_a_choices_own_finish_reason_is_kept_where_it_differs() -> None:
    """A finish reason that the completion doesn't have is kept with its message."""
    record = evolve(make_partial(answer=("done", "cut")), finish_reason=None)
    done, cut = record.choices
    rows = rows_of(evolve(record, choices=(done, evolve(cut, finish_reason=None))))
    first, second = rows.answers
    assert {"choice": {"finish_reason": "stop"}} == first.parts
    assert second.parts is None


def test_equal_tools_are_one_set() -> None:
    """Tool definitions are kept once, whatever the order of their keys; no tools is no set."""
    one = make_record(request={"tools": [{"type": "function", "name": "a"}]})
    other = make_record(request={"tools": [{"name": "a", "type": "function"}]})
    assert rows_of(one).completion.tools_digest == rows_of(other).completion.tools_digest
    nothing: list[Any] = [None, []]
    for empty in nothing:
        rows = rows_of(make_record(request={"tools": empty}))
        assert (None, None) == (rows.tool_set, rows.completion.tools_digest)
