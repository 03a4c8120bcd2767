"""Answers of several turns: what passes, what is called, what the model is told, how it ends."""

import asyncio
import json
from typing import Any

import pytest
from attrs import evolve

from db.journal.replay import PROCESS_DIED
from service.tools.contract import ToolResult
from statemachine import (
    Activity,
    ChunkReceived,
    Outcome,
    SendActivity,
    SendChunk,
    State,
    StopRequested,
    ToolCall,
    ToolCallEnded,
    ToolCallStarted,
    TurnEnded,
    UpstreamFailed,
    UpstreamFinished,
)
from statemachine.calls import activity_chunk
from statemachine.endings import BODY_ENDED
from tests.service.turns.conftest import LIMITS, Answer, Model, Tools, calls_chunk, says, wants
from tests.statemachine.conftest import chunk, finish_chunk, text_chunk

SEARCHED = ("call_a", "docs__search", '{"q": "x"}')
ROLLED = ("call_b", "dice__roll", "")


def shown(answer: Answer) -> list[Any]:
    """What the client is sent, chunk by chunk."""
    sent = [effect for effect in answer.effects if isinstance(effect, SendChunk)]
    return [effect.run.payload for effect in sent]  # type: ignore[union-attr]


def text_of(payloads: list[Any]) -> str:
    return "".join(each["choices"][0]["delta"].get("content") or "" for each in payloads)


async def test_an_answer_of_two_turns(tools: Tools) -> None:
    """Its words are one text, a blank line between; the model gets what the tools brought, in the order
    of its calls; there is one finish reason, and usage is the sum."""
    first = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    last = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}
    ending = says("It is ", "so.")
    ending.insert(-1, ChunkReceived({**chunk({}), "choices": [], "usage": last}))
    model = Model(wants(SEARCHED, ROLLED, text="Let me look.", usage=first), ending)
    answer = Answer(model, tools, LIMITS)
    record = await answer.to_its_end()
    assert State.COMPLETED is record.state
    assert "Let me look.\n\nIt is so." == record.choices[0].message["content"]
    assert [("docs__search", {"q": "x"}), ("dice__roll", {})] == tools.made
    _, _, said, searched, rolled = [None, *model.asked[1].messages]
    assert {
        "role": "assistant",
        "content": "Let me look.",
        "tool_calls": [
            {
                "id": "call_a",
                "type": "function",
                "function": {"name": "docs__search", "arguments": '{"q": "x"}'},
            },
            {
                "id": "call_b",
                "type": "function",
                "function": {"name": "dice__roll", "arguments": "{}"},
            },
        ],
    } == said
    assert {"role": "tool", "tool_call_id": "call_a", "content": "search it is"} == searched
    assert {"role": "tool", "tool_call_id": "call_b", "content": "roll it is"} == rolled
    expected: Any = {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 35}
    assert {**expected, "turns": [first, last]} == record.usage
    payloads = shown(answer)
    assert "Let me look.\n\nIt is so." == text_of(payloads)
    reasons = [each["choices"][0].get("finish_reason") for each in payloads]
    assert ["stop"] == [reason for reason in reasons if reason]
    assert not any("tool_calls" in each["choices"][0]["delta"] for each in payloads)
    assert 1 == sum("role" in each["choices"][0]["delta"] for each in payloads)


async def test_the_client_is_told_of_calls_in_chunks_of_their_own(tools: Tools) -> None:
    """Each beginning and each end, without text; they are on the tape, like all that was sent."""
    answer = Answer(Model(wants(SEARCHED), says("So.")), tools, LIMITS)
    record = await answer.to_its_end()
    told = [
        effect.run.payload  # type: ignore[union-attr]
        for effect in answer.effects
        if isinstance(effect, SendActivity)
    ]
    assert [
        {
            "type": "tool_call.started",
            "call_id": "call_a",
            "turn": 1,
            "server": "docs",
            "tool": "search",
        },
        {
            "type": "tool_call.finished",
            "call_id": "call_a",
            "turn": 1,
            "server": "docs",
            "tool": "search",
            "outcome": "ok",
            "seconds": 1.0,
        },
    ] == [each["activity"] for each in told]
    assert [{}, {}] == [each["choices"][0]["delta"] for each in told]
    assert record.tape is not None
    assert len(shown(answer)) == record.tape.count


async def test_a_call_is_told_before_it_is_made_and_ended_before_the_model_hears(
    tools: Tools,
) -> None:
    """`Answer.step` checks the former at each read."""
    model = Model(wants(SEARCHED), says("So."))
    answer = Answer(model, tools, LIMITS)
    while not any(isinstance(event, ToolCallStarted) for event in await answer.step()):
        assert [] == tools.made
    assert [] == tools.made
    events = await answer.step()
    assert [ToolCallEnded] == [type(event) for event in events]
    assert 1 == len(model.asked)
    await answer.to_its_end()
    assert 2 == len(model.asked)


async def test_only_so_many_tools_are_called_at_once(tools: Tools) -> None:
    """The others wait, and aren't told to have begun meanwhile."""
    many = [(f"call_{number}", "dice__roll", "{}") for number in range(7)]
    answer = Answer(Model(wants(*many), says("So.")), tools, evolve(LIMITS, concurrency=2))
    record = await answer.to_its_end()
    assert 2 == tools.at_once
    assert [f"call_{number}" for number in range(7)] == [each.call_id for each in record.tool_calls]
    assert {Outcome.OK} == {each.outcome for each in record.tool_calls}


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("call_a", "docs__search", "{"), "not a JSON object"),
        (("call_a", "docs__search", "[1]"), "not a JSON object"),
    ],
)
async def test_a_call_that_cannot_be_made_is_told_to_the_model(
    tools: Tools, call: tuple[str, str, str], told: str
) -> None:
    """It goes on from there; nothing is called."""
    model = Model(wants(call), says("So."))
    record = await Answer(model, tools, LIMITS).to_its_end()
    assert [] == tools.made
    assert [Outcome.ERROR] == [each.outcome for each in record.tool_calls]
    assert told in model.asked[1].messages[-1]["content"]
    assert State.COMPLETED is record.state


async def test_a_limit_that_is_used_up_is_told_to_the_model(tools: Tools) -> None:
    """The tool isn't called."""
    model = Model(wants(SEARCHED), says("So."))
    limits = evolve(LIMITS, may_call=lambda: 30.0)
    record = await Answer(model, tools, limits).to_its_end()
    assert [] == tools.made
    assert "30 s" in model.asked[1].messages[-1]["content"]
    assert State.COMPLETED is record.state


async def test_a_failed_call_may_end_the_answer(tools: Tools) -> None:
    """With `on_error: stop`; its words are kept."""
    tools.results["docs__search"] = ToolResult(Outcome.TIMEOUT, "It took too long.", 17)
    model = Model(wants(SEARCHED, text="Let me look."), says("So."))
    limits = evolve(LIMITS, stops_on_error=True)
    record = await Answer(model, tools, limits).to_its_end()
    assert (State.FAILED, "tool_failed") == (record.state, record.failure and record.failure.code)
    assert "Let me look." == record.choices[0].message["content"]
    assert 1 == len(model.asked)


async def test_a_model_that_goes_on_and_on_is_stopped(tools: Tools) -> None:
    """The answer says so, truthfully: neither `stop` nor `tool_calls`."""
    turns = [wants((f"call_{number}", "dice__roll", "{}")) for number in range(3)]
    answer = Answer(Model(*turns), tools, evolve(LIMITS, max_turns=3))
    record = await answer.to_its_end()
    assert (State.FAILED, None) == (record.state, record.finish_reason)
    assert record.failure is not None
    assert "too_many_turns" == record.failure.code
    assert 2 == len(tools.made)


THEIRS = ("call_c", "weather", '{"at": "home"}')
OFFERED: Any = [{"type": "function", "function": {"name": "weather"}}]


async def test_the_clients_own_tools_end_the_answer(tools: Tools) -> None:
    """As ever, without a turn more."""
    model = Model(wants(THEIRS))
    answer = Answer(model, tools, LIMITS, tools=OFFERED)
    record = await answer.to_its_end()
    assert [] == tools.made
    assert (State.COMPLETED, "tool_calls") == (record.state, record.finish_reason)
    (call,) = record.choices[0].message["tool_calls"]
    assert "weather" == call["function"]["name"]


async def test_ours_run_before_the_clients_own_end_the_answer(tools: Tools) -> None:
    """The client sees its own call alone, numbered from 0."""
    model = Model(wants(SEARCHED, THEIRS, text="Let me look."))
    answer = Answer(model, tools, LIMITS, tools=OFFERED)
    record = await answer.to_its_end()
    assert ["docs__search"] == [name for name, _ in tools.made]
    assert (State.COMPLETED, "tool_calls") == (record.state, record.finish_reason)
    items = [
        item
        for each in shown(answer)
        for item in each["choices"][0]["delta"].get("tool_calls") or ()
    ]
    assert [(0, "weather")] == [(item["index"], item["function"]["name"]) for item in items]
    last = [each for each in shown(answer) if each["choices"][0].get("finish_reason")]
    assert [last[-1]] == last
    assert 1 == len(model.asked)


@pytest.mark.parametrize("offered", [None, OFFERED])
async def test_a_tool_that_nobody_has_is_not_passed_to_the_client(
    tools: Tools, offered: Any
) -> None:
    """The model is told, and goes on; the call is kept as one that failed."""
    model = Model(wants(("call_a", "docs__serch", "{}")), says("Sorry."))
    answer = Answer(model, tools, LIMITS, tools=offered)
    record = await answer.to_its_end()
    assert ([], "stop", "Sorry.") == (
        tools.made,
        record.finish_reason,
        record.choices[0].message["content"],
    )
    (call,) = record.tool_calls
    assert (Outcome.ERROR, "There is no tool 'docs__serch'.") == (call.outcome, call.result)
    assert "tool_calls" not in record.choices[0].message


@pytest.mark.parametrize(
    ("name", "arguments", "sent"),
    [
        ("get weather", "{}", ("get_weather", "{}")),
        ("", "{}", ("unnamed", "{}")),
        ("n" * 100, '{"a": 1}', ("n" * 64, '{"a": 1}')),
        ("docs__search", '{"q": ', ("docs__search", "{}")),
        ("docs__search", "[]", ("docs__search", "{}")),
        ("docs__search", "  ", ("docs__search", "{}")),
        ("docs__search", '{"q": [' + "1," * 40_000 + "1]}", ("docs__search", "{}")),
    ],
)
async def test_what_a_model_made_up_does_not_end_the_answer(
    tools: Tools, name: str, arguments: str, sent: tuple[str, str]
) -> None:
    """Backends refuse such names and arguments in a conversation, so the model reads fit ones, and what was
    wrong in the result. The record has them as they were."""
    model = Model(wants(("call_a", name, arguments)), says("Sorry."))
    record = await Answer(model, tools, LIMITS).to_its_end()
    assert "stop" == record.finish_reason
    (call,) = model.asked[1].messages[-2]["tool_calls"]
    assert sent == (call["function"]["name"], call["function"]["arguments"])
    assert arguments == record.tool_calls[0].arguments


@pytest.mark.parametrize("call", [("c" * 5_000_000, "x", "{}"), ("call_a", "x" * 5_000_000, "{}")])
async def test_names_and_ids_count_as_what_a_model_wants(
    tools: Tools, call: tuple[str, str, str]
) -> None:
    """They are kept, and sent back to it."""
    record = await Answer(Model(wants(call)), tools, LIMITS).to_its_end()
    assert record.failure is not None
    assert "more calls of tools than can be made" in record.failure.message


async def test_a_name_may_come_after_its_id(tools: Tools) -> None:
    """Where the client has no tools, the call can only be ours."""
    pieces = [
        {"index": 0, "id": "call_a", "type": "function", "function": {"arguments": ""}},
        {"index": 0, "function": {"name": "dice__roll", "arguments": '{"sides":'}},
        {"index": 0, "function": {"arguments": " 6}"}},
    ]
    turn = [ChunkReceived(chunk({"tool_calls": [piece]})) for piece in pieces]
    ended = [ChunkReceived(finish_chunk("tool_calls")), UpstreamFinished()]
    record = await Answer(Model([*turn, *ended], says("Six.")), tools, LIMITS).to_its_end()
    assert [("dice__roll", {"sides": 6})] == tools.made
    assert "Six." == record.choices[0].message["content"]


async def test_with_tools_of_an_unknown_kind_any_name_may_be_the_clients(tools: Tools) -> None:
    """As OpenAI's custom ones: who calls them isn't told here."""
    offered = [{"type": "custom", "custom": {"name": "weather"}}]
    answer = Answer(Model(wants(THEIRS)), tools, LIMITS, tools=offered)
    record = await answer.to_its_end()
    assert (State.COMPLETED, "tool_calls") == (record.state, record.finish_reason)


async def test_pieces_of_calls_come_together(tools: Tools) -> None:
    """By their index, and by their ids where a backend gives all of them one index; text between them
    passes."""

    def piece(index: int | None, text: str, **named: str) -> ChunkReceived:
        function = {"arguments": text, **({"name": named["name"]} if "name" in named else {})}
        item: dict[str, Any] = {
            "function": function,
            **({"id": named["id"]} if "id" in named else {}),
        }
        item |= {} if index is None else {"index": index}
        return ChunkReceived(chunk({"tool_calls": [item]}))

    for indexes in ((0, 1), (0, 0), (None, None)):
        first, second = indexes
        model = Model(
            [
                piece(first, '{"q":', id="call_a", name="docs__search"),
                ChunkReceived(text_chunk("Hm.")),
                piece(first, ' "x"}'),
                piece(second, "{", id="call_b", name="dice__roll"),
                piece(second, "}", **({"id": "call_b"} if indexes == (0, 0) else {})),
                ChunkReceived(finish_chunk("tool_calls")),
                UpstreamFinished(),
            ],
            says("So."),
        )
        tools = Tools()
        record = await Answer(model, tools, LIMITS).to_its_end()
        assert [("docs__search", {"q": "x"}), ("dice__roll", {})] == tools.made
        assert "Hm.\n\nSo." == record.choices[0].message["content"]


async def test_calls_named_alike_in_every_turn_are_told_apart(tools: Tools) -> None:
    """Some models number them anew; the record and the model's next request agree on the names."""
    model = Model(wants(SEARCHED), wants(SEARCHED), wants(("", "dice__roll", "")), says("So."))
    record = await Answer(model, tools, LIMITS).to_its_end()
    names = [each.call_id for each in record.tool_calls]
    assert 3 == len(set(names)) == len(names)
    told = [each["tool_call_id"] for each in model.asked[3].messages if each["role"] == "tool"]
    assert names == told


async def test_calls_that_broke_off_are_not_made(tools: Tools) -> None:
    """A turn that ended for want of tokens ends the answer; so does one whose connection broke."""
    cut = [ChunkReceived(calls_chunk(SEARCHED)), ChunkReceived(finish_chunk("length"))]
    record = await Answer(Model([*cut, UpstreamFinished()]), tools, LIMITS).to_its_end()
    assert (State.COMPLETED, "length") == (record.state, record.finish_reason)
    broken = [ChunkReceived(calls_chunk(SEARCHED)), UpstreamFailed(BODY_ENDED)]
    record = await Answer(Model(broken), tools, LIMITS).to_its_end()
    assert State.FAILED is record.state
    assert [] == tools.made


async def test_a_connection_that_breaks_after_whole_calls_costs_nothing(tools: Tools) -> None:
    """As it costs nothing after a whole answer."""
    turn = wants(SEARCHED)
    turn[-1] = UpstreamFailed(BODY_ENDED)
    record = await Answer(Model(turn, says("So.")), tools, LIMITS).to_its_end()
    assert State.COMPLETED is record.state


async def test_the_clients_choice_of_a_tool_counts_once(tools: Tools) -> None:
    """Or the model could never say anything."""
    model = Model(wants(SEARCHED), says("So."))
    answer = Answer(model, tools, LIMITS, parameters={"tool_choice": "required"})
    await answer.to_its_end()
    assert "required" == model.asked[0].body["tool_choice"]
    assert "tool_choice" not in model.asked[1].body


async def test_a_clients_tool_of_our_name_is_refused(tools: Tools) -> None:
    """With the place of it."""
    theirs = [{"type": "function", "function": {"name": "docs__search"}}]
    answer = Answer(Model(), tools, LIMITS, tools=theirs)
    record = await answer.to_its_end()
    assert record.failure is not None
    assert (400, "tools[0].function.name") == (record.failure.status, record.failure.param)


async def test_a_stop_gives_running_calls_up_and_says_so(tools: Tools) -> None:
    """Those not begun aren't in the record."""
    tools.holds["docs__search"] = asyncio.Event()
    model = Model(wants(SEARCHED, ROLLED, text="Let me look."), says("So."))
    answer = Answer(model, tools, evolve(LIMITS, concurrency=1))
    while not any(isinstance(event, ToolCallStarted) for event in await answer.step()):
        pass
    reading = asyncio.ensure_future(answer.turns.read())
    await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    answer.effects += answer.session.handle(StopRequested(), 20.0)
    record = await answer.to_its_end()
    await asyncio.sleep(0)
    assert ["docs__search"] == tools.given_up
    assert State.CLIENT_GONE is record.state
    assert [("call_a", Outcome.ABANDONED)] == [
        (each.call_id, each.outcome) for each in record.tool_calls
    ]


async def test_a_process_that_dies_does_not_know_what_became_of_a_call(tools: Tools) -> None:
    """Played from its journal: the intent is there, and no end."""
    answer = Answer(Model(wants(SEARCHED)), tools, LIMITS)
    while not any(isinstance(event, TurnEnded) for event in await answer.step()):
        pass
    events = [event for read in answer.events for event in read]
    assert isinstance(events[-1], ToolCallStarted)
    answer.effects += answer.session.handle(UpstreamFailed(PROCESS_DIED), 20.0)
    record = await answer.to_its_end()
    assert [Outcome.UNKNOWN] == [each.outcome for each in record.tool_calls]
    assert "process_died" == (record.failure and record.failure.code)


async def test_silence_while_tools_work_is_nobodys_fault(tools: Tools) -> None:
    """The idle deadline waits for the model's next token."""
    answer = Answer(Model(wants(SEARCHED, text="Let me look."), says("So.")), tools, LIMITS)
    while not any(isinstance(event, TurnEnded) for event in await answer.step()):
        pass
    assert answer.session.due(answer.now + 10.0) is None
    due = answer.session.due(answer.now + 400.0)  # a ping, and no deadline
    assert "TimePassed" == type(due).__name__


def test_what_a_chunk_of_activity_looks_like() -> None:
    """For Open WebUI it has a status line too."""
    call = ToolCall("call_a", 1, 0, "docs", "search", '{"q": "x"}', 1.0)
    begun = activity_chunk(call, Activity.OPENWEBUI, "m", 7, shows_detail=True)
    ended = evolve(call, ended_at=2.5, outcome=Outcome.ERROR, result="no")
    over = activity_chunk(ended, Activity.OPENWEBUI, "m", 7, shows_detail=True)
    assert {"description": "docs: search …", "done": False} == begun["event"]["data"]
    assert {"description": "docs: search (error)", "done": True} == over["event"]["data"]
    assert ('{"q": "x"}', "no", 1.5) == (
        over["activity"]["arguments"],
        over["activity"]["result"],
        over["activity"]["seconds"],
    )
    assert json.dumps(begun)
