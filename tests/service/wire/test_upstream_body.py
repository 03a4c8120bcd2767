"""What an upstream is asked: the client's request on top of the agent's parameters."""

from copy import deepcopy
from typing import Any

import pytest

from tests.service.wire.test_requests import HELLO, asked_upstream, parse


def test_an_upstream_is_always_asked_for_a_stream_and_usage() -> None:
    """A plain request's upstream streams and counts too."""
    assert {
        "model": "theirs",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True},
    } == asked_upstream(parse(stream=False), model="theirs")


@pytest.mark.parametrize(
    ("ours", "clients", "expected"),
    [
        (None, None, {"include_usage": True}),
        (None, {}, {"include_usage": True}),
        (None, {"include_usage": None}, {"include_usage": True}),
        (None, {"include_usage": False}, {"include_usage": False}),
        ({"include_usage": False}, None, {"include_usage": False}),
        ({"include_usage": False}, {}, {"include_usage": False}),
        ({"include_usage": False}, {"include_usage": None}, {"include_usage": False}),
        ({"include_usage": None}, None, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}, {"include_usage": True}),
        ({"include_usage": True}, {"include_usage": False}, {"include_usage": False}),
        (
            {"include_obfuscation": False, "a": 1},
            {"a": 2, "b": None},
            {"include_usage": True, "include_obfuscation": False, "a": 2, "b": None},
        ),
    ],
)
def test_stream_options_are_merged(ours: Any, clients: Any, expected: Any) -> None:
    """Usage is asked for unless the client refuses it, or the agent's parameters do and the client
    leaves it open; other options are the client's on top of the agent's."""
    request = parse() if clients is None else parse(stream_options=clients)
    sent = asked_upstream(request, parameters={} if ours is None else {"stream_options": ours})
    assert expected == sent["stream_options"]


def test_parameters_are_defaults() -> None:
    """An agent's parameters apply where the client's request has no such field; even a null
    counts."""
    parameters = {"temperature": 0.7, "top_k": 40, "seed": 1, "model": "x", "stream": False}
    sent = asked_upstream(parse(temperature=0, seed=None), parameters=parameters)
    assert {
        "model": "m",
        "messages": HELLO,
        "temperature": 0,
        "top_k": 40,
        "seed": None,
        "stream": True,
        "stream_options": {"include_usage": True},
    } == sent


def test_the_preamble_goes_first() -> None:
    """A client without instructions of its own gets the agent's."""
    sent = asked_upstream(parse(), preamble="Be kind.")
    assert [{"role": "system", "content": "Be kind."}, *HELLO] == sent["messages"]


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("first", [True, False])
def test_the_preamble_gives_way_to_the_clients_instructions(role: str, first: bool) -> None:
    """A client that brings a system or developer message, anywhere, gets no other."""
    instructions = {"role": role, "content": "Be brief."}
    messages = [instructions, *HELLO] if first else [*HELLO, instructions]
    assert asked_upstream(parse(messages=messages), preamble="Be kind.")["messages"] == messages


def test_an_empty_preamble_is_one() -> None:
    """Only null means none."""
    sent = asked_upstream(parse(), preamble="")
    assert [{"role": "system", "content": ""}, *HELLO] == sent["messages"]


def test_request_and_parameters_stay_as_they_are() -> None:
    """What is sent upstream is a value of its own: the record keeps the request as it came."""
    request = parse(stream_options={"include_usage": False}, top_k=1)
    parameters = {"stream_options": {"a": 1}, "top_k": 2}
    before = deepcopy((request.body, list(request.messages), parameters))
    asked_upstream(request, parameters=parameters, preamble="Be kind.")
    assert before == (request.body, request.messages, parameters)
