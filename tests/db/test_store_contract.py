"""What every store promises, held against each of them."""

import pytest
from attrs import evolve

from db.rows.history import rows_of
from db.store import RecordRejected, Store, StoreUnavailable
from statemachine import Choice, Failure, State
from tests.db.records import assistant, make_partial, make_record, make_request, user

NASTY = "NUL \0, lone \ud800 and \udc00, a split pair \ud83d\ude00, the escape ␛0000, ␀ and \ufffd"


async def texts(store: Store, digest: str) -> list[str | None]:
    return [message.content for message in await store.thread(digest)]


async def test_a_completion_is_found_as_it_was_saved(store: Store) -> None:
    """Every field of a record comes back as it went in."""
    record = make_record(
        request={
            "parameters": {"temperature": 0.5, "stream": True},
            "metadata": {"chat": "7"},
            "tools": [{"type": "function", "function": {"name": "look"}}],
        },
        client_left_at=1_750_000_123.456789,
    )
    await store.save([record])
    found = await store.find(record.completion_id)
    assert found is not None
    assert record.completion_id == found.completion_id
    assert ("alice", "demo", "demo-model") == (found.owner, found.agent, found.model)
    assert ("chatcmpl-upstream", "demo-model-2026") == (found.upstream_id, found.upstream_model)
    assert 1_750_000_001 == found.upstream_created
    assert (State.COMPLETED, "stop", None) == (found.state, found.finish_reason, found.error)
    assert record.usage == found.usage
    assert ("provider", 2, 3) == (found.usage_source, found.token_count, found.chunk_count)
    assert (120.5, 800.25) == (found.ttft_ms, found.duration_ms)
    assert record.request.trace_id == found.trace_id
    assert {"temperature": 0.5, "stream": True} == found.request
    assert {"chat": "7"} == found.metadata
    assert {"system_fingerprint": "fp_1"} == found.extra
    assert found.tools_digest is not None
    assert record.request.created_at == found.created_at
    assert round(record.finished_at, 6) == found.finished_at
    assert 1_750_000_123.456789 == found.client_left_at


async def test_unknown_ids_find_nothing(store: Store) -> None:
    """Asking for what isn't there is no error, whatever the id looks like."""
    for name in ("nothing", "", "nul \0 in it", "lone \ud800"):
        assert await store.find(name) is None
        assert [] == await store.answer(name)
        assert [] == await store.thread(name)


async def test_the_error_is_kept_as_the_client_saw_it(store: Store) -> None:
    """The upstream's own code is the error's code, and ours is its kind."""
    failure = Failure(
        "upstream_error", "Slow down.", type="rate_limit", param="n", upstream_code="429"
    )
    own, foreign = make_partial(), make_partial(failure=failure)
    await store.save([evolve(own, failure=evolve(failure, upstream_code=None)), foreign])
    expected = {"message": "Slow down.", "type": "rate_limit", "param": "n"}
    found = await store.find(own.completion_id)
    assert found and {**expected, "code": "upstream_error"} == found.error
    found = await store.find(foreign.completion_id)
    assert found and {**expected, "code": "429", "kind": "upstream_error"} == found.error


async def test_each_choice_is_a_message_of_its_own(store: Store) -> None:
    """An answer's choices come back by index, with what their messages and choices held."""
    calls = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    record = make_record(
        choices=(
            Choice(0, assistant("One", reasoning_content="Hm."), "stop"),
            Choice(1, assistant(None, tool_calls=calls), "tool_calls", {"content": []}, {"x": 1}),
        ),
    )
    await store.save([record])
    first, second = await store.answer(record.completion_id)
    assert ("One", {"reasoning_content": "Hm."}) == (first.content, first.parts)
    assert (f"{record.completion_id}-1", 1) == (second.message_id, second.choice_index)
    assert second.content is None
    choice = {"finish_reason": "tool_calls", "logprobs": {"content": []}, "extra": {"x": 1}}
    assert {"tool_calls": calls, "choice": choice} == second.parts
    assert first.parent_digest == second.parent_digest
    assert {"complete"} == {first.state, second.state}


async def test_a_partial_answer_says_so(store: Store) -> None:
    """An answer that broke off is kept, marked partial."""
    record = make_partial(answer="The answer is")
    await store.save([record])
    (message,) = await store.answer(record.completion_id)
    assert ("The answer is", "partial") == (message.content, message.state)


async def test_an_answer_that_never_began_has_no_message(store: Store) -> None:
    """Without a chunk there is a completion and what was sent, and no answer."""
    for record in (make_partial(choices=()), make_record(choices=(), finish_reason=None)):
        await store.save([record])
        found = await store.find(record.completion_id)
        assert found is not None and found.prompt_digest is not None
        assert [] == await store.answer(record.completion_id)
        assert ["Hello"] == await texts(store, found.prompt_digest)


async def test_a_thread_leads_from_the_root_to_the_message(store: Store) -> None:
    """A thread is the messages from the conversation's first to the one asked for, in order."""
    opening = [{"role": "system", "content": "Be brief."}, user("One?")]
    first = make_record(*opening, answer="1")
    second = make_record(*opening, assistant("1"), user("Two?"), answer="2")
    await store.save([first])
    await store.save([second])
    (answer,) = await store.answer(second.completion_id)
    assert ["Be brief.", "One?", "1", "Two?", "2"] == await texts(store, answer.digest)
    thread = await store.thread(answer.digest)
    assert thread[0].parent_digest is None
    assert first.completion_id == thread[2].completion_id


async def test_an_answer_is_preferred_to_its_copy_sent_back(store: Store) -> None:
    """Whichever was saved first, a thread has our answer and not the client's copy of it."""
    first = make_record(user("One?"), answer=assistant("1", reasoning_content="Hm."))
    second = make_record(user("One?"), assistant("1"), user("Two?"), answer="2")
    await store.save([second])
    await store.save([first])
    (answer,) = await store.answer(second.completion_id)
    thread = await store.thread(answer.digest)
    assert ["One?", "1", "Two?", "2"] == [message.content for message in thread]
    assert first.completion_id == thread[1].completion_id
    assert {"reasoning_content": "Hm."} == thread[1].parts


async def test_saving_again_changes_nothing(store: Store) -> None:
    """A completion that is there stays as it is, whatever comes under its id later."""
    record = make_record(answer="First")
    await store.save([record])
    before = await store.find(record.completion_id), await store.answer(record.completion_id)
    other = make_record(user("Other"), answer="Second")
    other = evolve(other, request=evolve(other.request, completion_id=record.completion_id))
    await store.save([record])
    await store.save([other])
    after = await store.find(record.completion_id), await store.answer(record.completion_id)
    assert before == after
    assert [] == await store.thread(rows_of(other).sent[0].digest)


async def test_one_call_may_hold_a_record_twice(store: Store) -> None:
    """Of several records with one id in a call, the first is kept."""
    record, neighbour = make_record(answer="First"), make_record(answer="Neighbour")
    again = evolve(record, choices=make_record(answer="Again").choices)
    await store.save([record, again, neighbour, record])
    (message,) = await store.answer(record.completion_id)
    assert "First" == message.content
    assert await store.find(neighbour.completion_id) is not None


async def test_an_empty_save_is_no_error(store: Store) -> None:
    """An empty call is no error."""
    await store.save([])


async def test_no_text_can_stop_a_save(store: Store) -> None:
    """NUL, lone surrogates and the escape character are kept anywhere and come back exactly."""
    record = make_record(
        {**user(NASTY), "name": NASTY},
        answer=assistant(NASTY, **{NASTY: [NASTY, {"reasoning": NASTY}]}),
        request={
            "metadata": {NASTY: NASTY},
            "parameters": {"stop": [NASTY]},
            "tools": [{NASTY: NASTY}],
            "model": NASTY,
            "owner": NASTY,
            "conversation_key": NASTY,
            "trace_id": NASTY,
        },
        extra={NASTY: NASTY},
        usage={NASTY: 1},
        finish_reason=NASTY,
        upstream_id=NASTY,
        upstream_model=NASTY,
        agent=NASTY,
    )
    await store.save([record])
    found = await store.find(record.completion_id)
    assert found is not None
    assert ({NASTY: NASTY}, {"stop": [NASTY]}) == (found.metadata, found.request)
    assert ({NASTY: NASTY}, {NASTY: 1}) == (found.extra, found.usage)
    shown = "NUL ␀, lone � and �, a split pair 😀, the escape ␛0000, ␀ and �"
    assert {shown} == {found.model, found.owner, found.agent, found.upstream_id}
    (answer,) = await store.answer(record.completion_id)
    assert NASTY == answer.content
    assert answer.parts is not None
    assert [NASTY, {"reasoning": NASTY}] == answer.parts[NASTY]
    sent, _ = await store.thread(answer.digest)
    assert (NASTY, {"name": NASTY}) == (sent.content, sent.parts)


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE messages; --",
        "$rows$; DROP TABLE messages; --",
        "$rows$$rows1$$rows2$",
        "$",
        "$$",
        "$rows",
        "%(rows)s %s %%",
        "back\\slash \\' E'\\''",
        "/* -- $1",
    ],
)
async def test_no_text_is_taken_for_a_statement(store: Store, text: str) -> None:
    """Whatever means something to SQL comes back as it was said."""
    record = make_record(user(text), answer=text, request={"metadata": {text: text}})
    await store.save([record])
    (answer,) = await store.answer(record.completion_id)
    assert [text, text] == await texts(store, answer.digest)
    found = await store.find(record.completion_id)
    assert found is not None
    assert {text: text} == found.metadata


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (2**64 + 1, 2**64 + 1),
        (-(10**400), -(10**400)),
        (float("nan"), None),
        (float("-inf"), None),
        (5e-324, 5e-324),
        (1e22, 10**22),
        (0.1, 0.1),
        (1.0, 1.0),
    ],
)
async def test_no_number_can_stop_a_save(store: Store, value: float, kept: object) -> None:
    """Numbers keep their decimal value at any size; what JSON has no number for becomes null."""
    record = make_record(answer=assistant("x", score=[value]), extra={"n": value})
    await store.save([record])
    (answer,) = await store.answer(record.completion_id)
    found = await store.find(record.completion_id)
    assert {"score": [kept]} == answer.parts
    assert found and {"n": kept} == found.extra


async def test_no_depth_can_stop_a_save(store: Store) -> None:
    """JSON nested as deeply as any parser takes it is kept."""
    deep: list[object] = []
    for _ in range(1_000):
        deep = [deep]
    record = make_record({**user("x"), "deep": deep}, answer=assistant("y", deep=deep))
    await store.save([record])
    (answer,) = await store.answer(record.completion_id)
    assert answer.parts is not None
    level, found = 0, answer.parts["deep"]
    while found:
        level, found = level + 1, found[0]
    assert 1_000 == level


async def test_absurd_counts_and_indices_are_kept_within_bounds(store: Store) -> None:
    """No number that an upstream makes up for a count, a time or an index can stop a save."""
    record = make_record(
        token_count=10**30,
        upstream_created=10**30,
        choices=(Choice(10**12, assistant("a")), Choice(-1, assistant("b"))),
    )
    await store.save([record])
    found = await store.find(record.completion_id)
    assert found is not None
    assert (2**63 - 1, None) == (found.token_count, found.upstream_created)
    answers = await store.answer(record.completion_id)
    assert [(0, "a"), (1, "b")] == [(row.choice_index, row.content) for row in answers]


async def test_long_keys_are_kept(store: Store) -> None:
    """A conversation key or owner longer than any index takes can't stop a save."""
    long = make_record(request={"conversation_key": "ключ" * 5_000, "owner": "é" * 5_000})
    await store.save([long])
    assert await store.find(long.completion_id) is not None


async def test_content_that_is_no_text_comes_back(store: Store) -> None:
    """Content that is no text is kept beside the other parts, as it came."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for content in ([image], {"odd": True}, 7, [], ["text"]):
        record = make_record(user(content))
        await store.save([record])
        found = await store.find(record.completion_id)
        assert found is not None and found.prompt_digest is not None
        (message,) = await store.thread(found.prompt_digest)
        assert (None, {"content": content}) == (message.content, message.parts)


async def test_a_record_that_makes_no_rows_is_rejected_and_nothing_kept(store: Store) -> None:
    """A record that can never be kept is rejected, with all of its call."""
    good = make_record()
    bad = make_record(request=make_request(messages=["no object"]))
    with pytest.raises(RecordRejected):
        await store.save([good, bad])
    assert await store.find(good.completion_id) is None


async def test_a_closed_store_is_unavailable(store: Store) -> None:
    """After `close` every call says so, and closing again is fine."""
    await store.close()
    await store.close()
    for call in (store.check(), store.find("x"), store.save([make_record()])):
        with pytest.raises(StoreUnavailable):
            await call


async def test_check_returns_when_writing_is_possible(store: Store) -> None:
    """`check` is silent when all is well."""
    await store.check()
