"""What is computed: names, patterns, texts of results, what may be sent; and the built-in tools."""

import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.tools.builtin import NOW, ROLL, Builtin
from service.tools.contract import Tool
from service.tools.fates import Exchange, broken
from service.tools.link import Answered, Enclosed, Fate, Offered
from service.tools.names import is_allowed, named
from service.tools.results import answer_of, bounded, why_unsendable
from statemachine import Outcome

SERVER = st.sampled_from(["d", "docs-2", "a_b", "-", "x" * 32])
NAME = st.text("ab_-. ä\ud800", max_size=70)
NAMES = st.lists(NAME, max_size=5)
few = settings(max_examples=60)


def offered(*names: str) -> list[Offered]:
    return [Offered(name, "", {}) for name in names]


# --- names ----------------------------------------------------------------------------------------


@few
@given(SERVER, NAMES)
def test_every_tool_can_be_called_by_one_name(server: str, own: list[str]) -> None:
    """Each tool has a name of its own that OpenAI's API takes, from which its server's can be told; a name
    that fits is the tool's own."""
    tools = named(server, offered(*own))
    assert list(dict.fromkeys(own)) == [tool.own_name for tool in tools]
    assert len(tools) == len({tool.full_name for tool in tools})
    for tool in tools:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", tool.full_name)
        assert tool.full_name.partition("__")[::2] == (server, tool.name)
        if re.fullmatch(r"[A-Za-z0-9_-]+", tool.own_name) and len(server + tool.own_name) <= 62:
            assert tool.name == tool.own_name


@few
@given(SERVER, NAME, NAMES)
def test_a_changed_name_is_stable(server: str, name: str, others: list[str]) -> None:
    """Whatever else is listed, a tool is called by the same name."""
    (alone,) = named(server, offered(name))
    among = {tool.own_name: tool for tool in named(server, offered(*others, name))}
    assert among[name].name == alone.name


def test_a_name_that_looks_like_a_changed_one_is_told_apart() -> None:
    """A tool whose own name is what another's is changed to keeps it, and the other gets a third."""
    (changed,) = named("docs", offered("a.b"))
    first, second = named("docs", offered("a.b", changed.name))
    assert changed.name == second.name
    assert first.name not in (changed.name, "a.b")


@pytest.mark.parametrize(
    ("name", "allow", "deny", "allowed"),
    [
        ("search", ("*",), (), True),
        ("search", (), (), False),
        ("search", ("find*", "sea*"), (), True),
        ("search", ("*",), ("sea*",), False),
        ("Search", ("search",), (), False),
        ("s2", ("s[0-9]",), ("s?x",), True),
    ],
)
def test_patterns_allow_and_deny(
    name: str, allow: tuple[str, ...], deny: tuple[str, ...], allowed: bool
) -> None:
    """Some pattern must allow a tool, and none deny it."""
    assert allowed is is_allowed(name, allow, deny)


# --- results --------------------------------------------------------------------------------------


@few
@given(st.text(max_size=60), st.integers(1, 80))
def test_a_cut_result_is_a_beginning_with_a_note(text: str, most: int) -> None:
    """No more than the bound is kept, no character is cut in two, and what is kept is the beginning."""
    result = bounded(Outcome.OK, text, most)
    size = len(text.encode())
    assert size == result.size
    assert (size > most) is result.is_truncated
    kept = result.text
    if result.is_truncated:
        kept, _, note = result.text.rpartition("\n")
        assert f"[cut: these are the first {most} of {size} bytes]" == note
        assert len(kept.encode()) > most - 4
    assert text.startswith(kept)
    assert len(kept.encode()) <= most


def test_half_a_character_in_a_result_is_replaced() -> None:
    """What isn't Unicode can't be sent on."""
    assert "a?b" == bounded(Outcome.OK, "a\ud800b", 99).text


@pytest.mark.parametrize(
    ("answered", "text"),
    [
        (Answered(("a", "b")), "a\nb"),
        (Answered(()), ""),
        (Answered((), {"a": "ä"}), '{"a": "ä"}'),
        (Answered(("a",), {"a": 1}), "a"),
        (Answered(("",), {"a": 1}), ""),
        (Answered((), 0), "0"),
        (
            Answered((Enclosed("an image, image/png", 7),), {"a": 1}),
            '[an image, image/png, 7 bytes]\n{"a": 1}',
        ),
        (Answered((Enclosed("a resource, x"), "a")), "[a resource, x]\na"),
    ],
)
def test_a_result_is_a_text(answered: Answered, text: str) -> None:
    """Texts as they are, other parts in words, a structured value where there is no text."""
    assert (Outcome.OK, text) == (answer_of(answered, 999).outcome, answer_of(answered, 999).text)


def test_deep_arguments_are_not_sent() -> None:
    """Arguments that are nested past all reason are an error like others."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert "The arguments are not what JSON can say" == why_unsendable({"a": deep})
    assert None is why_unsendable({"a": "🧀", "b": [1.5, None, True, 2**80]})


@pytest.mark.parametrize(
    ("written", "watched", "sent", "fate"),
    [
        (False, False, False, Fate.NOT_SENT),
        (True, False, False, Fate.UNKNOWN),
        (True, True, False, Fate.NOT_SENT),
        (True, True, True, Fate.UNKNOWN),
    ],
)
def test_what_nobody_watched_may_have_left(
    written: bool, watched: bool, sent: bool, fate: Fate
) -> None:
    """A call counts as not carried out only if it is known that nothing of it left."""
    exchange = Exchange()
    exchange.is_written, exchange.is_watched, exchange.is_sent = written, watched, sent
    assert fate is broken(exchange, "cut").fate


# --- built-in tools -------------------------------------------------------------------------------

BUILTIN = Builtin(("clock", "dice"), lambda: 1_796_000_000.0, random.Random(1))


def test_the_clock_tells_the_time() -> None:
    """In UTC always, and in a zone if one is named."""
    assert "Monday, 2026-11-30 00:53:20 UTC" == BUILTIN.call(NOW, {}).text
    assert [
        "Monday, 2026-11-30 00:53:20 UTC",
        "Sunday, 2026-11-29 19:53:20 -0500 in America/New_York",
    ] == BUILTIN.call(NOW, {"zone": "America/New_York"}).text.split("\n")


def test_dice_are_rolled() -> None:
    """Each shows one of its sides; of several the sum is told."""
    for _ in range(50):
        assert 1 <= int(BUILTIN.call(ROLL, {}).text) <= 6
        shown, _, total = BUILTIN.call(ROLL, {"sides": 20, "count": 3}).text.partition(" = ")
        dice = [int(die) for die in shown.split(" + ")]
        assert (3, sum(dice)) == (len(dice), int(total))
        assert all(1 <= die <= 20 for die in dice)


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        (NOW, {"zone": "Nowhere/Land"}, "zone: not the name"),
        (NOW, {"zone": "../../etc/passwd"}, "zone: not the name"),
        (NOW, {"zone": "/etc/localtime"}, "zone: not the name"),
        (NOW, {"zone": ""}, "zone: not the name"),
        (NOW, {"zone": "a\0b"}, "zone: not the name"),
        (NOW, {"zone": "\ud800"}, "zone: not the name"),
        (NOW, {"zone": "x" * 5000}, "zone: not the name"),
        (NOW, {"zone": 5}, "zone: not the name"),
        (NOW, {"zone": ["UTC"]}, "zone: not the name"),
        (NOW, {"place": "UTC"}, "place: no such argument; there are zone."),
        (ROLL, {"sides": 1}, "sides: not a whole number from 2 to 1000."),
        (ROLL, {"sides": 1001}, "sides: not a whole number from 2 to 1000."),
        (ROLL, {"count": 0}, "count: not a whole number from 1 to 100."),
        (ROLL, {"count": 101}, "count: not a whole number from 1 to 100."),
        (ROLL, {"count": True}, "count: not a whole number"),
        (ROLL, {"count": 2.0}, "count: not a whole number"),
        (ROLL, {"count": "2"}, "count: not a whole number"),
        (Tool("dice", "load", "", {}), {}, "There is no tool 'dice__load'."),
        (Tool("gone", "x", "", {}), {}, "There is no tool 'gone__x'."),
    ],
)
def test_what_does_not_fit_is_an_error(tool: Tool, arguments: dict[str, Any], words: str) -> None:
    """Wrong arguments and tools that aren't there are errors in words, bounded."""
    result = BUILTIN.call(tool, arguments)
    assert Outcome.ERROR is result.outcome
    assert result.text.startswith(words)


def test_only_configured_tools_are_there() -> None:
    """A tool that an agent doesn't have isn't listed, and isn't called either."""
    clock = Builtin(("clock",), lambda: 0.0, random.Random(1))
    assert ["clock__now"] == [tool.full_name for tool in clock.tools]
    assert Outcome.ERROR is clock.call(ROLL, {}).outcome
    assert [] == Builtin((), lambda: 0.0, random.Random(1)).tools
